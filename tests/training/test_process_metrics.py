"""The `process/` metrics: worked out by hand, and adding up over processes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.credit.step_tensors import step_end_mask
from trl_prl.training.metrics import (
    LoggedRewards,
    LoggedSteps,
    divide,
    process_metric_sums,
    process_metrics,
)


NAN = math.nan

# Three completions; the second has a hole after which its last step goes on, the third has no tokens.
STEP_IDS = torch.tensor([[0, 0, 1, 2, -1], [0, 1, -1, 1, -1], [-1, -1, -1, -1, -1]])
STEP_REWARDS = torch.tensor([[1.0, 1.0, NAN, 0.0, 9.0], [-0.5, 0.25, 9.0, 0.25, 9.0], [9.0] * 5])
PROCESS_ADVANTAGES = torch.tensor([[2.0, 2.0, 0.0, 0.0, 7.0], [-1.0, 0.5, 7.0, 0.5, 7.0], [7.0] * 5])
OUTCOME_ADVANTAGES = torch.tensor([1.0, -1.0, 5.0])
BATCH = (STEP_REWARDS, PROCESS_ADVANTAGES, OUTCOME_ADVANTAGES)


def numbers(*tensors: torch.Tensor) -> dict[str, float]:
    return {name: total.item() for name, total in process_metric_sums(*tensors).items()}


def test_hand_worked_metrics() -> None:
    assert {total.dtype for total in process_metric_sums(*BATCH, STEP_IDS).values()} == {torch.float64}
    sums = numbers(*BATCH, STEP_IDS)
    assert sums == pytest.approx(
        {
            "num_completions": 2,
            "num_steps": 5,
            "num_tokens": 7,
            "num_scored": 4,
            "num_zero": 1,
            "reward": 1 + 0 - 0.5 + 0.25,
            "reward_square": 1 + 0 + 0.25 + 0.0625,
            "process": 2 + 2 - 1 + 0.5 + 0.5,
            "process_square": 4 + 4 + 1 + 0.25 + 0.25,
            "outcome": 4 * 1 - 3 * 1,
            "outcome_square": 7,
            "num_rewarded": 2,
            "mean_reward": 0.5 - 0.125,
            "mean_reward_square": 0.25 + 0.015625,
            "advantage": 0,
            "advantage_square": 2,
            "mean_reward_advantage": 0.5 + 0.125,
        }
    )
    process_variance = 9.5 / 7 - (4 / 7) ** 2
    outcome_variance = 1 - (1 / 7) ** 2
    assert process_metrics(sums) == pytest.approx(
        {
            "process/steps_per_completion": 2.5,
            "process/tokens_per_step": 1.4,
            "process/reward/mean": 0.1875,
            "process/reward/std": math.sqrt(1.3125 / 4 - 0.1875**2),
            "process/reward/frac_zero": 0.25,
            "process/unscorable_frac": 0.2,
            "process/advantage_share": process_variance / (process_variance + outcome_variance),
            "process/outcome_correlation": 1.0,  # two points that rise together
        }
    )


def test_nothing_to_measure_is_left_out() -> None:
    empty = numbers(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), torch.full((2, 3), -1))
    assert process_metrics(empty) == {}


def test_nothing_scored() -> None:
    step_ids = torch.tensor([[0, 1], [0, 0]])
    sums = numbers(torch.full((2, 2), NAN), torch.zeros(2, 2), torch.tensor([1.0, -1.0]), step_ids)
    metrics = process_metrics(sums)
    assert metrics["process/unscorable_frac"] == 1.0
    assert metrics["process/advantage_share"] == 0.0
    for name in ("reward/mean", "reward/std", "reward/frac_zero", "outcome_correlation"):
        assert f"process/{name}" not in metrics


def test_a_correlation_of_rounding_errors_is_none() -> None:
    step_ids = torch.zeros(3, 2, dtype=torch.long)
    rewards = torch.full((3, 2), 0.1)
    sums = numbers(rewards, rewards, torch.tensor([1.0, 0.0, -1.0]), step_ids)
    assert "process/outcome_correlation" not in process_metrics(sums)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9), st.integers(0, 6))
def test_sums_of_parts_are_the_sums_of_the_whole(seed: int, num_rows: int, num_tokens: int, cut: int) -> None:
    """Processes add their sums up, so any cut of the batch must give the same."""
    generator = torch.Generator().manual_seed(seed)
    steps = (torch.rand(num_rows, num_tokens, generator=generator) < 0.3).cumsum(1)
    step_ids = steps.masked_fill(torch.rand(steps.shape, generator=generator) < 0.3, -1)
    rewards = torch.randn(steps.shape, generator=generator)
    rewards[rewards > 1] = NAN
    process = torch.randn(steps.shape, generator=generator)
    outcome = torch.randn(num_rows, generator=generator)
    whole = process_metric_sums(rewards, process, outcome, step_ids)
    parts = [
        process_metric_sums(rewards[part], process[part], outcome[part], step_ids[part])
        for part in (slice(None, cut), slice(cut, None))
    ]
    torch.testing.assert_close({name: parts[0][name] + parts[1][name] for name in whole}, whole)


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(1, 3))
def test_every_step_ends_once_at_its_last_token(rows: list[list[bool]], length: int) -> None:
    step_ids = torch.full((len(rows), 7), -1)
    for row, mask in zip(step_ids, rows, strict=True):
        for number, position in enumerate(position for position, action in enumerate(mask) if action):
            row[position] = number // length
    ends = step_end_mask(step_ids)
    for ids, marks in zip(step_ids.tolist(), ends.tolist(), strict=True):
        last = {step: position for position, step in enumerate(ids) if step >= 0}
        assert [position for position, mark in enumerate(marks) if mark] == sorted(last.values())


def test_printed_steps_and_rewards() -> None:
    rewards = LoggedRewards([])
    steps = LoggedSteps(["First 1.\n", "\n\nThen 2."], rewards)
    assert steps == ["First 1.\n", "\n\nThen 2."]
    assert str(steps) == "[?] First 1.\n[?] Then 2."
    rewards[:] = [0.25, -1.0]
    assert str(steps) == "[+0.250] First 1.\n[-1.000] Then 2."
    assert str(rewards) == "+0.250 -1.000"
    assert str(LoggedSteps([], LoggedRewards([]))) == ""


def test_divide() -> None:
    assert divide(1.0, 4.0) == 0.25
    assert math.isnan(divide(0.0, 0.0))
