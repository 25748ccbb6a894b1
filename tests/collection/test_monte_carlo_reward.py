"""Values of prefixes by rollouts while a policy trains: exact where the prover is known, live where it learns."""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.generation import vllm_client
from trl.generation.vllm_client import VLLMClient

from tests.benchmarks.arithmetic.prover import ArithmeticProcessReward
from tests.benchmarks.arithmetic.task import arithmetic_reward
from tests.provers import ArithmeticProver, ScriptedGenerator, arithmetic_problems
from tests.tiny_models import build_tokenizer, make_grpo_args, prompt_dataset
from tests.trainer_runs import make_trainer, train_logs
from trl_prl.collection.monte_carlo_reward import MonteCarloProcessReward, refuse_shards
from trl_prl.generation.local import TransformersGenerator
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.types import Prompt, SamplingParams


def ends_with_seven(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(text.endswith("7")) for text in completions]


def scripted(write: Any, **options: Any) -> MonteCarloProcessReward:
    options = {"n": 4, "sampling": SamplingParams(max_tokens=20), **options}
    return MonteCarloProcessReward(ScriptedGenerator(build_tokenizer(), write), ends_with_seven, **options)


def test_values_are_shares_of_right_rollouts() -> None:
    # From the prompt 1 of 4 is right, after the first step 3 of 4.
    reward = scripted(lambda prompt, i: "7" if i < (3 if "\n" in prompt else 1) else "8")
    costs: dict[str, float] = {}
    steps = [["1\n", "7"], ["1\n", "8"], ["1\n", "9"], []]
    finished = [True, True, False, True]
    initial, values = reward.score_solutions(
        ["a", "a", "a", "a"], steps, finished=finished, log_metric=costs.__setitem__
    )
    assert initial == [0.25, 0.25, 0.25, 0.25]
    assert values == [[0.75, 1.0], [0.75, 0.0], [0.75, 0.0], []]
    # The prompt and the first step once each; every rollout is a digit and the end.
    assert costs == {"process/monte_carlo/num_rollouts": 8, "process/monte_carlo/num_tokens": 16}
    assert reward(["a"], [["1\n", "7"]]) == [[0.75, 1.0]]
    tokens = [reward.tokenizer(text).input_ids for text in ("1\n", "7")]
    # From the tokens that were sampled, also where tokenising the text gives others.
    given = reward.score_solutions(["a"], [["1\n", "7"]], step_token_ids=[[tokens[0], [*tokens[1], 2]]])
    assert given == ([0.25], [[0.75, 1.0]])
    reward.score_solutions(["a"], [["1\n", "7"]], step_token_ids=[[[5, 6, 7], [8]]])
    assert reward.generator.prompts[-1].token_ids[-3:] == (5, 6, 7)  # type: ignore[attr-defined]
    excluding = scripted(lambda prompt, i: "7" * (30 if i else 1), unfinished="exclude")
    assert excluding.score_solutions(["a"], [["1"]], finished=[False]) == ([1.0], [[None]])


def test_rows_are_told_apart_by_their_columns_and_optimizer_steps_by_their_rollouts() -> None:
    reward = scripted(lambda prompt, i: "7")
    asked: list[Any] = []

    def keep(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        asked.extend(answer)
        assert not columns.keys() - {"prompts", "completion_ids"}
        return [1.0] * len(completions)

    reward.outcome_reward = keep  # type: ignore[assignment]
    reward.score_solutions(["a", "a"], [["7"], ["7"]], answer=["1", "2"], trainer_state=None)
    assert asked == ["1"] * 4 + ["2"] * 4 + ["1", "2"]


def test_values_are_unbiased() -> None:
    prover = ArithmeticProver()
    reward = MonteCarloProcessReward(prover, arithmetic_reward, n=400, sampling=SamplingParams(max_tokens=64))
    problem = arithmetic_problems(prover.tokenizer, 1)[0]
    exact = ArithmeticProcessReward(0.1)
    solution = prover.generate([Prompt(problem.prompt_ids, key="seed")], SamplingParams(max_tokens=64))[0][0].text
    steps = [line + "\n" for line in solution.split("\n")[:-1]] + [solution.split("\n")[-1]]
    initial, values = reward.score_solutions([problem.prompt], [steps], answer=[problem.columns["answer"]])
    wanted = [*exact.initial_values([problem.prompt]), *exact([problem.prompt], [steps])[0]]
    for found, expected in zip([initial[0], *values[0]], wanted, strict=True):
        assert found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 400))


def even_length(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text) % 2 == 0) for text in completions]


def test_a_training_on_values_of_the_live_policy(tiny_model_path: str, tmp_path: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    reward = MonteCarloProcessReward(
        TransformersGenerator(policy, tokenizer), even_length, n=4, sampling=SamplingParams(max_tokens=12)
    )
    more: dict[str, Any] = {"process_reward": reward, "reward_funcs": even_length}
    trainer = make_trainer("pav", policy, tmp_path, more, initial_value=None, learning_rate=5e-3, reward_weights=[0.0])
    asked = (["Add 1.\n\n"] * 8, [["We add.\n", "3"]] * 8)
    before = reward.score_solutions(*asked)
    random_state = torch.random.get_rng_state()
    assert reward.score_solutions(*asked) == before
    assert torch.equal(torch.random.get_rng_state(), random_state)
    trainer.train()
    assert trainer.model is policy
    assert policy.training
    for log in train_logs(trainer):
        assert log["process/monte_carlo/num_rollouts"] >= 4
        assert log["process/monte_carlo/num_tokens"] >= log["process/monte_carlo/num_rollouts"]
        assert log["process/unscorable_frac"] == 0
    assert train_logs(trainer)[0]["process/reward/std"] > 0
    # With no weight on the outcome itself, progress is all there is.
    assert train_logs(trainer)[0]["process/advantage_share"] == 1
    assert reward.score_solutions(*asked) != before


class Engine:
    """Stands for a `vllm.LLM`: ends every prompt with one token and the end, and remembers what it was asked."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text = tokenizer, text
        self.asked: list[tuple[list[int], Any]] = []

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(self, prompts: list[dict[str, Any]], params: list[Any], use_tqdm: bool) -> list[Any]:
        self.asked += zip((prompt["prompt_token_ids"] for prompt in prompts), params, strict=True)
        ids = [*self.tokenizer(self.text).input_ids, self.tokenizer.eos_token_id]
        sample = SimpleNamespace(token_ids=ids, finish_reason="stop", stop_reason=None)
        return [SimpleNamespace(outputs=[sample]) for _ in prompts]


def test_rollouts_are_drawn_by_the_trainers_own_vllm_engine(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    reward = MonteCarloProcessReward(None, ends_with_seven, n=2)
    more: dict[str, Any] = {"process_reward": reward, "reward_funcs": ends_with_seven}
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "initial_value": None}
    trainer = make_trainer("pav", tiny_model_path, tmp_path, more, **settings)
    engine = Engine(trainer.processing_class, "7")
    # vLLM is not installed, so the trainer cannot make one: it samples by itself, and this is what it would hold.
    held = SimpleNamespace(mode="colocate", llm=engine, tensor_parallel_size=1, enable_sleep_mode=False)
    trainer.use_vllm, trainer.vllm_generation = True, held
    reward.attach(trainer)
    trainer.use_vllm = False
    trainer.train()
    # All rollouts are right: no step makes progress but a last one that is wrong.
    assert train_logs(trainer)[0]["process/reward/mean"] < 0
    assert len(engine.asked) == sum(log["process/monte_carlo/num_rollouts"] for log in train_logs(trainer))
    ids, sampling = engine.asked[0]
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.7, 0.9, trainer.max_completion_length)
    assert trainer.processing_class.decode(ids) in prompt_dataset()["prompt"]
    assert len({sampling.seed for _, sampling in engine.asked}) == len(engine.asked)
    for field, value in (("tensor_parallel_size", 2), ("enable_sleep_mode", True)):
        trainer.use_vllm, trainer.vllm_generation = True, SimpleNamespace(**{**vars(held), field: value})
        with pytest.raises(ValueError, match=f"vllm_{field}={value}"):
            reward.attach(trainer)


class Client:
    """Stands for TRL's `VLLMClient`: ends every prompt with some tokens, and remembers what it was asked."""

    made: ClassVar[list[Any]] = []
    takes = staticmethod(inspect.signature(VLLMClient.generate).bind)

    def __init__(self, base_url: str, connection_timeout: float) -> None:
        self.base_url, self.ids = base_url, [[5, 2], [6, 2]]
        self.asked: list[dict[str, Any]] = []
        self.made.append(self)

    def generate(self, *args: Any, **settings: Any) -> dict[str, Any]:
        # A name that TRL's client does not take is an error here too.
        self.asked.append(self.takes(self, *args, **settings).arguments)
        return {"completion_ids": self.ids}


def test_rollouts_are_drawn_by_the_trainers_server(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_client, "VLLMClient", Client)
    monkeypatch.setattr(Client, "made", [])
    reward = MonteCarloProcessReward(None, ends_with_seven, n=2)
    more: dict[str, Any] = {"process_reward": reward, "reward_funcs": ends_with_seven}
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "top_k": 3, "initial_value": None}
    trainer = make_trainer("pav", tiny_model_path, tmp_path, more, **settings)
    tokenizer = trainer.processing_class
    # There is no server, so the trainer samples by itself, and this is what it would hold.
    held = {"mode": "server", "server_base_url": None, "server_host": "h", "server_port": 8001}
    for url, wanted in ((None, "http://h:8001"), ("https://g:9/x", "https://g:9/x")):
        trainer.use_vllm, trainer.vllm_generation = True, SimpleNamespace(**{**held, "server_base_url": url})
        reward.attach(trainer)
        assert Client.made[-1].base_url == wanted
    trainer.use_vllm = False
    client = Client.made[-1]
    client.ids = [[*tokenizer("7").input_ids, tokenizer.eos_token_id], [*tokenizer("8").input_ids, 2]]
    trainer.train()
    logs = train_logs(trainer)
    # One of two rollouts is right from every prefix: only last steps, whose outcome is known, make progress.
    assert all(log["process/reward/mean"] <= 0 for log in logs)
    assert 2 * len(client.asked) == sum(log["process/monte_carlo/num_rollouts"] for log in logs)
    first = client.asked[0]
    assert (first["n"], first["temperature"], first["top_p"], first["top_k"]) == (2, 0.7, 0.9, 3)
    assert first["max_tokens"] == trainer.max_completion_length
    assert tokenizer.decode(first["prompts"][0]) in prompt_dataset()["prompt"]
    assert len({asked["generation_kwargs"]["seed"] for asked in client.asked}) == len(client.asked)
    # A rollout goes on from a prefix, within the length of the whole completion.
    num_asked, step = len(client.asked), tokenizer("1\n").input_ids
    assert reward.score_solutions(["a"], [["1\n", "7"]]) == ([0.5], [[0.5, 1.0]])
    start, later = sorted(client.asked[num_asked:], key=lambda asked: -asked["max_tokens"])
    assert later["prompts"][0] == start["prompts"][0] + step
    assert later["max_tokens"] == start["max_tokens"] - len(step)
    for ids in ([], [[10**6]], [[5] * 99]):
        client.ids = ids or [[]]
        with pytest.raises(ConnectionError, match="no sample of this model"):
            reward.score_solutions(["a"], [["7"]])


def test_rollouts_are_drawn_by_the_policy_itself_without_vllm(tiny_model_path: str, tmp_path: Path) -> None:
    reward = MonteCarloProcessReward(None, even_length, n=2)
    with pytest.raises(ValueError, match="no rollout can be drawn"):
        reward.score_solutions(["a"], [["7"]])
    args = make_grpo_args(GRPOConfig, tmp_path)
    trainer = GRPOTrainer(tiny_model_path, even_length, args=args, train_dataset=prompt_dataset())
    trainer.add_callback(ProcessRewardCallback(trainer, process_reward=reward))
    trainer.train()
    assert reward.generator.model is trainer.model  # type: ignore[union-attr]
    assert all(log["process/monte_carlo/num_rollouts"] > 0 for log in train_logs(trainer))
    assert reward.sampling.max_tokens == trainer.max_completion_length  # type: ignore[union-attr]
    # A generator of one's own is left alone.
    own = scripted(lambda prompt, i: "7")
    generator = own.generator
    own.attach(trainer)
    assert own.generator is generator


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="n=0"):
        scripted(lambda prompt, i: "7", n=0)
    model = torch.nn.Linear(1, 1)
    refuse_shards(model)
    model.weight.ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="shared out"):
        refuse_shards(model)
