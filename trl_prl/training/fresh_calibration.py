"""Calibration of a process reward on the policy's own rollouts, for free.

A value is the probability that a *prover*, going on from a prefix, reaches a right answer; the outcome of the policy's
own continuation says nothing about it where the prover is another policy. Behind the last step of a finished solution
nothing is left to go on with: there the value of every prover is the outcome itself. So only the last step's value of
solutions that ended on their own is compared, and no further rollout or forward is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trl_prl.metrics.step_values import verifier_metrics


# Value of the last step, outcome, number of steps.
Pair = tuple[float, float, int]


def ended_on_their_own(
    completion_ids: torch.Tensor, step_ids: torch.Tensor, eos_token_ids: Iterable[int]
) -> list[bool]:
    """Whether the policy's last token ends a completion.

    Args:
        completion_ids (`torch.Tensor`):
            Tokens of shape (B, T).
        step_ids (`torch.Tensor`):
            Step of each token of shape (B, T), -1 off the action mask.
        eos_token_ids (`Iterable[int]`):
            Tokens that end a completion.

    Returns:
        `list[bool]`: One mark per completion, False for one without tokens.
    """
    ends = set(eos_token_ids)
    rows = zip(completion_ids.tolist(), (step_ids >= 0).tolist(), strict=True)
    tokens = ([token for token, is_action in zip(*row, strict=True) if is_action] for row in rows)
    return [bool(row) and row[-1] in ends for row in tokens]


def last_values(values: torch.Tensor, num_steps: Sequence[int], best_of_k: int) -> list[float]:
    """Values of the last steps under the prover itself.

    Args:
        values (`torch.Tensor`):
            Values of the steps of shape (B, S), NaN where there is no score.
        num_steps (`Sequence[int]`):
            Steps of each completion.
        best_of_k (`int`):
            The values are those of the best of K samples; of a finished solution there is only one.

    Returns:
        `list[float]`: One value per completion, NaN where there is none.
    """
    last = [float(row[n - 1]) if n else math.nan for row, n in zip(values, num_steps, strict=True)]
    # A value outside [0, 1] is left as it is; it is reported where values are read.
    return [1.0 - (1.0 - value) ** (1.0 / best_of_k) if 0.0 <= value <= 1.0 else value for value in last]


class FreshCalibration:
    """Collects values and outcomes of finished solutions, and compares them every few optimizer steps.

    Args:
        num_optimizer_steps (`int`):
            Optimizer steps between two comparisons.
    """

    def __init__(self, num_optimizer_steps: int) -> None:
        self.num_optimizer_steps = num_optimizer_steps
        self.pairs: list[Pair] = []
        self._first: int | None = None

    def add(
        self,
        optimizer_step: int,
        values: Iterable[float],
        outcomes: Iterable[float],
        num_steps: Iterable[int],
        finished: Iterable[bool],
    ) -> bool:
        """Take in one rollout of this process.

        Args:
            optimizer_step (`int`):
                Optimizer steps done so far.
            values (`Iterable[float]`):
                Values of the last steps.
            outcomes (`Iterable[float]`):
                Outcome rewards.
            num_steps (`Iterable[int]`):
                Steps of each completion.
            finished (`Iterable[bool]`):
                Whether each completion ended on its own.

        Returns:
            `bool`: Whether a comparison is due, on all processes alike.

        Raises:
            `ValueError`: if a value or an outcome is not in [0, 1].
        """
        # The window starts anew where training is resumed.
        if self._first is None or optimizer_step < self._first:
            self._first, self.pairs = optimizer_step, []
        for value, outcome, length, ended in zip(values, outcomes, num_steps, finished, strict=True):
            if not ended or math.isnan(value) or math.isnan(outcome):
                continue
            for name, number in (("value of a step", value), ("first reward function's result", outcome)):
                if not 0.0 <= number <= 1.0:
                    raise ValueError(
                        f"`calibration_steps` is set, and the {name} is {number:g}. Calibration compares "
                        "probabilities with outcomes, so both must lie in [0, 1]. Put the outcome reward first in "
                        "`reward_funcs` and return probabilities from the process reward, or set "
                        "`calibration_steps=0`."
                    )
            self.pairs.append((value, outcome, length))
        return optimizer_step + 1 - self._first >= self.num_optimizer_steps

    def start_window(self, optimizer_step: int) -> None:
        """Forget what was compared; the next window begins after this optimizer step."""
        self._first, self.pairs = optimizer_step + 1, []


def calibration_metrics(pairs: Sequence[Pair]) -> dict[str, float]:
    """Compare values with outcomes.

    Args:
        pairs (`Sequence[Pair]`):
            Value of the last step, outcome and number of steps of each solution, of all processes.

    Returns:
        `dict[str, float]`: `num_solutions`, `mean_value`, `mean_outcome`, `brier`, `ece`, `auroc`, and the Brier score
        by position of the last step, as `verifier_metrics` computes and names them; what cannot be
        computed is left out.
    """
    size = max((length for _, _, length in pairs), default=0)
    values: NDArray[np.float64] = np.full((len(pairs), size), np.nan)
    outcomes = values.copy()
    for row, (value, outcome, length) in enumerate(pairs):
        values[row, length - 1], outcomes[row, length - 1] = value, outcome
    found = verifier_metrics(values, outcomes)
    names = {"mean_label": "mean_outcome", "num_labels": "num_solutions"}
    kept = ("brier", "ece", "auroc", "mean_value", "mean_label", "num_labels")
    return {
        names.get(name, name): number
        for name, number in found.items()
        if name in kept or name.startswith("brier_step_")
    }
