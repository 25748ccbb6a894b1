"""A verifier of paths whose quality is a number: exact values of a prover, blurred."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from statistics import NormalDist
from typing import Any

from trl_prl.demo.path_prover import PathProcessReward


LEAST = 1e-4
"""Values nearer to 0 or 1 count as this near before they are blurred, so that what is impossible can be believed."""


class GradedPathReward(PathProcessReward):
    """Exact values of a prover with Gaussian noise on their logits: of its own for every prefix, and always the same.

    Args:
        wander (`float`):
            Of the prover, as in [`PathProcessReward`]. 1 is about the shipped policy.
        sigma (`float`):
            Standard deviation of the noise in nats. 0 gives the exact values.
        salt (`str`, *optional*, defaults to `""`):
            Another one gives other noise.
        by_place (`bool`, *optional*, defaults to `False`):
            Whether all prefixes of a problem that end with the same line share their noise, as a verifier errs that
            misjudges a place.
    """

    def __init__(self, wander: float, sigma: float, salt: str = "", by_place: bool = False) -> None:
        super().__init__(wander)
        self.sigma = sigma
        self.salt = salt
        self.by_place = by_place

    def __call__(
        self,
        prompts: Sequence[str],
        steps: Sequence[Sequence[str]],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[list[float | None]]:
        """Score steps, as [`PathProcessReward`] does."""
        blurred: list[list[float | None]] = []
        for prompt, parts, values in zip(prompts, steps, super().__call__(prompts, steps, finished), strict=True):
            row: list[float | None] = []
            text = prompt
            for part, value in zip(parts, values, strict=True):
                text = (prompt if self.by_place else text) + part
                row.append(self._blurred(float(value or 0.0), text))
            blurred.append(row)
        return blurred

    def initial_values(self, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Values of prompts, blurred too."""
        return [
            self._blurred(value, text) for value, text in zip(super().initial_values(prompts), prompts, strict=True)
        ]

    def _blurred(self, value: float, text: str) -> float:
        if not self.sigma:
            return value
        number = int.from_bytes(blake2b(f"{self.salt}\n{text}".encode(), digest_size=6).digest(), "little")
        noise = NormalDist().inv_cdf((number + 0.5) / 2**48)
        value = min(max(value, LEAST), 1.0 - LEAST)
        return 1.0 / (1.0 + math.exp(-math.log(value / (1.0 - value)) - self.sigma * noise))


def sigma_of(auroc: float, measure: Callable[[float], float]) -> float:
    """The noise at which a verifier has an AUROC, by bisection.

    Args:
        auroc (`float`):
            What is wanted.
        measure (`Callable`):
            AUROC by sigma; it falls with sigma.

    Returns:
        `float`: Standard deviation, at most 64.
    """
    low, high = 0.0, 64.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) > auroc else (low, middle)
    return (low + high) / 2
