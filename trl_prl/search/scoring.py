"""Scores of partial solutions: value, progress, and the effective reward that a search ranks by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from trl_prl.generation.rollouts import Problem
from trl_prl.rewards.scoring import callable_name, progress_of, returned_type, score_values
from trl_prl.types import ProcessReward


RankBy = Literal["effective", "values", "advantages"]


@dataclass(frozen=True)
class EffectiveReward:
    """What partial solutions are ranked by: `Q + alpha·A`, from one process reward or two.

    Source: [PAV](https://huggingface.co/papers/2410.08146), eq. 5 and section 4: Q is the value under the policy that
    is searched, A the progress under a prover, which should be another one. The paper uses alpha 0.5 (0.2 for its
    largest model) and the Best-of-4 policy as prover.

    Args:
        values ([`ProcessReward`]):
            Values Q.
        advantages ([`ProcessReward`], *optional*):
            Values or advantages of the prover; by default, it is `values`.
        alpha (`float`, *optional*, defaults to `0.5`):
            Weight of the progress, not negative. 0 ranks by Q alone.
        best_of_k (`int`, *optional*, defaults to `1`):
            Prover: the Best-of-K policy of whoever the values for A are of. Q keeps its values.
        rank_by (`str`, *optional*, defaults to `"effective"`):
            `"effective"`, `"values"` (Q alone) or `"advantages"` (A alone).
        initial_value (`float`, *optional*):
            Value of every prompt under the prover, in [0, 1], where its process reward has none.

    Raises:
        `ValueError`: If a number is outside its range, `values` returns advantages, or the progress of the first step
            cannot be known.
    """

    values: ProcessReward
    advantages: ProcessReward | None = None
    alpha: float = 0.5
    best_of_k: int = 1
    rank_by: RankBy = "effective"
    initial_value: float | None = None

    def __post_init__(self) -> None:
        if self.rank_by not in get_args(RankBy) or not 0 <= self.alpha < math.inf or self.best_of_k < 1:
            raise ValueError(
                f"Got rank_by={self.rank_by!r}, alpha={self.alpha} and best_of_k={self.best_of_k}, by which nothing "
                f"can be ranked. Use one of {', '.join(get_args(RankBy))}, a finite alpha of at least 0, and at least "
                "1."
            )
        if returned_type(self.values, None) == "advantages":
            raise ValueError(
                f"The process reward '{callable_name(self.values)}' returns advantages, but finished solutions are "
                "compared by their value. Pass one that returns values, as an implicit PRM does with the option "
                "`returns=values`, and this one for the progress alone: `advantages`, or --advantage_reward of "
                "`trl-prl search`."
            )
        if self.needs_progress:
            self.check_progress()

    @property
    def prover(self) -> ProcessReward:
        """The process reward that the progress comes from."""
        return self.values if self.advantages is None else self.advantages

    @property
    def needs_progress(self) -> bool:
        """Whether the ranking depends on the progress at all."""
        return self.rank_by == "advantages" or (self.rank_by == "effective" and self.alpha > 0)

    @property
    def num_passes(self) -> int:
        """Process rewards that each text is given to."""
        return 1 + (self.needs_progress and self.advantages is not None)

    def check_progress(self) -> None:
        """Refuse a prover from which the progress of the first step, or that of its Best-of-K policy, is not known.

        Raises:
            `ValueError`: If its process reward is such a one.
        """
        name = callable_name(self.prover)
        if returned_type(self.prover, None) == "advantages":
            if self.best_of_k != 1:
                raise ValueError(
                    f"Got best_of_k={self.best_of_k}, but the process reward '{name}' returns advantages. The "
                    "transform 1 - (1 - Q)^K needs values. Pass one that returns values, or use best_of_k=1."
                )
        elif self.initial_value is None and not any(
            hasattr(self.prover, method) for method in ("initial_values", "score_solutions")
        ):
            raise ValueError(
                f"The process reward '{name}' says nothing about the prompt's own value, so the first step's progress "
                "cannot be computed. Give it a method `initial_values(prompts, **columns)`, pass `initial_value`, "
                "or, in a search that keeps places, rank by values alone (rank_by='values')."
            )

    def combine(self, value: float, advantage: float) -> float:
        """Score of a step from its value and progress; NaN where what it needs is not known."""
        if self.rank_by == "advantages":
            return advantage
        return value + self.alpha * advantage if self.needs_progress else value


@dataclass(frozen=True)
class ScoredSteps:
    """Scores of the steps of one solution, finished or not.

    Attributes:
        values (`tuple[float, ...]`):
            Q after each step.
        advantages (`tuple[float, ...]`):
            A of each step.
        scores (`tuple[float, ...]`):
            What each step is ranked by.
    """

    values: tuple[float, ...]
    advantages: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """Score of the last step; NaN where there is none."""
        return self.scores[-1] if self.scores else math.nan


def score_solutions(
    reward: EffectiveReward,
    problems: Sequence[Problem],
    steps: Sequence[Sequence[str]],
    finished: Sequence[bool],
) -> list[ScoredSteps]:
    """Score solutions, most of them unfinished.

    Args:
        reward ([`EffectiveReward`]):
            What to score with.
        problems (`Sequence[Problem]`):
            The problem of each solution.
        steps (`Sequence[Sequence[str]]`):
            Texts of its steps so far.
        finished (`Sequence[bool]`):
            Whether it has come to its end. Process rewards get it as the column `finished`: the last step of an
            unfinished solution is no outcome.

    Returns:
        `list[ScoredSteps]`: Scores of each, NaN where a process reward has none.
    """
    if not problems:
        return []
    names = [name for name in problems[0].columns if name not in ("finished", "prompts")]
    columns: dict[str, Any] = {name: [problem.columns[name] for problem in problems] for name in names}
    columns["finished"] = list(finished)
    prompts = [problem.prompt for problem in problems]
    given: dict[str, Any] = {"columns": columns, "initial_value": reward.initial_value}
    values, initial = score_values(reward.values, prompts, steps, **given)
    if reward.advantages is None:
        advantages = progress_of(values, initial, reward.best_of_k)
    elif reward.needs_progress:
        advantages = progress_of(*score_values(reward.advantages, prompts, steps, **given), reward.best_of_k)
    else:
        advantages = torch.full_like(values, math.nan)
    rows = []
    for row_values, row_advantages, texts in zip(values.tolist(), advantages.tolist(), steps, strict=True):
        row_values, row_advantages = row_values[: len(texts)], row_advantages[: len(texts)]
        scores = tuple(map(reward.combine, row_values, row_advantages))
        rows.append(ScoredSteps(tuple(row_values), tuple(row_advantages), scores))
    return rows
