"""The prover of the path task: where it goes next, and its exact values after every line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .paths import MAX_LINES, NUM_NODES, Walk, distances, is_right, neighbour_matrix, parse_problem, start_of


if TYPE_CHECKING:
    from numpy.typing import NDArray


@cache
def step_probs(wander: float) -> NDArray[np.float64]:
    """Where the prover goes next.

    Args:
        wander (`float`):
            Probability of a step to any neighbour.

    Returns:
        `np.ndarray`: Probabilities of shape (goal, node, next node); a row sums to 1 unless the node is the goal.
    """
    joined, apart = neighbour_matrix(), distances()
    closer = joined[None] & (apart.T[:, None, :] < apart.T[:, :, None])
    best = closer / np.maximum(closer.sum(-1, keepdims=True), 1)
    anywhere = joined / joined.sum(-1, keepdims=True)
    return (1.0 - wander) * best + wander * anywhere[None]


@cache
def values(wander: float) -> NDArray[np.float64]:
    """Probability that the prover reaches a goal.

    Args:
        wander (`float`):
            Probability of a step to any neighbour.

    Returns:
        `np.ndarray`: Probabilities of shape (lines left, goal, node), for 0 to `MAX_LINES` lines.
    """
    probs, at_goal = step_probs(wander), np.eye(NUM_NODES, dtype=bool)
    table = [at_goal.astype(float)]
    for _ in range(MAX_LINES):
        table.append(np.where(at_goal, 1.0, np.einsum("gnm,gm->gn", probs, table[-1])))
    return np.stack(table)


class PathProcessReward:
    """Exact values of the prover after every step: a process reward without a learned verifier.

    The value is 0 after a line that is no neighbour of the one before, 1 once the goal is reached, and else the
    probability that the prover gets there in the lines left, see [`values`]. A step may hold any number of lines; one
    that ends inside a line has the value of the lines before. The last step of a finished completion has the outcome
    as its value.

    Args:
        wander (`float`, *optional*, defaults to `0.3`):
            Probability that a step of the prover goes to any neighbour, in [0, 1].

    Raises:
        `ValueError`: If `wander` is no probability.
    """

    returns: Literal["values"] = "values"

    def __init__(self, wander: float = 0.3) -> None:
        if not 0 <= wander <= 1:
            raise ValueError(f"Got wander={wander}, which is no probability. Use a number in [0, 1], such as 0.3.")
        self.wander = float(wander)
        self.__name__ = f"path_wander_{wander:g}"

    def __call__(
        self,
        prompts: Sequence[str],
        steps: Sequence[Sequence[str]],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[list[float | None]]:
        """Score steps.

        Args:
            prompts (`Sequence[str]`):
                One problem per completion.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each completion.
            finished (`Sequence[bool]`, *optional*):
                Whether each completion has ended; all of them by default.
            **columns:
                Not used.

        Returns:
            `list[list[float | None]]`: One probability of success per step, in [0, 1].
        """
        finished = [True] * len(steps) if finished is None else finished
        return [
            self._score(prompt, list(texts), bool(ended))
            for prompt, texts, ended in zip(prompts, steps, finished, strict=True)
        ]

    def _score(self, prompt: str, texts: list[str], ended: bool) -> list[float | None]:
        walk, rest = start_of(parse_problem(prompt)), ""
        scores: list[float | None] = []
        for text in texts:
            *lines, rest = (rest + text).split("\n")
            for line in filter(None, lines):
                walk = walk.go(line)
            scores.append(self._value(walk))
        if scores and ended:
            scores[-1] = float(is_right(prompt, "".join(texts)))
        return scores

    def _value(self, walk: Walk) -> float:
        return (
            0.0 if walk.node is None else float(values(self.wander)[MAX_LINES - walk.num_lines, walk.goal, walk.node])
        )

    def initial_values(self, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Value of each prompt before the first step, `V^mu(prompt)`."""
        return [self._value(start_of(parse_problem(prompt))) for prompt in prompts]
