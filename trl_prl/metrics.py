"""Estimators over samples whose correctness is known.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


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
