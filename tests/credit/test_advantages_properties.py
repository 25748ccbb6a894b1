"""Invariants of credit assignment on random ragged batches: holes, padding, empty rows, rows of one token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from trl_prl.credit.advantages import best_of_k_values, pav_advantages, prl_advantages, step_advantages
from trl_prl.credit.baselines import (
    biased_kl_in_reward_advantages,
    biased_prover_value_bonus_advantages,
    biased_step_index_normalisation,
    clip_and_delta_step_rewards,
    min_form_step_rewards,
    process_supervision_advantages,
)
from trl_prl.credit.groups import from_positions, group_normalise, leave_one_out, to_positions
from trl_prl.credit.kl import kl_to_go
from trl_prl.credit.step_tensors import pad_step_rewards, spread_to_tokens, suffix_sums


@dataclass
class Batch:
    """A ragged batch. Entries off-mask are garbage, padding steps are NaN."""

    step_ids: Tensor  # (B, T)
    logps: Tensor  # (B, T)
    ref_logps: Tensor  # (B, T)
    outcome: Tensor  # (B,)
    initial_values: Tensor  # (B,)
    step_values: Tensor  # (B, S)
    num_steps: list[int]

    def prl(self, beta: float = 0.25, **options: object) -> Tensor:
        return prl_advantages(self.outcome, self.logps, self.ref_logps, self.step_ids, beta, **options)

    def pav(self, alpha: float = 3.0) -> Tensor:
        progress = step_advantages(self.step_values, self.initial_values)
        return pav_advantages(self.outcome, progress, self.step_ids, alpha)


@st.composite
def batches(draw: st.DrawFn, unscorable: bool = False, square: bool = False) -> Batch:
    batch_size = draw(st.integers(1, 5))
    length = batch_size if square else draw(st.integers(1, 12))
    rows, num_steps = [], []
    for _ in range(batch_size):
        # Each token: in the same step as the one before, the first of a new step, or off-mask (hole, padding, both
        # sides).
        kinds = draw(st.lists(st.sampled_from(["same", "same", "new", "off"]), min_size=length, max_size=length))
        if draw(st.integers(0, 5)) == 0:
            kinds = ["off"] * length  # a masked row
        ids, current = [], -1
        for kind in kinds:
            if kind == "new" or (kind == "same" and current < 0):
                current += 1
            ids.append(-1 if kind == "off" else current)
        rows.append(ids)
        num_steps.append(current + 1)
    step_ids = torch.tensor(rows)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    garbage = draw(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e30]))

    def log_probabilities() -> Tensor:
        values = -3 * torch.rand(step_ids.shape, generator=generator)
        return torch.where(step_ids >= 0, values, garbage)

    step_values = torch.rand(batch_size, max(1, *num_steps, 0), generator=generator)
    # Exactly 0 and 1 are common values of Monte Carlo estimates.
    step_values = torch.where(step_values < 0.3, 0.0, step_values.clamp(max=0.8) / 0.8)
    if unscorable:
        step_values[torch.rand(step_values.shape, generator=generator) < 0.2] = math.nan
    for row, count in enumerate(num_steps):
        step_values[row, count:] = math.nan
    return Batch(
        step_ids=step_ids,
        logps=log_probabilities(),
        ref_logps=log_probabilities(),
        outcome=torch.randn(batch_size, generator=generator),
        initial_values=torch.rand(batch_size, generator=generator),
        step_values=step_values,
        num_steps=num_steps,
    )


OPTIONS = [
    {"level": level, "estimator": estimator, "direction": direction, "inclusive": inclusive}
    for level in ("token", "step", "step_end")
    for estimator, direction in (("k1", "reverse"), ("k3", "reverse"), ("k1", "forward"))
    for inclusive in (True, False)
]
all_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))


def loop_kl_to_go(batch: Batch, options: dict) -> Tensor:
    """The formula of `kl_to_go` in plain Python floats, one token at a time."""
    rows = []
    for row in range(len(batch.step_ids)):
        ids = batch.step_ids[row].tolist()
        delta = (batch.logps[row].double() - batch.ref_logps[row].double()).tolist()
        row_out = []
        for position, step in enumerate(ids):
            if step < 0:
                row_out.append(0.0)
                continue
            of_step = [index for index, other in enumerate(ids) if other == step]
            own_tokens = {"token": [position], "step": of_step, "step_end": of_step[-1:]}[options["level"]]
            terms = []
            for index in range(own_tokens[0], len(ids)):
                if ids[index] < 0 or (index in own_tokens and not options["inclusive"]):
                    continue
                u = math.exp(-delta[index])
                if options["direction"] == "forward":
                    own, future = 1 - u, u * math.log(u) - u + 1
                elif options["estimator"] == "k3":
                    own, future = delta[index], u + delta[index] - 1
                else:
                    own = future = delta[index]
                terms.append(own if index in own_tokens else future)
            row_out.append(math.fsum(terms))
        rows.append(row_out)
    return torch.tensor(rows)


def concatenate(*tensors: Tensor) -> Tensor:
    return torch.cat([tensor.expand(tensors[1].shape[0], -1) for tensor in tensors], dim=1)


class TestReference:
    @all_options
    @given(batch=batches())
    def test_prl_equals_plain_loops(self, batch: Batch, options: dict) -> None:
        expected = loop_kl_to_go(batch, options)
        actual = kl_to_go(batch.logps, batch.ref_logps, batch.step_ids, **options)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        advantages = torch.where(batch.step_ids >= 0, batch.outcome.unsqueeze(1) - 0.25 * expected, 0.0)
        torch.testing.assert_close(batch.prl(**options), advantages, atol=1e-5, rtol=1e-5)

    @given(batch=batches(unscorable=True))
    def test_pav_equals_plain_loops(self, batch: Batch) -> None:
        expected = torch.zeros(batch.step_ids.shape)
        for row, ids in enumerate(batch.step_ids.tolist()):
            for position, step in enumerate(ids):
                if step < 0:
                    continue
                value = batch.step_values[row, step].item()
                before = (batch.step_values[row, step - 1] if step else batch.initial_values[row]).item()
                progress = value - before
                expected[row, position] = batch.outcome[row].item() + (0 if math.isnan(progress) else 3.0 * progress)
        torch.testing.assert_close(batch.pav(3.0), expected, atol=1e-5, rtol=1e-5)

    @given(batch=batches(unscorable=True), num_generations=st.integers(1, 5))
    def test_process_supervision_equals_plain_loops(self, batch: Batch, num_generations: int) -> None:
        rewards = batch.step_values.repeat_interleave(num_generations, 0)
        rewards = rewards * torch.linspace(0.5, 1.5, len(rewards)).unsqueeze(1)
        step_ids = batch.step_ids.repeat_interleave(num_generations, 0)
        expected = torch.zeros(step_ids.shape)
        for row, ids in enumerate(step_ids.tolist()):
            first = row - row % num_generations
            group = [r for r in rewards[first : first + num_generations].flatten().tolist() if not math.isnan(r)]
            if not group:
                continue
            mean = math.fsum(group) / len(group)
            variance = math.fsum((r - mean) ** 2 for r in group) / max(1, len(group) - 1)
            normalised = [(r - mean) / (math.sqrt(variance) + 1e-4) for r in rewards[row].tolist()]
            for position, step in enumerate(ids):
                if step >= 0:
                    expected[row, position] = math.fsum(r for r in normalised[step:] if not math.isnan(r))
        actual = process_supervision_advantages(rewards, step_ids, num_generations)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)

    @given(batch=batches(unscorable=True))
    def test_min_form_equals_plain_loops(self, batch: Batch) -> None:
        expected = torch.full(batch.step_values.shape, math.nan)
        for row, rewards in enumerate(batch.step_values.tolist()):
            total = math.fsum(math.exp(-r / 0.1) for r in rewards if not math.isnan(r))
            for step, r in enumerate(rewards):
                if not math.isnan(r):
                    expected[row, step] = r * math.exp(-r / 0.1) / total
        actual = min_form_step_rewards(batch.step_values, 0.1)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5, equal_nan=True)

    @given(batch=batches(), num_generations=st.integers(1, 4))
    def test_known_bad_baselines_equal_plain_loops(self, batch: Batch, num_generations: int) -> None:
        values = batch.step_values.repeat_interleave(num_generations, 0)
        values = values * torch.linspace(0.5, 1.5, len(values)).unsqueeze(1)
        expected = torch.full(values.shape, math.nan)
        for row in range(len(values)):
            first = row - row % num_generations
            for step in range(values.shape[1]):
                column = [r for r in values[first : first + num_generations, step].tolist() if not math.isnan(r)]
                if not math.isnan(values[row, step].item()):
                    mean = math.fsum(column) / len(column)
                    variance = math.fsum((r - mean) ** 2 for r in column) / max(1, len(column) - 1)
                    expected[row, step] = (values[row, step].item() - mean) / (math.sqrt(variance) + 1e-4)
        actual = biased_step_index_normalisation(values, num_generations)
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3, equal_nan=True)

        bonus = biased_prover_value_bonus_advantages(batch.outcome, batch.step_values, batch.step_ids, 2.0)
        kl_in_reward = biased_kl_in_reward_advantages(
            batch.outcome, batch.logps, batch.ref_logps, batch.step_ids, 0.5, len(batch.outcome), scale="none"
        )
        options = {"level": "token", "estimator": "k1", "direction": "reverse", "inclusive": True}
        total_kl = loop_kl_to_go(batch, options)
        shaped = []
        for row, ids in enumerate(batch.step_ids.tolist()):
            on_mask = [position for position, step in enumerate(ids) if step >= 0]
            shaped.append(batch.outcome[row].item() - (0.5 * total_kl[row, on_mask[0]].item() if on_mask else 0.0))
        mean = math.fsum(shaped) / len(shaped)
        for row, ids in enumerate(batch.step_ids.tolist()):
            for position, step in enumerate(ids):
                if step < 0:
                    assert bonus[row, position] == kl_in_reward[row, position] == 0
                else:
                    value = batch.outcome[row].item() + 2 * batch.step_values[row, step].item()
                    assert bonus[row, position].item() == pytest.approx(value, abs=1e-5)
                    assert kl_in_reward[row, position].item() == pytest.approx(shaped[row] - mean, abs=1e-5)


class TestNothingToCorrect:
    @all_options
    @given(batch=batches())
    def test_policy_equal_to_reference_gives_no_correction(self, batch: Batch, options: dict) -> None:
        batch.ref_logps = batch.logps.clone()
        expected = torch.where(batch.step_ids >= 0, batch.outcome.unsqueeze(1), 0.0)
        assert torch.equal(batch.prl(**options), expected)
        assert not kl_to_go(batch.logps, batch.ref_logps, batch.step_ids, **options).any()

    @all_options
    @given(batch=batches())
    def test_beta_zero_is_the_outcome_bit_by_bit(self, batch: Batch, options: dict) -> None:
        expected = torch.where(batch.step_ids >= 0, batch.outcome.unsqueeze(1), 0.0)
        assert torch.equal(batch.prl(beta=0.0, **options), expected)

    @given(batch=batches(unscorable=True))
    def test_alpha_zero_is_the_outcome_bit_by_bit(self, batch: Batch) -> None:
        assert torch.equal(batch.pav(0.0), torch.where(batch.step_ids >= 0, batch.outcome.unsqueeze(1), 0.0))

    @given(batch=batches())
    def test_a_prover_that_sees_no_progress_changes_nothing(self, batch: Batch) -> None:
        batch.step_values = torch.where(batch.step_values.isnan(), math.nan, batch.initial_values.unsqueeze(1))
        assert torch.equal(batch.pav(3.0), batch.pav(0.0))


class TestBatch:
    @all_options
    @given(batch=batches(), left=st.integers(0, 4), right=st.integers(0, 4))
    def test_padding_amount_and_side_change_nothing(self, batch: Batch, left: int, right: int, options: dict) -> None:
        length = batch.step_ids.shape[1]
        padded = Batch(**vars(batch))
        padded.step_ids = concatenate(torch.full((1, left), -1), batch.step_ids, torch.full((1, right), -1))
        padded.logps = concatenate(torch.full((1, left), math.nan), batch.logps, torch.full((1, right), 5.0))
        padded.ref_logps = concatenate(torch.full((1, left), 7.0), batch.ref_logps, torch.full((1, right), math.inf))
        extra_steps = torch.full((1, right), math.nan)
        padded.step_values = torch.cat([batch.step_values, extra_steps.expand(len(batch.step_values), -1)], dim=1)
        for with_padding, without in ((padded.prl(**options), batch.prl(**options)), (padded.pav(), batch.pav())):
            assert torch.equal(with_padding[:, left : left + length], without)
            assert not with_padding[:, :left].any()
            assert not with_padding[:, left + length :].any()

    @given(batch=batches(unscorable=True), seed=st.integers(0, 1000))
    def test_permuting_rows_permutes_results(self, batch: Batch, seed: int) -> None:
        order = torch.randperm(len(batch.outcome), generator=torch.Generator().manual_seed(seed))
        permuted = Batch(
            **{name: value[order] if isinstance(value, Tensor) else value for name, value in vars(batch).items()}
        )
        for options in OPTIONS:
            assert torch.equal(permuted.prl(**options), batch.prl(**options)[order])
        assert torch.equal(permuted.pav(), batch.pav()[order])

    @given(batch=batches(square=True))
    def test_square_batch_is_nothing_special(self, batch: Batch) -> None:
        # Row by row, no batch is square (but one of one row).
        for row in range(len(batch.outcome)):
            one = Batch(
                **{
                    name: value[row : row + 1] if isinstance(value, Tensor) else value
                    for name, value in vars(batch).items()
                }
            )
            assert torch.equal(one.prl(level="token"), batch.prl(level="token")[row : row + 1])
            for level in ("step", "step_end"):
                assert torch.equal(one.prl(level=level), batch.prl(level=level)[row : row + 1])
            assert torch.equal(one.pav(), batch.pav()[row : row + 1])

    @all_options
    @given(batch=batches(unscorable=True))
    def test_finite_everywhere_and_zero_off_mask(self, batch: Batch, options: dict) -> None:
        for advantages in (batch.prl(**options), batch.pav()):
            assert advantages.isfinite().all()
            assert not advantages[batch.step_ids < 0].any()

    @given(batch=batches())
    def test_tokens_of_a_step_share_their_advantage(self, batch: Batch) -> None:
        for advantages in (batch.prl(level="step"), batch.prl(level="step_end"), batch.pav()):
            for row, ids in enumerate(batch.step_ids):
                for step in range(batch.num_steps[row]):
                    assert len(advantages[row, ids == step].unique()) == 1

    @given(batch=batches(), dtype=st.sampled_from([torch.int8, torch.int16, torch.int32]))
    def test_any_integer_step_ids(self, batch: Batch, dtype: torch.dtype) -> None:
        narrow = Batch(**vars(batch))
        narrow.step_ids = batch.step_ids.to(dtype)
        assert torch.equal(narrow.prl(level="step"), batch.prl(level="step"))
        assert torch.equal(narrow.pav(), batch.pav())

    @given(length=st.integers(1, 9), outcome=st.floats(-2, 2, width=32), delta=st.floats(-2, 2, width=32))
    def test_one_token(self, length: int, outcome: float, delta: float) -> None:
        step_ids = torch.full((1, length), -1)
        step_ids[0, length // 2] = 0
        logps, zeros = torch.full((1, length), delta), torch.zeros(1, length)
        for level in ("token", "step", "step_end"):
            advantages = prl_advantages(torch.tensor([outcome]), logps, zeros, step_ids, 0.5, level)
            assert advantages[0, length // 2].item() == pytest.approx(outcome - 0.5 * delta, abs=1e-6)
            assert advantages.count_nonzero() <= 1


class TestSums:
    @given(
        values=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30),
        earlier=st.lists(st.floats(-1000, 1000, width=32), max_size=30),
    )
    def test_suffix_sums_depend_on_distance_only(self, values: list[float], earlier: list[float]) -> None:
        alone = suffix_sums(torch.tensor([values]))
        behind = suffix_sums(torch.tensor([earlier + values]))
        assert torch.equal(behind[:, len(earlier) :], alone)

    @given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200))
    def test_suffix_sums_match_exact_sums(self, values: list[float]) -> None:
        sums = suffix_sums(torch.tensor([values]))[0].tolist()
        for start, actual in enumerate(sums):
            assert actual == pytest.approx(math.fsum(values[start:]), rel=1e-6, abs=1e-6)

    @given(batch=batches())
    def test_progress_telescopes(self, batch: Batch) -> None:
        progress = step_advantages(batch.step_values, batch.initial_values)
        for row, count in enumerate(batch.num_steps):
            assert progress[row, count:].isnan().all()
            if count:
                expected = batch.step_values[row, count - 1] - batch.initial_values[row]
                assert progress[row, :count].sum().item() == pytest.approx(expected.item(), abs=1e-5)

    @given(batch=batches())
    def test_spreading_then_summing_gives_value_times_length(self, batch: Batch) -> None:
        tokens = spread_to_tokens(batch.step_values, batch.step_ids)
        for row, ids in enumerate(batch.step_ids):
            for step in range(batch.num_steps[row]):
                members = ids == step
                expected = batch.step_values[row, step].item() * int(members.sum())
                assert tokens[row, members].sum().item() == pytest.approx(expected, abs=1e-5)

    @given(batch=batches(), fill=st.sampled_from([0.0, -1.0, math.nan]))
    def test_spread_fills_off_mask(self, batch: Batch, fill: float) -> None:
        off_mask = spread_to_tokens(batch.step_values, batch.step_ids, fill)[batch.step_ids < 0]
        assert torch.equal(off_mask.isnan(), torch.full(off_mask.shape, math.isnan(fill)))
        assert math.isnan(fill) or bool((off_mask == fill).all())

    @given(rewards=st.lists(st.lists(st.none() | st.floats(-1, 1, width=32), max_size=6), max_size=5))
    def test_pad_step_rewards_keeps_every_number(self, rewards: list[list[float | None]]) -> None:
        padded = pad_step_rewards(rewards)
        assert padded.shape == (len(rewards), max((len(row) for row in rewards), default=0))
        for row, given_row in enumerate(rewards):
            assert padded[row, len(given_row) :].isnan().all()
            for step, reward in enumerate(given_row):
                entry = padded[row, step].item()
                assert math.isnan(entry) if reward is None else entry == reward


class TestLeaveOneOut:
    @given(batch=batches(unscorable=True), num_groups=st.integers(1, 3))
    def test_equals_plain_loops_and_leaves_the_own_completion_out(self, batch: Batch, num_groups: int) -> None:
        step_ids, size = batch.step_ids.repeat(num_groups, 1), len(batch.step_ids)
        generator = torch.Generator().manual_seed(size)
        values = torch.randn(step_ids.shape, generator=generator)
        values[torch.rand(step_ids.shape, generator=generator) < 0.1] = math.nan
        rows = [
            [value for value, step in zip(row, ids, strict=True) if step >= 0]
            for row, ids in zip(values.tolist(), step_ids.tolist(), strict=True)
        ]
        actual = from_positions(leave_one_out(to_positions(values, step_ids), size), step_ids)
        for row, ids in enumerate(step_ids.tolist()):
            first = row - row % size
            others = [rows[other] for other in range(first, first + size) if other != row]
            depth = -1
            for token, step in enumerate(ids):
                if step < 0:
                    assert actual[row, token] == 0
                    continue
                depth += 1
                at_depth = [other[depth] for other in others if len(other) > depth and not math.isnan(other[depth])]
                pool = at_depth or [value for other in others for value in other if not math.isnan(value)]
                expected = math.fsum(pool) / len(pool) if pool else 0.0
                assert actual[row, token].item() == pytest.approx(expected, abs=1e-5)

    @given(batch=batches())
    def test_positions_and_back(self, batch: Batch) -> None:
        values = torch.where(batch.step_ids >= 0, batch.logps, 0.0)
        assert torch.equal(from_positions(to_positions(batch.logps, batch.step_ids), batch.step_ids), values)


class TestShaping:
    @given(batch=batches(unscorable=True), num_padding=st.integers(1, 4))
    def test_padding_steps_change_no_shaping(self, batch: Batch, num_padding: int) -> None:
        values, num_steps = batch.step_values, batch.step_values.shape[1]
        padded = torch.cat([values, torch.full((len(values), num_padding), math.nan)], dim=1)
        for shape in (
            min_form_step_rewards,
            clip_and_delta_step_rewards,
            lambda rewards: clip_and_delta_step_rewards(rewards, eta=0.5),
            lambda rewards: group_normalise(rewards, 1),
            lambda rewards: biased_step_index_normalisation(rewards, 1),
        ):
            after, before = shape(padded), shape(values)
            torch.testing.assert_close(after[:, :num_steps], before, atol=1e-6, rtol=1e-6, equal_nan=True)
            assert after[:, num_steps:].isnan().all()

    @given(batch=batches())
    def test_min_form_return_lies_at_the_minimum(self, batch: Batch) -> None:
        total = min_form_step_rewards(batch.step_values, 1e-3).nansum(1)
        for row, count in enumerate(batch.num_steps):
            if count:
                assert total[row].item() == pytest.approx(batch.step_values[row, :count].min().item(), abs=5e-3)

    @given(batch=batches(), seed=st.integers(0, 1000))
    def test_delta_return_to_go_is_the_own_reward(self, batch: Batch, seed: int) -> None:
        shaped = clip_and_delta_step_rewards(batch.step_values)
        returns = suffix_sums(shaped, ~shaped.isnan())
        for row, count in enumerate(batch.num_steps):
            torch.testing.assert_close(
                returns[row, : max(0, count - 1)], batch.step_values[row, : max(0, count - 1)], atol=1e-6, rtol=0
            )
            assert count == 0 or returns[row, count - 1] == 0

    @given(batch=batches(), eta=st.floats(0.05, 0.95))
    def test_clip_is_never_positive(self, batch: Batch, eta: float) -> None:
        clipped = clip_and_delta_step_rewards(batch.step_values, eta, delta=False)
        assert not (clipped > 0).any()

    @given(
        rewards=st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4),
        shift=st.floats(-2, 2, width=32),
        num_groups=st.integers(1, 3),
    )
    def test_group_normalise_centres_and_ignores_a_shift(
        self, rewards: list[float], shift: float, num_groups: int
    ) -> None:
        stacked = torch.tensor(rewards * num_groups)
        normalised = group_normalise(stacked, 4)
        assert normalised.reshape(num_groups, 4).mean(1).abs().max() < 1e-5
        assert torch.equal(normalised.reshape(num_groups, 4), normalised[:4].expand(num_groups, 4))
        torch.testing.assert_close(group_normalise(stacked + shift, 4), normalised, atol=1e-2, rtol=1e-2)

    @given(q=st.floats(0, 1, width=32), k=st.integers(1, 64))
    def test_best_of_k_is_a_probability_that_grows_with_k(self, q: float, k: int) -> None:
        values = torch.tensor([q])
        one, more = best_of_k_values(values, k), best_of_k_values(values, k + 1)
        assert 0 <= one.item() <= 1 + 1e-6
        assert more >= one - 1e-6
        assert one.item() == pytest.approx(1 - (1 - q) ** k, abs=1e-6)
