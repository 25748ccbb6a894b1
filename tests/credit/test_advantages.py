"""Credit assignment against numbers worked out by hand, and cases where one formula becomes another."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trl_prl.credit.advantages import best_of_k_values, pav_advantages, prl_advantages, step_advantages
from trl_prl.credit.baselines import (
    biased_kl_in_reward_advantages,
    biased_prover_value_bonus_advantages,
    biased_step_index_normalisation,
    clip_and_delta_step_rewards,
    min_form_step_rewards,
    process_supervision_advantages,
    step_credit,
)
from trl_prl.credit.groups import group_normalise, leave_one_out, outcome_scale
from trl_prl.credit.kl import kl_to_go
from trl_prl.credit.step_tensors import pad_step_rewards, spread_to_tokens, suffix_sums


NAN, INF, LN2 = math.nan, math.inf, math.log(2)


def close(actual: Tensor, expected: list) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), atol=2e-6, rtol=0, equal_nan=True)


class TestSuffixSums:
    def test_hand_worked(self) -> None:
        # 1+2+4+8, 2+4+8, 4+8, 8
        close(suffix_sums(torch.tensor([[1.0, 2.0, 4.0, 8.0]])), [[15.0, 14.0, 12.0, 8.0]])

    def test_masked_values_are_ignored_whatever_they_are(self) -> None:
        values = torch.tensor([[1.0, NAN, 4.0, INF]])
        close(suffix_sums(values, torch.tensor([[1, 0, 1, 0]])), [[5.0, 4.0, 4.0, 0.0]])

    def test_long_rows_match_an_exact_sum(self) -> None:
        values = torch.rand(2, 8192, generator=torch.Generator().manual_seed(0)) - 0.4
        sums = suffix_sums(values)
        for start in (0, 1, 4000, 8191):
            exact = math.fsum(values[1, start:].tolist())
            assert sums[1, start].item() == pytest.approx(exact, rel=2e-7)

    def test_bfloat16_is_upcast_before_the_sum(self) -> None:
        # In bfloat16, a running sum of ones stops growing at 256.
        assert suffix_sums(torch.ones(1, 5000, dtype=torch.bfloat16))[0, 0].item() == 5000.0


class TestKLToGo:
    # One row: two steps of two tokens, a hole between them, padding at the end. Off-mask entries are garbage.
    step_ids = torch.tensor([[0, 0, -1, 1, 1, -1]])
    logps = torch.tensor([[1.0, 2.0, NAN, 4.0, 8.0, INF]])
    ref_logps = torch.tensor([[0.0, 0.0, 7.0, 0.0, 0.0, INF]])

    @pytest.mark.parametrize(
        ("level", "inclusive", "expected"),
        [
            ("token", True, [15.0, 14.0, 0.0, 12.0, 8.0, 0.0]),
            ("token", False, [14.0, 12.0, 0.0, 8.0, 0.0, 0.0]),
            # The first step begins at the first token: 1+2+4+8. The second at the fourth: 4+8.
            ("step", True, [15.0, 15.0, 0.0, 12.0, 12.0, 0.0]),
            ("step", False, [12.0, 12.0, 0.0, 0.0, 0.0, 0.0]),
            # The first step ends at the second token: 2+4+8. The second at the last: 8.
            ("step_end", True, [14.0, 14.0, 0.0, 8.0, 8.0, 0.0]),
            ("step_end", False, [12.0, 12.0, 0.0, 0.0, 0.0, 0.0]),
        ],
    )
    def test_k1(self, level: str, inclusive: bool, expected: list[float]) -> None:
        close(kl_to_go(self.logps, self.ref_logps, self.step_ids, level=level, inclusive=inclusive), [expected])

    # delta = ln 2, −ln 2, ln 2: exp(−delta) = 1/2, 2, 1/2.
    # k3 = 1/2 + ln 2 − 1 = 0.193147, 2 − ln 2 − 1 = 0.306853, 0.193147.
    # Forward own = 1 − u = 1/2, −1, 1/2; future u·log u − u + 1 = 0.153426, 0.386294, 0.153426.
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            # ln 2 + 0.306853 + 0.193147, −ln 2 + 0.193147, ln 2
            ({"level": "token", "estimator": "k3"}, [1.193147, -0.5, 0.693147]),
            ({"level": "token", "estimator": "k3", "inclusive": False}, [0.5, 0.193147, 0.0]),
            # Own terms of both tokens of the step, ln 2 − ln 2, and the third's 0.193147.
            ({"level": "step", "estimator": "k3"}, [0.193147, 0.193147, 0.693147]),
            ({"level": "step", "estimator": "k3", "inclusive": False}, [0.193147, 0.193147, 0.0]),
            ({"level": "step_end", "estimator": "k3"}, [-0.5, -0.5, 0.693147]),
            ({"level": "step_end", "estimator": "k3", "inclusive": False}, [0.193147, 0.193147, 0.0]),
            # 1/2 + 0.386294 + 0.153426, −1 + 0.153426, 1/2
            ({"level": "token", "direction": "forward"}, [1.039721, -0.846574, 0.5]),
            ({"level": "token", "direction": "forward", "inclusive": False}, [0.539721, 0.153426, 0.0]),
            # 1/2 − 1 + 0.153426
            ({"level": "step", "direction": "forward"}, [-0.346574, -0.346574, 0.5]),
            ({"level": "step", "direction": "forward", "inclusive": False}, [0.153426, 0.153426, 0.0]),
            ({"level": "step_end", "direction": "forward"}, [-0.846574, -0.846574, 0.5]),
            ({"level": "step_end", "direction": "forward", "inclusive": False}, [0.153426, 0.153426, 0.0]),
        ],
    )
    def test_k3_and_forward(self, options: dict, expected: list[float]) -> None:
        logps = torch.tensor([[LN2, -LN2, LN2]]) - 1.0
        close(kl_to_go(logps, torch.full((1, 3), -1.0), torch.tensor([[0, 0, 1]]), **options), [expected])

    def test_a_hole_inside_a_step_does_not_end_it(self) -> None:
        # Step 0 is interrupted by tool output, begins at the first token, 1+8+16, and ends at the fourth, 8+16.
        logps = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
        step_ids = torch.tensor([[0, -1, -1, 0, 1]])
        close(kl_to_go(logps, torch.zeros(1, 5), step_ids), [[25.0, 0.0, 0.0, 25.0, 16.0]])
        close(kl_to_go(logps, torch.zeros(1, 5), step_ids, "step_end"), [[24.0, 0.0, 0.0, 24.0, 16.0]])

    def test_a_large_log_ratio_is_not_bounded_quietly(self) -> None:
        # exp(100) is beyond float32. k1 has no exponential.
        logps, step_ids = torch.tensor([[-1.0, -101.0]]), torch.tensor([[0, 1]])
        ref_logps = torch.tensor([[-1.0, -1.0]])
        assert kl_to_go(logps, ref_logps, step_ids, level="token", estimator="k3")[0, 0] == INF
        close(kl_to_go(logps, ref_logps, step_ids, level="token"), [[-100.0, -100.0]])
        # In the other tail u underflows to 0, and 0·log 0 is 0: own and future terms are 1.
        forward = kl_to_go(torch.zeros(1, 2), torch.full((1, 2), -200.0), step_ids, "token", direction="forward")
        close(forward, [[2.0, 1.0]])

    def test_k3_is_never_negative_for_small_ratios(self) -> None:
        logps = torch.logspace(-8, 0, 50).unsqueeze(0)
        for sign in (1, -1):
            values = kl_to_go(
                sign * logps, torch.zeros(1, 50), torch.zeros(1, 50).long(), "token", "k3", inclusive=False
            )
            assert (values >= 0).all()


class TestPRLAdvantages:
    def test_hand_worked(self) -> None:
        inputs = (torch.tensor([10.0]), TestKLToGo.logps, TestKLToGo.ref_logps, TestKLToGo.step_ids)
        # 10 − 0.5 · (15, 14, 12, 8)
        close(prl_advantages(*inputs, beta=0.5, level="token"), [[2.5, 3.0, 0.0, 4.0, 6.0, 0.0]])
        # 10 − 0.5 · (15, 12), and with the sums from the last tokens 10 − 0.5 · (14, 8)
        close(prl_advantages(*inputs, beta=0.5, level="step"), [[2.5, 2.5, 0.0, 4.0, 4.0, 0.0]])
        close(prl_advantages(*inputs, beta=0.5, level="step_end"), [[3.0, 3.0, 0.0, 6.0, 6.0, 0.0]])

    def test_a_baseline_is_subtracted_from_the_kl(self) -> None:
        inputs = (torch.tensor([10.0]), TestKLToGo.logps, TestKLToGo.ref_logps, TestKLToGo.step_ids)
        baseline = torch.tensor([[15.0, 4.0, NAN, 12.0, 0.0, NAN]])
        # 10 − 0.5 · (15 − 15, 14 − 4, 12 − 12, 8 − 0)
        advantages = prl_advantages(*inputs, beta=0.5, level="token", baseline=baseline)
        close(advantages, [[10.0, 5.0, 0.0, 10.0, 6.0, 0.0]])

    def test_last_token_gets_its_reward(self) -> None:
        # An off-by-one in the sum or in the mask would leave the last token with the outcome alone.
        logps, ref_logps = torch.tensor([[0.0, 0.0, -1.0]]), torch.tensor([[0.0, 0.0, -3.0]])
        for level in ("step", "step_end"):
            advantages = prl_advantages(torch.tensor([0.0]), logps, ref_logps, torch.tensor([[0, 0, 0]]), 1.0, level)
            close(advantages, [[-2.0] * 3])

    def test_square_batch_is_matched_by_rows(self) -> None:
        # (B,) against (B, T) with B == T: the advantage belongs to the row, not to the column.
        zeros, step_ids = torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.long)
        expected = [[1.0] * 3, [2.0] * 3, [3.0] * 3]
        close(prl_advantages(torch.tensor([1.0, 2.0, 3.0]), zeros, zeros, step_ids, 0.1), expected)
        close(pav_advantages(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 1), step_ids, 1.0), expected)

    def test_beta_zero_drops_infinite_ratios_too(self) -> None:
        logps = torch.tensor([[-INF, 0.0]])
        close(prl_advantages(torch.tensor([2.0]), logps, torch.zeros(1, 2), torch.tensor([[0, 1]]), 0.0), [[2.0, 2.0]])

    def test_every_token_a_step_is_the_token_level(self) -> None:
        generator = torch.Generator().manual_seed(0)
        logps, ref_logps = torch.randn(2, 4, 9, generator=generator)
        step_ids = torch.arange(9).expand(4, 9)
        for options in ({}, {"estimator": "k3"}, {"direction": "forward"}, {"inclusive": False}):
            token = prl_advantages(torch.ones(4), logps, ref_logps, step_ids, 0.3, "token", **options)
            for level in ("step", "step_end"):
                assert torch.equal(
                    prl_advantages(torch.ones(4), logps, ref_logps, step_ids, 0.3, level, **options), token
                )

    def test_one_step_takes_all_tokens_or_the_last_one(self) -> None:
        logps, ref_logps = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -9.0, -3.25]])
        inputs = (torch.ones(1), logps, ref_logps, torch.zeros(1, 3).long(), 2.0)
        # 1 − 2 · (0.5 + 7 + 0.25), 1 − 2 · 0.25
        close(prl_advantages(*inputs), [[-14.5, -14.5, -14.5]])
        close(prl_advantages(*inputs, level="step_end"), [[0.5, 0.5, 0.5]])

    def test_exclusive_token_level_is_the_inclusive_one_of_the_next_token(self) -> None:
        logps, step_ids = torch.randn(2, 7, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 7).long()
        inclusive = kl_to_go(logps, torch.zeros(2, 7), step_ids, "token")
        exclusive = kl_to_go(logps, torch.zeros(2, 7), step_ids, "token", inclusive=False)
        assert torch.equal(exclusive[:, :-1], inclusive[:, 1:])

    def test_many_rows_equal_row_by_row(self) -> None:
        # More rows than are computed at a time.
        generator = torch.Generator().manual_seed(2)
        logps, ref_logps = torch.randn(2, 150, 5, generator=generator)
        step_ids = torch.randint(0, 2, (150, 5), generator=generator).cumsum(1) - 1
        outcome, progress = torch.randn(150, generator=generator), torch.randn(150, 5, generator=generator)
        together = prl_advantages(outcome, logps, ref_logps, step_ids, 0.1)
        spread = pav_advantages(outcome, progress, step_ids, 2.0)
        for row in range(150):
            one = slice(row, row + 1)
            assert torch.equal(
                together[one], prl_advantages(outcome[one], logps[one], ref_logps[one], step_ids[one], 0.1)
            )
            assert torch.equal(spread[one], pav_advantages(outcome[one], progress[one], step_ids[one], 2.0))


class TestPAV:
    def test_progress_hand_worked(self) -> None:
        # 0.75 − 0.5, 0.25 − 0.75, 1 − 0.25; second row: a single step worth exactly 0.
        values = torch.tensor([[0.75, 0.25, 1.0], [0.0, NAN, NAN]])
        expected = [[0.25, -0.5, 0.75], [-0.5, NAN, NAN]]
        close(step_advantages(values, torch.tensor([0.5, 0.5])), expected)

    def test_unscorable_step_makes_two_differences_unknown(self) -> None:
        values = torch.tensor([[0.5, NAN, 0.75, 1.0]])
        close(step_advantages(values, torch.tensor([0.25])), [[0.25, NAN, NAN, 0.25]])
        close(step_advantages(values, torch.tensor([NAN])), [[NAN, NAN, NAN, 0.25]])

    def test_a_value_of_zero_is_a_value(self) -> None:
        # Taking 0.0 for "no value" would give the second step its neighbour's value, and a progress of 0.
        values = torch.tensor([[1.0, 0.0, 1.0]])
        close(step_advantages(values, torch.tensor([0.0])), [[1.0, -1.0, 1.0]])
        close(spread_to_tokens(values, torch.tensor([[0, 1, 1, 2]])), [[1.0, 0.0, 0.0, 1.0]])

    def test_advantages_hand_worked(self) -> None:
        # 1 + 2 · (0.25, −0.5, 0.75), and outcome alone for the step that could not be scored.
        progress = torch.tensor([[0.25, -0.5, 0.75], [NAN, 0.5, NAN]])
        step_ids = torch.tensor([[0, 0, 1, -1, 2], [0, 1, 2, 2, -1]])
        expected = [[1.5, 1.5, 0.0, 0.0, 2.5], [-1.0, 0.0, -1.0, -1.0, 0.0]]
        close(pav_advantages(torch.tensor([1.0, -1.0]), progress, step_ids, 2.0), expected)

    def test_weights_per_completion_and_a_baseline(self) -> None:
        progress, step_ids = torch.tensor([[0.25, NAN], [0.5, INF]]), torch.tensor([[0, 1], [0, -1]])
        baseline = torch.tensor([[0.5, 0.5], [0.125, 0.125]])
        # 1 + 2 · (0.25 − 0.5), outcome alone without a score; −1 + 4 · (0.5 − 0.125)
        alpha = torch.tensor([2.0, 4.0])
        close(pav_advantages(torch.tensor([1.0, -1.0]), progress, step_ids, alpha, baseline), [[0.5, 1.0], [0.5, 0.0]])
        alpha = torch.tensor([2.0, 0.0])
        close(
            pav_advantages(torch.tensor([1.0, -1.0]), progress, step_ids, alpha, baseline), [[0.5, 1.0], [-1.0, 0.0]]
        )

    def test_one_step_is_outcome_plus_its_own_progress(self) -> None:
        progress = step_advantages(torch.tensor([[0.75]]), torch.tensor([0.5]))
        # 1 + 4 · 0.25
        close(pav_advantages(torch.tensor([1.0]), progress, torch.tensor([[0, 0, -1]]), 4.0), [[2.0, 2.0, 0.0]])

    def test_alpha_zero_drops_infinite_progress_too(self) -> None:
        close(pav_advantages(torch.tensor([2.0]), torch.tensor([[INF]]), torch.tensor([[0, -1]]), 0.0), [[2.0, 0.0]])

    def test_best_of_k(self) -> None:
        # 1 − 1², 1 − 0.75², 1 − 0.5², 1 − 0²
        values = torch.tensor([0.0, 0.25, 0.5, 1.0, NAN])
        close(best_of_k_values(values, 2), [0.0, 0.4375, 0.75, 1.0, NAN])
        assert torch.equal(best_of_k_values(values[:4], 1), values[:4])
        # 1 − (1 − 1e-9)⁴ is 0 in float32; the value is 4e-9.
        assert best_of_k_values(torch.tensor([1e-9]), 4).item() == pytest.approx(4e-9, rel=1e-6)

    def test_pad_step_rewards(self) -> None:
        close(pad_step_rewards([[1.0, None], [], [0, NAN, 0.5]]), [[1, NAN, NAN], [NAN] * 3, [0, NAN, 0.5]])
        assert pad_step_rewards([]).shape == (0, 0)
        assert pad_step_rewards([[], []]).shape == (2, 0)


class TestGroupNormalise:
    def test_sample_standard_deviation(self) -> None:
        # mean 1/4, sample variance (3 · 1/16 + 9/16) / 3 = 1/4; the population's would be 3/16.
        close(group_normalise(torch.tensor([0.0, 0.0, 0.0, 1.0]), 4, eps=0.0), [-0.5, -0.5, -0.5, 1.5])

    def test_scales(self) -> None:
        rewards = torch.tensor([0.0, 2.0, 4.0, 6.0])
        close(group_normalise(rewards, 2, scale="none"), [-1.0, 1.0, -1.0, 1.0])
        # Group: sample std of (0, 2) is sqrt(2). Batch: of all four, sqrt(20 / 3) = 2.581989.
        close(group_normalise(rewards, 2, eps=0.0), [-0.707107, 0.707107, -0.707107, 0.707107])
        close(group_normalise(rewards, 2, scale="batch", eps=0.0), [-0.387298, 0.387298, -0.387298, 0.387298])

    @pytest.mark.parametrize("eps", [1e-4, 1e-6, 1e-12])
    def test_equal_rewards_and_groups_of_one_give_exactly_zero(self, eps: float) -> None:
        for reward in (0.1, 0.7, 1 / 3):
            assert not group_normalise(torch.full((7,), reward), 7, eps=eps).any()
            assert not group_normalise(torch.tensor([reward, 2.0]), 1, eps=eps).any()

    def test_nan_takes_no_part(self) -> None:
        # Steps of both completions are one population: 1, 2, 3 with mean 2 and sample std 1.
        rewards = torch.tensor([[1.0, 2.0], [3.0, NAN]])
        close(group_normalise(rewards, 2, eps=0.0), [[-1.0, 0.0], [1.0, NAN]])


class TestGroups:
    def test_leave_one_out_hand_worked(self) -> None:
        # Depth 0: (3 + 7)/2, (1 + 7)/2, (1 + 3)/2. Depth 1: 5 and 2 have each other. Depth 2: nobody else got so far,
        # so all tokens of the others: (3 + 5 + 7)/3.
        values = torch.tensor([[1.0, 2.0, 9.0], [3.0, 5.0, NAN], [7.0, NAN, NAN]])
        baseline = leave_one_out(values, 3)
        close(baseline, [[5.0, 5.0, 5.0], [4.0, 2.0, 9.0], [2.0, 3.5, 9.0]])
        close(leave_one_out(values, 1), [[0.0] * 3] * 3)

    def test_outcome_scale_hand_worked(self) -> None:
        # Sample std of (0, 0, 0, 1) is 1/2; equal rewards are not divided; NaN takes no part.
        rewards = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, NAN])
        divisors, equal = outcome_scale(rewards, 4)
        close(divisors, [0.5001] * 4 + [1.0] * 4)
        assert equal.tolist() == [False] * 4 + [True] * 4
        close(outcome_scale(rewards, 4, "none")[0], [1.0] * 8)
        # Four of seven are right: variance 12/7 / 6 = 2/7.
        divisors, batch_equal = outcome_scale(rewards, 4, "batch")
        close(divisors, [math.sqrt(2 / 7) + 1e-4] * 8)
        assert torch.equal(batch_equal, equal)
        assert outcome_scale(rewards[:4], 1)[1].all()

    def test_divisors_are_those_of_group_normalise(self) -> None:
        rewards = torch.randn(12, generator=torch.Generator().manual_seed(0))
        for scale in ("group", "batch"):
            divisors, _ = outcome_scale(rewards, 4, scale)
            centred = group_normalise(rewards, 4, "none")
            torch.testing.assert_close(centred / divisors, group_normalise(rewards, 4, scale))


class TestAlternatives:
    def test_step_credit_hand_worked(self) -> None:
        scores = torch.tensor([[0.9, 0.4, 0.6, 0.8], [0.25, NAN, NAN, NAN]])
        # Clip at 0.7, Delta (below): 0.3, −0.2, −0.1, 0, summed from each step on.
        close(step_credit(scores, "clip_delta", 2, clip_eta=0.7), [[0.0, -0.3, -0.1, 0.0], [0.0, NAN, NAN, NAN]])
        # By default at the mean of the group's five scores, 0.59: 0, −0.19, 0, 0 after Clip, 0.19, −0.19, 0, 0 after.
        close(step_credit(scores, "clip_delta", 2), [[0.0, -0.19, 0.0, 0.0], [0.0, NAN, NAN, NAN]])
        close(step_credit(torch.tensor([[0.0, 1.0, 2.0]]), "return_to_go", 1), [[0.0, 0.9999, 0.9999]])
        close(step_credit(torch.tensor([[0.9, -20.0, 0.7]]), "min_form", 1), [[-20.0, -20.0, 0.0]])

    def test_process_supervision_hand_worked(self) -> None:
        # Normalised as above, (−1, 0) and (1): the return-to-go is (−1, 0) and (1).
        rewards = torch.tensor([[1.0, 2.0], [3.0, NAN]])
        step_ids = torch.tensor([[0, 1, 1, -1], [-1, 0, 0, -1]])
        expected = [[-1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
        close(process_supervision_advantages(rewards, step_ids, 2, eps=0.0), expected)

    def test_process_supervision_counts_the_own_and_later_steps(self) -> None:
        # 0, 1, 2 less their mean 1: −1, 0, 1. From each step on: 0, 1, 1.
        rewards, step_ids = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0, 1, 2]])
        close(process_supervision_advantages(rewards, step_ids, 1, scale="none"), [[0.0, 1.0, 1.0]])

    def test_process_supervision_with_one_step_is_outcome_supervision(self) -> None:
        rewards, step_ids = torch.tensor([0.0, 1.0, 1.0, 0.5]), torch.zeros(4, 3).long()
        advantages = process_supervision_advantages(rewards.unsqueeze(1), step_ids, 2)
        assert torch.equal(advantages, group_normalise(rewards, 2).unsqueeze(1).expand(4, 3))

    def test_min_form_hand_worked(self) -> None:
        # Temperature 1: weights e^(ln 2) = 2 and 1/2, that is 0.8 and 0.2.
        close(min_form_step_rewards(torch.tensor([[-LN2, LN2]]), 1.0), [[-0.554518, 0.138629]])

    def test_min_form_becomes_the_minimum(self) -> None:
        rewards = min_form_step_rewards(torch.tensor([[0.9, 0.2, 0.7]]), 1e-3)
        close(rewards, [[0.0, 0.2, 0.0]])
        # Up to the worst step the return-to-go is the minimum; after it, nothing is left to lose.
        close(suffix_sums(rewards), [[0.2, 0.2, 0.0]])

    def test_min_form_is_not_taken_over_padding(self) -> None:
        # With padding as 0, the minimum of these positive rewards would sit in the padding.
        padded = min_form_step_rewards(torch.tensor([[0.9, 0.2, NAN, NAN], [NAN, NAN, NAN, NAN]]), 1e-3)
        close(padded, [[0.0, 0.2, NAN, NAN], [NAN] * 4])

    def test_min_form_of_one_step_is_the_identity(self) -> None:
        close(min_form_step_rewards(torch.tensor([[0.3, NAN]])), [[0.3, NAN]])

    def test_clip_and_delta_hand_worked(self) -> None:
        rewards = torch.tensor([[0.9, 0.4, 0.6, 0.8], [0.25, NAN, NAN, NAN]])
        # min(r, 0.7) − 0.7
        clipped = [[0.0, -0.3, -0.1, 0.0], [-0.45, NAN, NAN, NAN]]
        close(clip_and_delta_step_rewards(rewards, eta=0.7, delta=False), clipped)
        # 0.9 − 0.4, 0.4 − 0.6, then 0.6 itself, and 0 for the last step
        close(clip_and_delta_step_rewards(rewards), [[0.5, -0.2, 0.6, 0.0], [0.0, NAN, NAN, NAN]])
        # 0 + 0.3, −0.3 + 0.1, −0.1, 0
        close(clip_and_delta_step_rewards(rewards, eta=0.7), [[0.3, -0.2, -0.1, 0.0], [0.0, NAN, NAN, NAN]])

    def test_delta_with_an_unscorable_step(self) -> None:
        rewards = torch.tensor([[0.5, NAN, 0.25, 0.75, 1.0], [NAN] * 5])
        close(clip_and_delta_step_rewards(rewards), [[NAN, NAN, -0.5, 0.75, 0.0], [NAN] * 5])
        assert clip_and_delta_step_rewards(torch.zeros(2, 0)).shape == (2, 0)


class TestKnownBadBaselines:
    def test_kl_in_reward_hand_worked(self) -> None:
        # Four correct completions, one of which drifted by 4 nats. 1 − 0.25·4 = 0, 1, 1, 1: mean 3/4, sample std 1/2.
        logps, step_ids = torch.zeros(4, 2), torch.tensor([[0, 1], [0, -1], [0, 0], [0, 0]])
        logps[0] = 2.0
        logps[1, 1] = NAN
        outcome_rewards, zeros = torch.ones(4), torch.zeros(4, 2)
        biased = biased_kl_in_reward_advantages(outcome_rewards, logps, zeros, step_ids, 0.25, 4, eps=0.0)
        close(biased, [[-1.5, -1.5], [0.5, 0.0], [0.5, 0.5], [0.5, 0.5]])
        # Corrected after the normalisation, the three that did not drift get nothing, and the drift its own price.
        outcome = group_normalise(outcome_rewards, 4)
        right = prl_advantages(outcome, logps, zeros, step_ids, 0.25, level="token")
        close(right, [[-1.0, -0.5], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])

    def test_kl_in_reward_without_kl_is_grpo(self) -> None:
        rewards, zeros, step_ids = torch.tensor([1.0, 0.0]), torch.zeros(2, 3), torch.zeros(2, 3).long()
        biased = biased_kl_in_reward_advantages(rewards, zeros, zeros, step_ids, 0.5, 2)
        assert torch.equal(biased, group_normalise(rewards, 2).unsqueeze(1).expand(2, 3))

    def test_prover_value_bonus_pays_for_doing_nothing(self) -> None:
        # Three rephrasings after a good step: the value bonus pays 0.75 for each, progress pays once.
        values, step_ids = torch.tensor([[0.75, 0.75, 0.75]]), torch.tensor([[0, 1, 2]])
        biased = biased_prover_value_bonus_advantages(torch.tensor([1.0]), values, step_ids, 2.0)
        close(biased, [[2.5, 2.5, 2.5]])
        progress = step_advantages(values, torch.tensor([0.5]))
        close(pav_advantages(torch.tensor([1.0]), progress, step_ids, 2.0), [[1.5, 1.0, 1.0]])

    def test_step_index_normalisation_hand_worked(self) -> None:
        # First steps 1 and 3: mean 2, sample std sqrt(2). The only second step is compared to nothing.
        rewards = torch.tensor([[1.0, 5.0], [3.0, NAN]])
        close(biased_step_index_normalisation(rewards, 2, eps=1e-9), [[-0.707107, 0.0], [0.707107, NAN]])


ONES, ZEROS, IDS = torch.ones(2), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (lambda: suffix_sums(ONES), "`values` has shape"),
            (lambda: suffix_sums(ZEROS, IDS[:, :2]), "`mask` has shape"),
            (lambda: kl_to_go(ZEROS, ZEROS[:, :2], IDS), "`ref_logps` has shape"),
            (lambda: kl_to_go(ZEROS, ZEROS, IDS[:1]), "`step_ids` has shape"),
            (lambda: kl_to_go(ZEROS, ZEROS, ZEROS), "`step_ids` has dtype torch.float32"),
            (lambda: kl_to_go(ZEROS, ZEROS, IDS.bool()), "`step_ids` has dtype torch.bool"),
            (lambda: kl_to_go(ZEROS, ZEROS, IDS, level="tokens"), "`level` is 'tokens'"),
            (lambda: kl_to_go(ZEROS, ZEROS, IDS, estimator="k2"), "`estimator` is 'k2'"),
            (lambda: kl_to_go(ZEROS, ZEROS, IDS, direction="both"), "`direction` is 'both'"),
            (lambda: prl_advantages(torch.ones(3), ZEROS, ZEROS, IDS, 0.1), "`outcome_advantages` has shape"),
            (lambda: prl_advantages(ZEROS, ZEROS, ZEROS, IDS, 0.1), "`outcome_advantages` has shape"),
            (lambda: prl_advantages(ONES, ZEROS, ZEROS, IDS, -0.1), "`beta` is -0.1"),
            (lambda: prl_advantages(ONES, ZEROS, ZEROS, IDS, NAN), "`beta` is nan"),
            (lambda: pav_advantages(ONES, ZEROS, IDS, INF), "`alpha` is inf"),
            (lambda: pav_advantages(torch.ones(3), ZEROS, IDS, 1.0), "`outcome_advantages` has shape"),
            (lambda: pav_advantages(ONES, ZEROS, IDS + 3, 1.0), "`step_ids` reach from 3 to 3"),
            (lambda: spread_to_tokens(ZEROS, IDS - 2), "`step_ids` reach from -2 to -2"),
            (lambda: spread_to_tokens(ZEROS, IDS[:1]), "`step_ids` has shape"),
            (lambda: spread_to_tokens(ZEROS, ZEROS), "`step_ids` has dtype"),
            (lambda: step_advantages(ZEROS, torch.ones(3)), "`initial_values` has shape"),
            (lambda: best_of_k_values(ZEROS, 0), "`k` is 0"),
            (lambda: best_of_k_values(ZEROS + 1.5, 2), "`values` reach from 1.5 to 1.5"),
            (lambda: best_of_k_values(ZEROS - 0.5, 2), "`values` reach from -0.5"),
            (lambda: group_normalise(torch.ones(3), 2), "`num_generations` is 2"),
            (lambda: group_normalise(ONES, 0), "`num_generations` is 0"),
            (lambda: group_normalise(ONES, 2, scale="std"), "`scale` is 'std'"),
            (lambda: process_supervision_advantages(ONES, IDS, 2), "`step_rewards` has shape"),
            (lambda: biased_step_index_normalisation(ZEROS, 3), "`num_generations` is 3"),
            (lambda: min_form_step_rewards(ZEROS, 0.0), "`temperature` is 0.0"),
            (lambda: step_credit(ZEROS, "progress", 2), "`credit` is 'progress'"),
            (lambda: leave_one_out(ZEROS, 3), "`num_generations` is 3"),
            (lambda: prl_advantages(ONES, ZEROS, ZEROS, IDS, 0.1, baseline=ONES), "`baseline` has shape"),
            (lambda: pav_advantages(ONES, ZEROS, IDS, 1.0, baseline=ONES), "`baseline` has shape"),
            (lambda: pav_advantages(ONES, ZEROS, IDS, torch.ones(3)), "`alpha` has shape"),
        ],
    )
    def test_user_errors_say_what_why_and_what_to_do(self, call: Callable[[], Tensor], match: str) -> None:
        with pytest.raises(ValueError, match=match) as error:
            call()
        assert "Pass" in str(error.value)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "suffix_sums": lambda vector, tokens, steps: suffix_sums(tokens),
    "kl_to_go token": lambda vector, tokens, steps: kl_to_go(tokens, tokens * 2, IDS, "token"),
    "kl_to_go step_end": lambda vector, tokens, steps: kl_to_go(tokens, tokens * 2, IDS, "step_end"),
    "kl_to_go k3": lambda vector, tokens, steps: kl_to_go(tokens, tokens * 2, IDS, "step", "k3"),
    "kl_to_go forward": lambda vector, tokens, steps: kl_to_go(tokens, tokens * 2, IDS, "token", direction="forward"),
    "prl_advantages": lambda vector, tokens, steps: prl_advantages(vector, tokens, tokens * 2, IDS, 0.5),
    "prl_advantages beta 0": lambda vector, tokens, steps: prl_advantages(vector, tokens, tokens * 2, IDS, 0.0),
    "step_advantages": lambda vector, tokens, steps: step_advantages(steps, vector),
    "best_of_k_values": lambda vector, tokens, steps: best_of_k_values(steps, 4),
    "pav_advantages": lambda vector, tokens, steps: pav_advantages(vector, steps, IDS, 2.0),
    "pav_advantages alpha 0": lambda vector, tokens, steps: pav_advantages(vector, steps, IDS, 0.0),
    "spread_to_tokens": lambda vector, tokens, steps: spread_to_tokens(steps, IDS),
    "group_normalise": lambda vector, tokens, steps: group_normalise(vector, 2),
    "outcome_scale": lambda vector, tokens, steps: outcome_scale(vector, 2)[0],
    "leave_one_out": lambda vector, tokens, steps: leave_one_out(tokens, 2),
    "step_credit": lambda vector, tokens, steps: step_credit(steps, "clip_delta", 2),
    "process_supervision": lambda vector, tokens, steps: process_supervision_advantages(steps, IDS, 2),
    "min_form": lambda vector, tokens, steps: min_form_step_rewards(steps),
    "clip": lambda vector, tokens, steps: clip_and_delta_step_rewards(steps, 0.5, delta=False),
    "delta": lambda vector, tokens, steps: clip_and_delta_step_rewards(steps),
    "no clip, no delta": lambda vector, tokens, steps: clip_and_delta_step_rewards(steps, delta=False),
    "kl_in_reward": lambda vector, tokens, steps: biased_kl_in_reward_advantages(
        vector, tokens, tokens * 2, IDS, 0.1, 2
    ),
    "value_bonus": lambda vector, tokens, steps: biased_prover_value_bonus_advantages(vector, steps, IDS, 1.0),
    "step_index": lambda vector, tokens, steps: biased_step_index_normalisation(steps, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
class TestEveryFunction:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_float32_detached_and_inputs_untouched(self, name: str, dtype: torch.dtype) -> None:
        # Eighths are exact in every precision, so that all of them must give the same result.
        inputs = [
            torch.tensor([0.25, 0.75]),
            torch.tensor([[-0.5, -1.0, -0.125], [-2.0, -0.25, -0.75]]),
            torch.tensor([[0.125, 0.5, 0.0], [1.0, 0.25, 0.875]]),
        ]
        expected = FUNCTIONS[name](*inputs)
        given = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        result = FUNCTIONS[name](*given)
        assert result.dtype == torch.float32
        assert not result.requires_grad
        assert torch.equal(result, expected)
        for before, after in zip(inputs, given, strict=True):
            assert torch.equal(after.detach().float(), before)
            assert result.data_ptr() != after.data_ptr()

    def test_no_rows(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(globals(), "IDS", torch.zeros(0, 3, dtype=torch.long))
        assert len(FUNCTIONS[name](torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3))) == 0
