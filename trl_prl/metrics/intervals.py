"""Intervals of a success probability from counted successes, and when to stop counting.

Layer 0: no model, no trainer, no input or output. There is no Wald interval here: it has zero width at 0 of n and at n
of n, where a sequential rule built on it would stop at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal


IntervalKind = Literal["wilson", "beta"]


# Jobs ask for the same few counts again and again.
@lru_cache(maxsize=1 << 16)
def value_interval(
    num_correct: int, num_rollouts: int, confidence: float = 0.95, kind: IntervalKind = "wilson"
) -> tuple[float, float]:
    """Interval of a success probability, as [`scipy.stats.binomtest`] computes it.

    Source: Brown, Cai and DasGupta, *Interval Estimation for a Binomial Proportion*, Statistical Science 16(2), 2001,
    eq. 4 (Wilson) and section 4.2.1 (Clopper-Pearson).

    Args:
        num_correct (`int`):
            Successes.
        num_rollouts (`int`):
            Trials; without any, the interval is (0, 1).
        confidence (`float`, *optional*, defaults to `0.95`):
            Nominal coverage, in (0, 1).
        kind (`str`, *optional*, defaults to `"wilson"`):
            `"wilson"`: the score interval, which has its coverage on average over the values. `"beta"`:
            Clopper-Pearson's, quantiles of Beta distributions, with at least that coverage for every value.

    Returns:
        `tuple[float, float]`: Both ends, in [0, 1]; it always has a width.

    Raises:
        `ValueError`: When the name is unknown, the counts do not fit together or `confidence` is outside (0, 1).
    """
    if kind not in ("wilson", "beta"):
        raise ValueError(
            f"Got the interval {kind!r}. There is no such one here (Wald's has no width at 0 of n, so it cannot tell "
            "when to stop). Use 'wilson' or 'beta'."
        )
    if not 0 <= num_correct <= num_rollouts or not 0 < confidence < 1:
        raise ValueError(
            f"Got {num_correct} correct of {num_rollouts} rollouts and confidence={confidence}. Counts must fit "
            "together, and an interval has some coverage, but never all of it. Give 0 <= correct <= rollouts and a "
            "confidence in (0, 1), 0.95 for instance."
        )
    if num_rollouts == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    method = "wilson" if kind == "wilson" else "exact"
    low, high = binomtest(num_correct, num_rollouts).proportion_ci(confidence, method)
    return float(low), float(high)


@dataclass(frozen=True)
class SequentialRule:
    """When a label is settled: a stopping rule for rollouts that are drawn in rounds.

    One more rollout lowers the mean square error `Q (1 - Q) / n` of a label by about `Q (1 - Q) / n²`. After each
    round the rollouts of a label end once that is at most `tolerance²` for *every* value in its interval, or
    `max_rollouts` are spent. A rollout thus goes where it lowers the error of all labels together the most; a label at
    0.5 gets `0.5 / tolerance` of them, and one without a success in its first rounds fewer. (Stopping at equal widths
    of the intervals would spend as many as a fixed number with the same error.)

    The probability of an error of the interval is split evenly over all possible looks (Bonferroni), so that with Beta
    intervals *every* interval looked at covers the value with probability `confidence` at the least, whenever the rule
    stops; Wilson intervals are narrower and reach it on average over the values.

    Args:
        tolerance (`float`, *optional*, defaults to `0.02`):
            Standard deviation of an outcome per rollout at which a label is settled, in (0, 0.5).
        min_rollouts (`int`, *optional*, defaults to `4`):
            Rollouts of the first round.
        max_rollouts (`int`, *optional*, defaults to `64`):
            Most rollouts of a label.
        confidence (`float`, *optional*, defaults to `0.5`):
            Joint coverage of all looks, in (0, 1). Higher is more careful about labels without any success so far.
        kind (`str`, *optional*, defaults to `"wilson"`):
            `"wilson"` or `"beta"`.

    Raises:
        `ValueError`: When a number is outside its range.
    """

    tolerance: float = 0.02
    min_rollouts: int = 4
    max_rollouts: int = 64
    confidence: float = 0.5
    kind: IntervalKind = "wilson"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 0.5:
            raise ValueError(
                f"Got tolerance={self.tolerance}. An outcome has a standard deviation of at most 0.5, so the rule "
                "would stop at once or never. Use a number in (0, 0.5)."
            )
        if not 1 <= self.min_rollouts <= self.max_rollouts:
            raise ValueError(
                f"Got min_rollouts={self.min_rollouts} and max_rollouts={self.max_rollouts}, so the first round has "
                "no rollouts or more than allowed. Use 1 <= min_rollouts <= max_rollouts."
            )
        value_interval(0, 1, self.confidence, self.kind)

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rollouts of each round: a quarter as many again as there are already, up to `max_rollouts` in total."""
        sizes, total = [self.min_rollouts], self.min_rollouts
        while total < self.max_rollouts:
            sizes.append(min(max(1, total // 4), self.max_rollouts - total))
            total += sizes[-1]
        return tuple(sizes)

    def settled(self, num_correct: int, num_rollouts: int) -> bool:
        """Whether a label needs no further round.

        Args:
            num_correct (`int`):
                Correct rollouts so far.
            num_rollouts (`int`):
                Rollouts so far; those without an outcome do not count.

        Returns:
            `bool`: Whether one more would change little, for every value in the interval at this look's share of the
            error.
        """
        if num_rollouts == 0:
            return False
        look_confidence = 1 - (1 - self.confidence) / len(self.rounds)
        low, high = value_interval(num_correct, num_rollouts, look_confidence, self.kind)
        worst = min(max(low, 0.5), high)
        return math.sqrt(worst * (1 - worst)) <= self.tolerance * num_rollouts
