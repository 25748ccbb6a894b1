"""Implicit process rewards that learn: the step they take, what they learn, and a training that is resumed."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.arithmetic.prover import continue_solution
from tests.benchmarks.arithmetic.task import ArithmeticProblem, arithmetic_policy_path
from tests.scripts.distributed_implicit import learn
from tests.tiny_models import build_model, build_tokenizer, prompt_dataset
from tests.trainer_runs import make_trainer, train_logs
from tests.two_processes import launch_two_processes, load_ranks
from trl_prl.prms.implicit import ImplicitProcessReward
from trl_prl.prms.load import load_process_reward


PROMPTS = ["Add 1 + 2.\n\n", "Add 3 + 4.\n\n", [{"role": "user", "content": "Add 5."}], "Add 6.\n\n"]
STEPS = [["We add.\n", "It is 3."], ["It is 8."], ["First.\n\n", "Then.\n\n", "So 5."], ["We take 6.\n", "6"]]
OUTCOMES: list[float | None] = [1.0, 0.0, 0.25, None]


def make_reward(**options: Any) -> ImplicitProcessReward:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    return ImplicitProcessReward(
        build_model(tokenizer), tokenizer, **{"learning_rate": 1e-2, "lora_rank": 4, **options}
    )


def plain_head(tokenizer: Any, prompt: Any) -> list[int]:
    """Ids of a prompt, text or messages."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt).input_ids)
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def plain_ratios(model: Any, reference: Any, tokenizer: Any, prompt: Any, steps: list[str]) -> torch.Tensor:
    """Log-ratio of every token of a solution, from all logits of one text at a time."""
    head = plain_head(tokenizer, prompt)
    ids = torch.tensor([head + tokenizer("".join(steps)).input_ids])
    tables = [torch.log_softmax(one(ids).logits[0], -1) for one in (model, reference)]
    logps = [table[:-1].gather(1, ids[0, 1:, None])[:, 0] for table in tables]
    return (logps[0] - logps[1].detach())[len(head) - 1 :]


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_steps_equal_those_of_a_plain_reference(lora_rank: int) -> None:
    reference = build_model(build_tokenizer(), seed=1) if lora_rank == 0 else None
    # Batches of one solution each add up to the same gradient.
    options = {"learning_rate": 1e-3, "beta": 0.3, "max_batch_tokens": 1}
    reward = make_reward(lora_rank=lora_rank, reference=reference, **options)
    model = copy.deepcopy(reward.model.model).eval()
    base = reference or build_model(build_tokenizer())
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert len(trained) == (28 if lora_rank else 21)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        ratios = [
            plain_ratios(model, base, reward.tokenizer, prompt, steps).sum()
            for prompt, steps in zip(PROMPTS[:3], STEPS[:3], strict=True)
        ]
        logits, targets = 0.3 * torch.stack(ratios), torch.tensor(OUTCOMES[:3])
        loss = -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log()).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found = reward.update(PROMPTS, STEPS, OUTCOMES, answer=["3"] * 4)
        assert found["loss"] == pytest.approx(loss.item(), abs=1e-6)
        assert found["num_solutions"] == 3
        assert found["grad_norm"] > 0
    after = {name: one for name, one in reward.model.model.named_parameters() if one.requires_grad}
    for name, expected in trained.items():
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=0)
    scores = reward(PROMPTS, STEPS)
    with torch.no_grad():
        whole = [plain_ratios(model, base, reward.tokenizer, *row).sum() for row in zip(PROMPTS, STEPS, strict=True)]
    assert [sum(row) for row in scores] == pytest.approx([0.3 * value.item() for value in whole], abs=1e-5)  # type: ignore[arg-type]


def test_steps_are_bit_equal_to_those_of_a_plain_reference() -> None:
    """One solution at a time, and frozen: the same sums in the same order, so the last bit is the same too."""
    tokenizer = build_tokenizer()
    model, reference = build_model(tokenizer, seed=1), build_model(tokenizer)
    reward = ImplicitProcessReward(model, tokenizer, reference=reference, beta=0.25, max_batch_tokens=1)
    for text, steps in zip(["Add 1 + 2.", "Add 3 + 4.", "Add 5.", "Add 6."], STEPS, strict=True):
        prompt = [{"role": "user", "content": text}]
        pieces = [tokenizer("".join(steps[:i])).input_ids for i in range(len(steps) + 1)]
        head = plain_head(tokenizer, prompt)
        ids = torch.tensor([head + pieces[-1]])
        logps = []
        with torch.no_grad():
            for one in (model, reference):
                logits = one.lm_head(one.model(ids).last_hidden_state[:, :-1])
                logps.append(torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[0, :, 0].double())
        sums = torch.cat([torch.zeros(1, dtype=torch.float64), logps[0] - logps[1]]).cumsum(0)
        ends = 0.25 * sums[[len(head) + len(piece) - 1 for piece in pieces]]
        assert reward([prompt], [steps]) == [(ends[1:] - ends[:-1]).tolist()]


def test_a_new_adapter_says_nothing_yet_and_nothing_is_learned_from_nothing() -> None:
    reward = make_reward(max_length=20)
    assert reward(["Add."], [["We add.\n", "3"]]) == [[0.0, 0.0]]
    before = copy.deepcopy(reward.state_dict()["parameters"])
    too_long = ["So the answer is 15.\n" * 8]
    assert reward.update(["Add."] * 3, [["3"], [], too_long], [None, 1.0, 0.0]) == {}
    assert reward.update([], [], []) == {}
    assert all(torch.equal(value, before[name]) for name, value in reward.state_dict()["parameters"].items())


def test_it_learns_outcomes_and_which_step_decides_them() -> None:
    """Right solutions have one step that wrong ones do not, among others: only outcomes are told."""
    reward = make_reward(beta=0.2)
    generator = torch.Generator().manual_seed(0)
    filler = ["we know the sum.\n", "add the first.\n", "take the rest.\n"]

    def solutions(count: int) -> tuple[list[list[str]], list[float]]:
        rows, outcomes = [], []
        for _ in range(count):
            draws = torch.randint(0, 3, (4,), generator=generator).tolist()
            row = [filler[draw] for draw in draws[:3]]
            outcome = float(torch.rand((), generator=generator) < 0.5)
            row[draws[3]] = "the answer is 19.\n" if outcome else "the answer is 12.\n"
            rows.append(row)
            outcomes.append(outcome)
        return rows, outcomes

    held_out, known = solutions(60)

    def auroc() -> float:
        return float(roc_auc_score(known, [sum(row) for row in reward(["Add."] * 60, held_out)]))  # type: ignore[arg-type]

    assert auroc() == 0.5
    first: dict[str, float] = {}
    for _ in range(25):
        rows, outcomes = solutions(16)
        last = reward.update(["Add."] * 16, rows, outcomes)
        first = first or last
    assert auroc() > 0.95
    assert last["loss"] < 0.7 * first["loss"]
    scores = reward(["Add."] * 60, held_out)
    deciding = [
        max(range(3), key=lambda h: abs(row[h])) == next(h for h in range(3) if "answer" in texts[h])
        for row, texts in zip(scores, held_out, strict=True)
    ]
    assert sum(deciding) > 40  # 20 by chance


@pytest.mark.slow
def test_it_learns_arithmetic_from_outcomes() -> None:
    """Sums of two numbers, by a prover that errs in a line of five: only the answer says which solutions are right."""
    path = arithmetic_policy_path()
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    torch.manual_seed(0)
    reward = ImplicitProcessReward(model, tokenizer, learning_rate=5e-3, lora_rank=8, beta=0.2)
    numbers, generator = random.Random(0), np.random.default_rng(0)

    def solutions(count: int) -> tuple[list[str], list[list[str]], list[float | None]]:
        problems = [
            ArithmeticProblem((numbers.randint(1, 9), numbers.choice((-1, 1)) * numbers.randint(1, 9)))
            for _ in range(count)
        ]
        texts = [continue_solution(problem, "", 0.2, generator) or "" for problem in problems]
        right = [float(text.endswith(f"#{one.answer}")) for text, one in zip(texts, problems, strict=True)]
        return [one.prompt for one in problems], [text.splitlines(keepends=True) for text in texts], [*right]

    prompts, steps, known = solutions(100)
    for _ in range(10):
        reward.update(*solutions(64))
    sums = [sum(row) for row in reward(prompts, steps)]  # type: ignore[arg-type]
    assert roc_auc_score(known, sums) > 0.65


def test_its_state_goes_on_where_it_was() -> None:
    reward, other = make_reward(), make_reward()
    reward.update(PROMPTS, STEPS, OUTCOMES)
    other.load_state_dict(copy.deepcopy(reward.state_dict()))
    for one in (reward, other):
        one.update(PROMPTS, STEPS, OUTCOMES)
    assert reward(PROMPTS, STEPS) == other(PROMPTS, STEPS)
    with pytest.raises(ValueError, match=r"shape .* there, .* here"):
        make_reward(lora_rank=2).load_state_dict(reward.state_dict())


def test_a_model_in_half_precision_learns_by_its_adapter_only() -> None:
    tokenizer = build_tokenizer()
    reward = ImplicitProcessReward(build_model(tokenizer).bfloat16(), tokenizer, learning_rate=1e-2)
    reward.update(PROMPTS, STEPS, OUTCOMES)
    assert all(value.dtype == torch.float32 for value in reward.state_dict()["parameters"].values())
    assert any(value != 0 for row in reward(PROMPTS, STEPS) for value in row)
    model, reference = build_model(tokenizer).bfloat16(), build_model(tokenizer)
    with pytest.raises(ValueError, match="rounded away"):
        ImplicitProcessReward(model, tokenizer, reference, learning_rate=1e-2, lora_rank=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": None}, "every log-ratio would be 0"),
        ({"lora_rank": 0}, "every log-ratio would be 0"),
        ({"learning_rate": 0.0}, "nothing is learned"),
        ({"lora_rank": -1}, "nothing is learned"),
        ({"beta": 0.0}, "leaves nothing of the log-ratio"),
        ({"beta": float("nan")}, "leaves nothing of the log-ratio"),
        ({"returns": "progress"}, "nothing to return"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_reward(**options)


def test_outcomes_are_probabilities() -> None:
    with pytest.raises(ValueError, match=r"outcome 2\.0, but cross-entropy needs"):
        make_reward().update(["Add."], [["3"]], [2.0])


def test_one_that_learns_is_loaded_from_a_text(prm_paths: dict[str, str]) -> None:
    folder = prm_paths["implicit"].split(",")[0]
    reward: Any = load_process_reward(f"{folder},family=implicit,learning_rate=1e-3,lora_rank=2,beta=0.1")
    assert (reward.is_trainable, reward.beta, reward.settings.prompt_format) == (True, 0.1, "as_given")
    assert reward(["Add."], [["3"]]) == [[0.0]]
    assert reward.update(["Add."], [["3"]], [1.0])["num_solutions"] == 1
    assert reward(["Add."], [["3"]])[0][0] > 0
    frozen: Any = load_process_reward(prm_paths["implicit"])
    assert not frozen.is_trainable
    assert (frozen.update(["Add."], [["3"]], [1.0]), frozen.state_dict()) == ({}, {})


def even_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


def test_resume_is_exact(tiny_model_path: str, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 5e-3}

    def run(output_dir: Path, checkpoint: str | None) -> tuple[Any, ImplicitProcessReward]:
        reward = make_reward()
        more = {"process_reward": reward, "reward_funcs": even_reward, "train_dataset": prompt_dataset()}
        trainer = make_trainer("pav", tiny_model_path, output_dir, more, initial_value=None, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer, reward

    whole, learned = run(tmp_path / "whole", None)
    resumed, other = run(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-2"))
    logs = train_logs(whole)
    assert logs[0]["process/update/num_solutions"] == 4
    assert logs[0]["process/reward/std"] == 0 < logs[1]["process/reward/std"]
    for log, expected in zip(train_logs(resumed)[-2:], logs[-2:], strict=True):
        names = expected.keys() - {"step_time", "train_runtime"}
        assert {name: log[name] for name in names} == {name: expected[name] for name in names}
    parameters = learned.state_dict()["parameters"]
    assert all(torch.equal(value, parameters[name]) for name, value in other.state_dict()["parameters"].items())


def run_on_two_processes(output_dir: Path, *options: str) -> list[dict[str, Any]]:
    launch_two_processes("distributed_implicit.py", output_dir, *options)
    ranks = load_ranks(output_dir)
    for name, value in ranks[0]["parameters"].items():
        assert torch.equal(value, ranks[1]["parameters"][name])
    return ranks


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    ranks, one = run_on_two_processes(tmp_path), learn()
    for name, expected in one["parameters"].items():
        torch.testing.assert_close(ranks[0]["parameters"][name], expected, atol=1e-6, rtol=0)
    for found in ranks:
        assert [log["loss"] for log in found["logs"]] == pytest.approx([log["loss"] for log in one["logs"]], abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_with_it(tiny_model_path: str, tmp_path: Path) -> None:
    """Also where one of them has nothing to learn from, which still takes part."""
    ranks = run_on_two_processes(tmp_path, "--model", tiny_model_path)
    for found in ranks:
        assert [log["process/update/num_solutions"] for log in found["logs"]] == [4, 4]
    saved = torch.load(tmp_path / "checkpoint-2" / "process_reward.pt", weights_only=True)["state"]
    assert all(torch.equal(value, ranks[0]["parameters"][name]) for name, value in saved["parameters"].items())
    assert any(value.any() for name, value in saved["parameters"].items() if "lora_B" in name)


def test_weights_are_gathered_once_however_many_chunks_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ZeRO-3, processes gather together, and texts of one are longer than those of another."""
    gathered: list[Any] = []

    @contextmanager
    def gather(module: Any) -> Iterator[None]:
        gathered.append(module)
        yield

    model, reference = build_model(build_tokenizer(), seed=1), build_model(build_tokenizer())
    reward = ImplicitProcessReward(model, build_tokenizer(), reference=reference)
    heads = [reference.get_output_embeddings(), model.get_output_embeddings()]
    expected = reward(PROMPTS, STEPS)
    monkeypatch.setattr("trl_prl.prms.heads._whole", gather)
    monkeypatch.setattr("trl_prl.prms.heads._TOKENS_PER_CHUNK", 4)
    for head in heads:  # DeepSpeed's hooks gather and release too
        head.register_forward_pre_hook(lambda module, _: gathered.append(module))
    for num_tokens in (1, 3, 40):
        gathered.clear()
        ids = torch.ones(2, num_tokens, dtype=torch.long)
        reward.model(ids, torch.ones_like(ids))
        assert gathered == heads
    for row, found in zip(expected, reward(PROMPTS, STEPS), strict=True):
        assert found == pytest.approx(row, abs=1e-6)
