"""PAVTrainer through real training runs: the effective reward, and what does not change."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import make_grpo_args
from tests.training.test_prl_trainer import PROMPTS, assert_bit_equal, length_reward, run_and_snapshot, step_logs
from trl_prl.steps.splitters import FixedLengthSplitter
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS * 4, "answer": ["3", "4", "5", "6"] * 4})


def step_values(prompts: list[str], steps: list[list[str]], **columns: Any) -> list[list[float]]:
    return [[(len(text) * 7 % 10) / 10 for text in row] for row in steps]


class RecordingPAVTrainer(PAVTrainer):
    """Keeps what the rollout hook returned and what the scorer was given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.records: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def add_process_advantages(self, inputs: Any, output: dict[str, Any], split: Any) -> None:
        outcome = output["advantages"].clone()
        super().add_process_advantages(inputs, output, split)
        self.records.append(
            {"outcome": outcome, "advantages": output["advantages"].clone(), "step_ids": output["step_ids"]}
            | {"steps": split.steps, "ids": output["completion_ids"].clone(), "inputs": inputs}
        )


def pav_args(tmp_path: Path, **overrides: Any) -> PAVConfig:
    fields: dict[str, Any] = {"step_splitter": "fixed", "step_length": 3, "initial_value": 0.5}
    fields |= {"progress_scale": "none", **overrides}
    return make_grpo_args(PAVConfig, tmp_path, **fields)


def expected_advantages(record: dict[str, Any], values: list[list[float]], initial: float, alpha: float) -> Any:
    rows = []
    for i, ids in enumerate(record["step_ids"].tolist()):
        q = [initial, *values[i]]
        progress = [after - before for before, after in itertools.pairwise(q)]
        rows.append([0.0 if s < 0 else float(record["outcome"][i]) + alpha * progress[s] for s in ids])
    return torch.tensor(rows)


def test_advantages_are_outcome_plus_alpha_times_progress(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path
) -> None:
    args = pav_args(tmp_path, alpha=2.0)
    trainer = RecordingPAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=step_values)
    trainer.train()
    assert len(trainer.records) == 2
    for record in trainer.records:
        assert max(len(row) for row in record["steps"]) > 1
        expected = expected_advantages(record, step_values([], record["steps"]), 0.5, 2.0)
        torch.testing.assert_close(record["advantages"], expected, atol=1e-6, rtol=1e-6)


def test_steps_joined_are_the_sampled_text(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    seen: list[str] = []

    def keep_completions(completions: list[str], **kwargs: Any) -> list[float]:
        seen.extend(completions)
        return length_reward(completions)

    args = pav_args(tmp_path, step_splitter="newline", max_completion_length=40)
    trainer = RecordingPAVTrainer(tiny_model_path, keep_completions, args, dataset, process_reward=step_values)
    trainer.train()
    joined = ["".join(row) for record in trainer.records for row in record["steps"]]
    assert len(joined) == len(seen) == 8
    # A completion may be cut inside a character; the step then ends with a replacement character, as TRL's text does.
    assert joined == seen


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_iterations": 2, "max_steps": 4},
        {"steps_per_generation": 2, "max_steps": 4, "loss_type": "grpo"},
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"beta": 0.1},
    ],
    ids=["on-policy", "two-iterations", "stale", "sequence-level", "beta"],
)
def test_alpha_zero_is_grpo_to_the_last_bit(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    stock_args = make_grpo_args(GRPOConfig, tmp_path / "grpo", **overrides)
    stock = run_and_snapshot(GRPOTrainer(tiny_model_path, length_reward, stock_args, dataset))
    args = pav_args(tmp_path / "pav", alpha=0.0, **overrides)
    trainer = PAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=step_values)
    assert_bit_equal(stock, run_and_snapshot(trainer))
    assert step_logs(trainer)[0]["process/reward/std"] > 0  # scored all the same, so that it can be watched


def test_alpha_changes_training(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    runs = []
    for alpha in (0.0, 5.0):
        args = pav_args(tmp_path / str(alpha), alpha=alpha)
        trainer = PAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=step_values)
        runs.append(run_and_snapshot(trainer))
    assert any(not torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


@pytest.mark.parametrize(("num_prompts", "warns"), [(3, True), (4, False)])
def test_fewer_prompts_than_a_rollout_needs_are_named(
    num_prompts: int, warns: bool, tiny_model_path: str, dataset: Dataset, tmp_path: Path, caplog: Any
) -> None:
    """TRL leaves an incomplete rollout out, and ends such a run at once without an error."""
    args = pav_args(tmp_path, gradient_accumulation_steps=4, max_steps=1)
    prompts = dataset.select(range(num_prompts))
    trainer = PAVTrainer(tiny_model_path, length_reward, args, prompts, process_reward=step_values)
    assert ("so there is no optimizer step" in caplog.text) == warns
    trainer.train()
    assert (trainer.state.global_step == 0) == warns


def test_equal_values_everywhere_give_no_progress(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    """A prover that cannot tell steps apart adds nothing but its difference to the prompt's value, here none."""

    def constant(prompts: Any, steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return [[0.5] * len(row) for row in steps]

    args = pav_args(tmp_path, alpha=3.0)
    trainer = RecordingPAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=constant)
    trainer.train()
    for record in trainer.records:
        mask = record["step_ids"] >= 0
        expected = torch.where(mask, record["outcome"].unsqueeze(1), 0.0)
        assert torch.equal(record["advantages"], expected)


def test_process_reward_gets_columns_and_state(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def process_reward(prompts: list[str], steps: list[list[str]], answer: list[str], **columns: Any) -> Any:
        calls.append({"prompts": prompts, "answer": answer, **columns})
        columns["log_metric"]("process/mine", 2.5)
        return step_values(prompts, steps)

    args = pav_args(tmp_path)
    trainer = PAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=process_reward)
    trainer.train()
    answers = dict(zip(PROMPTS, ["3", "4", "5", "6"], strict=True))
    assert len(calls) == 2
    for call in calls:
        assert call["answer"] == [answers[prompt] for prompt in call["prompts"]]
        assert call["trainer_state"] is trainer.state
    assert step_logs(trainer)[0]["process/mine"] == 2.5


def test_values_with_their_own_initial_values(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    class Values:
        returns = "values"

        def __call__(self, prompts: Any, steps: Any, **columns: Any) -> Any:
            return step_values(prompts, steps)

        def initial_values(self, prompts: list[str], **columns: Any) -> list[float]:
            return [0.25] * len(prompts)

    args = pav_args(tmp_path, alpha=1.0, initial_value=None, max_steps=1)
    trainer = RecordingPAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=Values())
    trainer.train()
    (record,) = trainer.records
    expected = expected_advantages(record, step_values([], record["steps"]), 0.25, 1.0)
    torch.testing.assert_close(record["advantages"], expected, atol=1e-6, rtol=1e-6)


def test_best_of_k_transforms_values_and_the_prompts_value(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path
) -> None:
    args = pav_args(tmp_path, alpha=1.0, best_of_k=4, max_steps=1)
    trainer = RecordingPAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=step_values)
    trainer.train()
    (record,) = trainer.records
    values = [[1 - (1 - q) ** 4 for q in row] for row in step_values([], record["steps"])]
    expected = expected_advantages(record, values, 1 - 0.5**4, 1.0)
    torch.testing.assert_close(record["advantages"], expected, atol=1e-6, rtol=1e-6)


def test_advantages_are_taken_as_they_are(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    args = pav_args(
        tmp_path, alpha=2.0, initial_value=None, process_reward_type="advantages", step_advantage_clip=0.3, max_steps=1
    )
    trainer = RecordingPAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=step_values)
    trainer.train()
    (record,) = trainer.records
    clipped = [[min(value, 0.3) for value in row] for row in step_values([], record["steps"])]
    for i, ids in enumerate(record["step_ids"].tolist()):
        for t, step in enumerate(ids):
            expected = 0.0 if step < 0 else float(record["outcome"][i]) + 2.0 * clipped[i][step]
            assert float(record["advantages"][i, t]) == pytest.approx(expected, abs=1e-6)


def test_unscorable_steps_keep_the_outcome_and_are_counted(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path
) -> None:
    def first_step_unscorable(prompts: Any, steps: list[list[str]], **columns: Any) -> Any:
        return [[None if h == 0 else math.nan if h == 1 else 0.4 for h in range(len(row))] for row in steps]

    args = pav_args(tmp_path, alpha=2.0, process_reward_type="advantages", max_steps=1)
    trainer = RecordingPAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=first_step_unscorable)
    trainer.train()
    (record,) = trainer.records
    num_steps = [len(row) for row in record["steps"]]
    num_unscorable = sum(min(n, 2) for n in num_steps)
    assert step_logs(trainer)[0]["process/unscorable_frac"] == pytest.approx(num_unscorable / sum(num_steps))
    assert torch.isfinite(record["advantages"]).all()
    early = (record["step_ids"] >= 0) & (record["step_ids"] < 2)
    assert torch.equal(record["advantages"][early], record["outcome"].unsqueeze(1).expand_as(early)[early])


def test_async_process_reward_equals_the_plain_one(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    async def later(prompts: Any, steps: Any, **columns: Any) -> Any:
        await asyncio.sleep(0)
        return step_values(prompts, steps)

    runs = []
    for name, process_reward in (("plain", step_values), ("async", later)):
        args = pav_args(tmp_path / name)
        trainer = PAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=process_reward)
        runs.append(run_and_snapshot(trainer))
    assert_bit_equal(*runs)


def test_alpha_follows_its_schedule(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    args = pav_args(tmp_path, alpha=4.0, alpha_schedule="linear", alpha_final=0.0, max_steps=4)
    trainer = RecordingPAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=step_values)
    trainer.train()
    assert [log["process/alpha"] for log in step_logs(trainer)] == [4.0, 3.0, 2.0, 1.0]
    record = trainer.records[2]
    expected = expected_advantages(record, step_values([], record["steps"]), 0.5, 2.0)
    torch.testing.assert_close(record["advantages"], expected, atol=1e-6, rtol=1e-6)


def test_values_without_a_value_of_the_prompt_are_refused(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"'step_values' returns values.*`initial_value`"):
        PAVTrainer(
            tiny_model_path,
            length_reward,
            pav_args(tmp_path, initial_value=None),
            dataset,
            process_reward=step_values,
        )


def test_something_that_cannot_score_is_refused(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="is a int, which cannot score steps"):
        PAVTrainer(tiny_model_path, length_reward, pav_args(tmp_path), dataset, process_reward=3)


def test_wrong_number_of_scores_is_refused(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    def one_too_many(prompts: Any, steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return [[0.5] * (len(row) + 1) for row in steps]

    trainer = PAVTrainer(tiny_model_path, length_reward, pav_args(tmp_path), dataset, process_reward=one_too_many)
    with pytest.raises(ValueError, match="Return exactly one float per step"):
        trainer.train()


@pytest.mark.parametrize(("kind", "asked"), [("values", "score_solutions"), ("advantages", "__call__")])
def test_who_is_called_is_given_what_it_names(
    kind: str, asked: str, tiny_model_path: str, dataset: Dataset, tmp_path: Path
) -> None:
    seen: list[str] = []

    class Both:
        def score_solutions(
            self, prompts: list[Any], steps: list[list[str]], **columns: Any
        ) -> tuple[list[float], list[list[float]]]:
            seen.extend(["score_solutions"] * ("transcript" not in columns))
            return [0.5] * len(prompts), step_values(prompts, steps)

        def __call__(
            self, prompts: list[Any], steps: list[list[str]], transcript: list[Any], **columns: Any
        ) -> list[list[float]]:
            seen.extend(["__call__"] * (len(transcript) == len(steps)))
            return step_values(prompts, steps)

    args = pav_args(tmp_path, max_steps=1, process_reward_type=kind, initial_value=None)
    PAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=Both()).train()
    assert set(seen) == {asked}


def test_batch_as_large_as_the_completions_are_long(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    """With B == T a (B,) tensor broadcast against (B, T) would pass silently along the wrong axis."""
    args = pav_args(tmp_path, alpha=2.0, max_completion_length=4, step_length=2, max_steps=1)
    trainer = RecordingPAVTrainer(tiny_model_path, length_reward, args, dataset, process_reward=step_values)
    trainer.train()
    (record,) = trainer.records
    assert record["step_ids"].shape == (4, 4)
    expected = expected_advantages(record, step_values([], record["steps"]), 0.5, 2.0)
    torch.testing.assert_close(record["advantages"], expected, atol=1e-6, rtol=1e-6)


def test_splitter_object(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    args = pav_args(tmp_path, max_steps=1)
    trainer = RecordingPAVTrainer(
        tiny_model_path,
        length_reward,
        args,
        dataset,
        process_reward=step_values,
        step_splitter=FixedLengthSplitter(1),
    )
    trainer.train()
    step_ids = trainer.records[0]["step_ids"]
    assert step_ids.max() + 1 == (step_ids >= 0).sum(dim=1).max()
