"""Estimators over samples whose correctness is known.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of `k` samples is correct.

    `1 - C(n - c, k) / C(n, k)`, computed as a product so that nothing overflows. Source: Chen et al.,
    [Evaluating Large Language Models Trained on Code](https://huggingface.co/papers/2107.03374), section 2.1.

    Args:
        num_samples (`int`):
            Samples drawn for the problem, n.
        num_correct (`int`):
            Correct ones among them, c.
        k (`int`):
            Samples allowed, between 1 and n.

    Returns:
        `float`: The estimate, in [0, 1]; 1 when fewer than `k` samples are wrong.

    Raises:
        `ValueError`: if the counts do not fit together.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@{k} was asked of {num_samples} samples with {num_correct} correct. It needs 0 <= correct <= "
            "samples and 1 <= k <= samples, because it averages over subsets of k samples. Draw more samples or "
            "lower k."
        )
    num_wrong = num_samples - num_correct
    if num_wrong < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_wrong + 1, num_samples + 1))


def mean_pass_at_k(correct: Iterable[Sequence[bool]], k: int) -> float:
    """Mean of [`pass_at_k`] over problems.

    Args:
        correct (`Iterable[Sequence[bool]]`):
            For each problem, which of its samples are correct.
        k (`int`):
            Samples allowed.

    Returns:
        `float`: The mean, in [0, 1]. With `k = 1` this is avg@n, the mean accuracy of single samples.

    Raises:
        `ValueError`: if there is no problem, or a problem has fewer than `k` samples.
    """
    values = [pass_at_k(len(row), sum(row), k) for row in correct]
    if not values:
        raise ValueError(f"pass@{k} was asked of no problems, and there is no mean of nothing. Pass at least one.")
    return math.fsum(values) / len(values)


def bootstrap_pass_at_k(num_samples: int, num_correct: int, k: int, num_draws: int = 1000, seed: int = 0) -> float:
    """Bootstrap estimate of pass@k as in FRPO, from draws of `k` samples *with replacement*.

    The share of the draws that hold a correct sample: `1 - (1 - c/n)^k` on average over seeds. For `k` above 1 that is
    below the unbiased [`pass_at_k`], which draws without replacement, and it does not reach 1 at `k = n`. Numbers of
    the two do not compare. Source: [FRPO](https://huggingface.co/papers/2601.10201), experiments, 1,000 draws.

    Args:
        num_samples (`int`):
            Samples drawn for the problem, n.
        num_correct (`int`):
            Correct ones among them, c.
        k (`int`):
            Samples per draw, at least 1; it may exceed n.
        num_draws (`int`, *optional*, defaults to `1000`):
            Draws.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `float`: The estimate, in [0, 1], a multiple of 1 / `num_draws`.

    Raises:
        `ValueError`: if the counts do not fit together.
    """
    if not 0 <= num_correct <= num_samples or num_samples < 1 or k < 1 or num_draws < 1:
        raise ValueError(
            f"Bootstrapped pass@{k} was asked of {num_samples} samples with {num_correct} correct and {num_draws} "
            "draws. It needs 0 <= correct <= samples and at least one sample, one draw and k = 1."
        )
    drawn = np.random.default_rng(seed).integers(num_samples, size=(num_draws, k))
    return float((drawn < num_correct).any(axis=1).mean())


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Probability that a majority vote among `k` of the samples, drawn without replacement, is correct.

    The exact mean over all subsets of size k and all orders in them, with the vote of
    [Wang et al.](https://huggingface.co/papers/2203.11171) where the first of the most frequent answers wins, so that
    ties are split evenly. It does not depend on the order of the samples. At `k = 1` it is the mean accuracy, where
    every sample has an answer.

    Computed from the counts of the answers: with independent binomial counts of rate `k / n`, conditioned on their sum
    being k, the counts are those of a random subset.

    Args:
        answers (`Sequence[Hashable | None]`):
            Final answer of each sample. `None`, no answer, has no vote; a subset without any vote is wrong.
        correct (`Sequence[bool]`):
            Whether each sample is correct. Where samples of one answer differ in it, its share counts.
        k (`int`):
            Samples that vote, between 1 and n.

    Returns:
        `float`: The probability, in [0, 1].

    Raises:
        `ValueError`: if the lengths differ or `k` is out of range.
    """
    n = len(answers)
    if len(correct) != n or not 1 <= k <= n:
        raise ValueError(
            f"maj@{k} was asked of {n} answers with {len(correct)} marks. It needs one mark per answer and 1 <= k <= "
            "answers, because it averages over subsets of k samples. Draw more samples or lower k."
        )
    from scipy.stats import binom

    counts = Counter(answer for answer in answers if answer is not None)
    shares = {
        answer: math.fsum(right for other, right in zip(answers, correct, strict=True) if other == answer) / count
        for answer, count in counts.items()
    }
    num_silent = n - counts.total()
    sizes = {*counts.values(), num_silent, n}
    chances = {size: binom.pmf(np.arange(min(size, k) + 1), size, k / n) for size in sizes}
    groups = [(chances[count], shares[answer]) for answer, count in counts.items()]
    most_votes = min(k, max(counts.values(), default=0))
    total = sum(_won_with(votes, groups, chances[num_silent], k) for votes in range(1, most_votes + 1))
    return min(1.0, total / float(chances[n][k]))


def _won_with(votes: int, groups: Sequence[tuple[np.ndarray, float]], silent: np.ndarray, k: int) -> float:
    """Chance that the winners have exactly `votes` votes, weighted by the share of them that is right.

    Sums over the joint counts of all answers, each with the chances of its counts and its share; `table[s, t]` has the
    chance that the answers so far have s votes in sum and t of them exactly `votes`, and `right[s, t]` that chance
    times the summed shares of those t.
    """
    most_tied = min(k // votes, len(groups))
    table = np.zeros((k + 1, most_tied + 1))
    table[: len(silent), 0] = silent
    right = np.zeros_like(table)
    for chances, share in groups:
        new_table, new_right = np.zeros_like(table), np.zeros_like(table)
        for number in range(min(votes, len(chances))):
            new_table[number:] += chances[number] * table[: k + 1 - number]
            new_right[number:] += chances[number] * right[: k + 1 - number]
        if votes < len(chances):
            before, right_before = table[: k + 1 - votes, :-1], right[: k + 1 - votes, :-1]
            new_table[votes:, 1:] += chances[votes] * before
            new_right[votes:, 1:] += chances[votes] * (right_before + share * before)
        table, right = new_table, new_right
    return float((right[k, 1:] / np.arange(1, most_tied + 1)).sum())


def best_at_k(scores: Sequence[float | None], correct: Sequence[bool], k: int) -> float:
    """Probability that the sample with the highest score among `k`, drawn without replacement, is correct.

    The exact mean over all subsets of size k, ties split evenly. At `k = 1` it is the mean accuracy, at `k = n` the
    accuracy of best-of-n.

    Args:
        scores (`Sequence[float | None]`):
            Score of each sample, by a verifier or an outcome reward model. `None` or NaN never beats a score.
        correct (`Sequence[bool]`):
            Whether each sample is correct.
        k (`int`):
            Samples to choose from, between 1 and n.

    Returns:
        `float`: The probability, in [0, 1].

    Raises:
        `ValueError`: if the lengths differ or `k` is out of range.
    """
    n = len(scores)
    if len(correct) != n or not 1 <= k <= n:
        raise ValueError(
            f"best-of-{k} was asked of {n} scores with {len(correct)} marks. It needs one mark per score and 1 <= k "
            "<= scores, because it averages over subsets of k samples. Draw more samples or lower k."
        )
    # An unknown score comes below -inf, which a verifier may well give.
    keys = [(0, 0.0) if score is None or math.isnan(score) else (1, float(score)) for score in scores]
    total, num_lower = 0.0, 0
    for key, tied in sorted(Counter(keys).items()):
        # Subsets whose best is in this group: those within the groups up to here, but not within those below.
        chance = (math.comb(num_lower + tied, k) - math.comb(num_lower, k)) / math.comb(n, k)
        share = sum(right for other, right in zip(keys, correct, strict=True) if other == key) / tied
        total += chance * share
        num_lower += tied
    return min(1.0, total)
