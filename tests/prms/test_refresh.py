"""Verifiers that are refreshed while a policy learns: the steps they take, when, what they learn, and resuming."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tiny_models import build_tokenizer, prompt_dataset
from tests.trainer_runs import make_trainer, train_logs
from tests.verifier_models import build_verifier, build_verifier_model
from trl_prl.prms.implicit import ImplicitProcessReward
from trl_prl.prms.load import load_process_reward
from trl_prl.prms.refresh import OnlineVerifier
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.settings import VerifierSettings


PROMPTS = ["Add 1 + 2.\n\n", "Add 3 + 4.\n\n", [{"role": "user", "content": "Add 5."}], "Add 6.\n\n"]
STEPS = [["We add.\n", "It is 3."], ["It is 8."], ["First.\n\n", "Then.\n\n", "So 5."], ["We take 6.\n", "6"]]
OUTCOMES: list[float | None] = [1.0, 0.0, 0.25, None]


def make_verifier(settings: dict[str, Any] | None = None, **options: Any) -> OnlineVerifier:
    tokenizer = build_tokenizer()
    given = VerifierSettings(prompt_format="as_given", **(settings or {}))
    torch.manual_seed(0)
    options = {"refresh_every": 1, "lora_rank": 4, "learning_rate": 1e-2, **options}
    return OnlineVerifier(build_verifier_model(tokenizer), tokenizer, given, **options)


def plain_logits(model: Any, tokenizer: Any, prompt: Any, steps: list[str], ends: bool) -> torch.Tensor:
    """Logits behind the prompt and every step of one solution, from all prefixes one by one."""
    found = []
    for count in range(len(steps) + 1):
        if isinstance(prompt, str):
            ids = tokenizer(prompt).input_ids
        else:
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = ids + tokenizer("".join(steps[:count])).input_ids
        if ends and count == len(steps):
            ids = [*ids, tokenizer.eos_token_id]
        found.append(model(input_ids=torch.tensor([ids])).logits[0, -1, 0])
    return torch.stack(found)


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_a_refresh_equals_that_of_a_plain_reference(lora_rank: int) -> None:
    settings = {"temperature": 2.0, "offset": 0.3, "read_end": True}
    # Batches of one solution each add up to the same gradient.
    verifier = make_verifier(settings, lora_rank=lora_rank, learning_rate=1e-3, refresh_steps=3)
    verifier.max_batch_tokens = 1
    model = copy.deepcopy(verifier.model).eval()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    # The value head has an adapter too.
    assert len(trained) == (2 * 15 if lora_rank else 22)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
    finished = [True, True, False, True]
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        parts, logits = [], []
        for i in range(3):
            ends = finished[i] and isinstance(PROMPTS[i], str)
            logits.append(plain_logits(model, verifier.tokenizer, PROMPTS[i], STEPS[i], ends) / 2.0 + 0.3)
            target = torch.full_like(logits[-1], float(OUTCOMES[i] or 0.0))
            parts.append(-(target * logits[-1].sigmoid().log() + (1 - target) * (-logits[-1]).sigmoid().log()))
        losses.append(torch.cat(parts).mean())
        losses[-1].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = verifier.update(PROMPTS, STEPS, OUTCOMES, finished, answer=["3"] * 4)
    assert found["loss"] == pytest.approx(losses[0].item(), abs=1e-6)
    assert found["num_solutions"] == 3
    assert found["grad_norm"] > 0
    assert 0 <= found["auroc"] <= 1
    after = {name: one for name, one in verifier.model.named_parameters() if one.requires_grad}
    for name, expected in trained.items():
        torch.testing.assert_close(after[name], expected, atol=2e-6, rtol=0)


def test_it_is_refreshed_every_so_many_optimizer_steps() -> None:
    verifier = make_verifier(refresh_every=3, refresh_steps=1, recent_rollouts=5)
    fresh = []
    for optimizer_step in range(9):
        for _ in range(2):  # rollouts of one optimizer step
            state = SimpleNamespace(global_step=optimizer_step)
            found = verifier.update(PROMPTS[:2], STEPS[:2], OUTCOMES[:2], trainer_state=state)
            fresh.append(found.get("num_solutions"))
    # Rollouts since the last refresh, of which no more than the recent ones are left.
    assert fresh == [None] * 4 + [5.0] + [None] * 5 + [5.0] + [None] * 5 + [5.0] + [None]
    # Another training starts at its own first optimizer step; without one, each call is one.
    again = [verifier.update(PROMPTS[:1], STEPS[:1], OUTCOMES[:1], trainer_state=SimpleNamespace(global_step=0))]
    assert again == [{}]
    alone = make_verifier(refresh_every=2, refresh_steps=1)
    assert [bool(alone.update(PROMPTS, STEPS, OUTCOMES)) for _ in range(4)] == [False, True, False, True]


def test_nothing_is_learned_from_nothing() -> None:
    verifier = make_verifier({"max_length": 6})
    before = copy.deepcopy(verifier.state_dict()["parameters"])
    assert verifier.update(["Add."], [["3"]], [None]) == {}
    assert verifier.update(["Add the numbers, then take the rest of the numbers."], [["3"]], [1.0]) == {}
    assert verifier.update([], [], []) == {}
    assert all(torch.equal(value, before[name]) for name, value in verifier.state_dict()["parameters"].items())
    assert verifier.update(["Add."], [["3"]], [1.0])["num_solutions"] == 1


@pytest.mark.slow
def test_it_learns_what_a_step_says_of_the_outcome() -> None:
    """Before the step that decides a value is the share of right rollouts, behind it their outcome."""
    verifier = make_verifier(refresh_steps=20, refresh_batch=16)
    generator = torch.Generator().manual_seed(0)

    def rollouts(count: int) -> tuple[list[list[str]], list[float | None]]:
        outcomes = (torch.rand(count, generator=generator) < 0.75).double().tolist()
        return [["we know the sum.\n", "the answer is 19.\n" if y else "the answer is 12.\n"] for y in outcomes], [
            *outcomes
        ]

    first: dict[str, float] = {}
    for _ in range(8):
        last = verifier.update(["Add."] * 32, *rollouts(32))
        first = first or last
    assert last["loss"] < 0.7 * first["loss"]
    held_out, known = rollouts(40)
    initial, values = verifier.score_solutions(["Add."] * 40, held_out)
    assert initial[0] == pytest.approx(0.75, abs=0.15)
    assert values[0][0] == pytest.approx(0.75, abs=0.15)
    for row, outcome in zip(values, known, strict=True):
        assert row[1] == pytest.approx(outcome, abs=0.1)


def test_best_of_k_is_that_of_the_refreshed_value() -> None:
    """What is learned is the value of the policy; the transform of the settings comes behind it."""
    verifier, plain = make_verifier({"best_of_k": 4}), make_verifier()
    for one in (verifier, plain):
        one.update(PROMPTS, STEPS, OUTCOMES)
    for found, value in zip(verifier(PROMPTS, STEPS)[0], plain(PROMPTS, STEPS)[0], strict=True):
        assert found == pytest.approx(1 - (1 - (value or math.nan)) ** 4, abs=1e-6)


def test_its_state_goes_on_where_it_was() -> None:
    one, other = (make_verifier(refresh_every=2, refresh_batch=2) for _ in range(2))
    for count in (1, 2, 4):
        one.update(PROMPTS[:count], STEPS[:count], OUTCOMES[:count])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert one.update(PROMPTS, STEPS, OUTCOMES) == other.update(PROMPTS, STEPS, OUTCOMES) != {}
    assert one(PROMPTS, STEPS) == other(PROMPTS, STEPS)
    with pytest.raises(ValueError, match=r"shape .* there, .* here"):
        make_verifier(lora_rank=2).load_state_dict(one.state_dict())


def test_a_refreshed_verifier_is_saved_whole(tmp_path: Path) -> None:
    verifier = make_verifier({"prover": "my-org/base"})
    verifier.update(PROMPTS, STEPS, OUTCOMES)
    before = verifier(PROMPTS, STEPS)
    verifier.save_pretrained(tmp_path)
    # It can go on learning, too.
    assert (verifier(PROMPTS, STEPS), hasattr(verifier.model, "peft_config")) == (before, True)
    loaded = ProcessAdvantageVerifier.from_pretrained(tmp_path)
    assert loaded.settings.prover is None
    for row, expected in zip(loaded(PROMPTS, STEPS), before, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_a_verifier_in_half_precision_learns_by_its_adapter() -> None:
    tokenizer = build_tokenizer()
    verifier = OnlineVerifier(build_verifier_model(tokenizer).bfloat16(), tokenizer, refresh_every=1)
    before = verifier(PROMPTS[:2], STEPS[:2])
    verifier.update(PROMPTS[:2], STEPS[:2], OUTCOMES[:2])
    assert all(value.dtype == torch.float32 for value in verifier.state_dict()["parameters"].values())
    assert verifier(PROMPTS[:2], STEPS[:2]) != before
    with pytest.raises(ValueError, match="rounded away"):
        OnlineVerifier(build_verifier_model(tokenizer).bfloat16(), tokenizer, lora_rank=0)


@pytest.mark.parametrize(
    "options", [{"refresh_every": 0}, {"refresh_steps": 0}, {"learning_rate": 0.0}, {"lora_rank": -1}]
)
def test_what_would_teach_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing would be learned"):
        make_verifier(**options)
    with pytest.raises(ValueError, match=r"outcome 2\.0, but cross-entropy needs"):
        make_verifier().update(["Add."], [["3"]], [2.0])


def test_partitioned_weights_are_refused() -> None:
    tokenizer = build_tokenizer()
    model: Any = build_verifier_model(tokenizer)
    model.score.weight.ds_id = 0  # as DeepSpeed ZeRO-3 marks them
    with pytest.raises(ValueError, match="could only score"):
        OnlineVerifier(model, tokenizer)
    with pytest.raises(ValueError, match="could only score"):
        ImplicitProcessReward(model, tokenizer, build_verifier_model(tokenizer), learning_rate=1e-3, lora_rank=0)


def test_one_that_learns_is_loaded_from_a_text(tmp_path: Path) -> None:
    build_verifier(build_tokenizer(), prover="my-org/base", best_of_k=2).save_pretrained(tmp_path)
    reward: Any = load_process_reward(f"{tmp_path},refresh_every=5,learning_rate=1e-3,max_batch_tokens=64")
    assert isinstance(reward, OnlineVerifier)
    assert (reward.refresh_every, reward.max_batch_tokens, reward.settings.best_of_k) == (5, 64, 2)
    frozen = load_process_reward(str(tmp_path))
    assert reward(PROMPTS[:1], STEPS[:1]) == frozen(PROMPTS[:1], STEPS[:1])
    assert not hasattr(frozen, "update")


def even_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


@pytest.mark.slow
def test_resume_is_exact(tiny_model_path: str, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 5e-3}

    def run(output_dir: Path, checkpoint: str | None) -> tuple[Any, OnlineVerifier]:
        verifier = make_verifier({"read_end": True}, refresh_every=2, refresh_batch=3, recent_rollouts=6)
        more = {"process_reward": verifier, "reward_funcs": even_reward, "train_dataset": prompt_dataset()}
        trainer = make_trainer("pav", tiny_model_path, output_dir, more, initial_value=None, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer, verifier

    # The checkpoint lies between two refreshes: rollouts of before it are learned from after it.
    whole, learned = run(tmp_path / "whole", None)
    resumed, other = run(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-3"))
    logs = train_logs(whole)
    assert ["process/update/loss" in log for log in logs] == [False, True] * 3
    assert logs[1]["process/update/num_solutions"] == 6
    for log, expected in zip(train_logs(resumed)[-3:], logs[-3:], strict=True):
        names = expected.keys() - {"step_time", "train_runtime"}
        assert {name: log[name] for name in names} == {name: expected[name] for name in names}
    parameters = learned.state_dict()["parameters"]
    assert all(torch.equal(value, parameters[name]) for name, value in other.state_dict()["parameters"].items())
