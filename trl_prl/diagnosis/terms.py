"""What a prover is worth to a policy: the two terms of PAV's Theorem 3.1, and what credit they give a step.

A state `s` is a prefix that the base policy `pi` visits, an action `a` a next step that it samples there. As `A^mu(s,
a)` and `Q^mu(s, a)` differ by a constant of the state, and `A^pi` has mean zero over the actions of `pi`, the two
terms are

    distinguishability = E_s Var_a[Q^mu(s, a)]          alignment = E_s Cov_a(Q^mu(s, a), Q^pi(s, a))

Both need at least two independent actions of a state, and no baseline.

Source: https://huggingface.co/papers/2410.08146, Theorem 3.1. Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


Array = NDArray[np.float64]


@dataclass(frozen=True)
class Terms:
    """Moments over states and actions of the base policy, in H strata of states; the last axis runs over candidates.

    Args:
        share (`np.ndarray` of shape (..., H, 1)):
            Share of the visits in each stratum.
        distinguishability (`np.ndarray` of shape (..., H, C)):
            `E_s Var_a[Q^mu]`, the first term of Theorem 3.1 without its constant.
        alignment (`np.ndarray` of shape (..., H, C)):
            `E_s Cov_a(Q^mu, Q^pi)`, the second one.
        own_variance (`np.ndarray` of shape (..., H, 1)):
            `E_s Var_a[Q^pi]`: both terms, if the base policy is its own prover.
        outcome_variance (`np.ndarray` of shape (..., H, 1)):
            `E_s V^pi (1 - V^pi)`: variance of the outcome of a rollout from a state.
    """

    share: Array
    distinguishability: Array
    alignment: Array
    own_variance: Array
    outcome_variance: Array

    def pooled(self, name: str) -> Array:
        """One of the moments over all states, of shape (..., C) or (..., 1)."""
        values: Array = getattr(self, name)
        return (self.share * values).sum(-2)

    @property
    def total(self) -> Array:
        """Sum of the two terms over all states: what Theorem 3.1 ranks provers by."""
        return self.pooled("distinguishability") + self.pooled("alignment")

    @property
    def correlation(self) -> Array:
        """Correlation of `A^mu` and `A^pi` over all states; NaN where an estimated variance is not positive."""
        product = self.pooled("distinguishability") * self.pooled("own_variance")
        return self.pooled("alignment") / np.sqrt(np.where(product > 0, product, np.nan))


def terms_from_sums(sums: Array) -> Terms:
    """Averages over visited states, from sums over problems.

    Args:
        sums (`np.ndarray` of shape (..., H, 2 C + 3)):
            Sums of rows of [`problem_sums`].

    Returns:
        [`Terms`]: With the leading axes of `sums`. A stratum without visits has the share 0 and moments 0.
    """
    visits = sums[..., :1]
    means = sums[..., 1:] / np.where(visits > 0, visits, 1.0)
    number = (means.shape[-1] - 2) // 2
    share = visits / visits.sum(-2, keepdims=True)
    return Terms(share, means[..., :number], means[..., number : 2 * number], means[..., -2:-1], means[..., -1:])


def bootstrap_terms(sums: Array, num_resamples: int = 2000, seed: int = 0) -> Terms:
    """Terms of problems drawn with replacement: their spread is that of the estimates.

    Whole problems are drawn, since states of one problem share its rollouts; all candidates see the same draws, so
    that differences between them are paired.

    Args:
        sums (`np.ndarray` of shape (P, H, 2 C + 3)):
            As [`problem_sums`] returns them.
        num_resamples (`int`, *optional*, defaults to `2000`):
            Number of resamples R.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.

    Returns:
        [`Terms`]: With R as the leading axis.
    """
    number = len(sums)
    weights = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), num_resamples)
    return terms_from_sums(np.einsum("rp,phm->rhm", weights, sums))
