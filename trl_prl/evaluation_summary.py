"""Estimates over evaluated samples, each with its interval, for all problems and per group.

Works on the rows of [`evaluation`](evaluation.py). A sample counts if its outcome is known; the others are counted
apart, and every number says of how many problems it is the mean.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trl_prl.aggregation import Aggregation, aggregate_step_values, best_of_n, majority_vote, weighted_vote
from trl_prl.intervals import wilson_interval
from trl_prl.metrics import best_at_k, bootstrap_pass_at_k, maj_at_k, pass_at_k
from trl_prl.resampling import bootstrap_interval


Row = Mapping[str, Any]

# Numeric columns with more values than this are cut into as many groups of about equal size.
_MAX_GROUPS = 5


@dataclass(frozen=True)
class SummaryParams:
    """What to estimate.

    Args:
        k (`tuple[int, ...]`):
            Numbers of samples for pass@k, maj@k and best@k.
        aggregations (`tuple[str, ...]`, *optional*, defaults to `("last", "min", "mean")`):
            How values of steps become the score of a sample, see [`aggregate_step_values`].
        group_by (`tuple[str, ...]`, *optional*):
            Columns, such as a difficulty or a source, to give the estimates for each value of.
        bootstrap_pass_at_k (`bool`, *optional*, defaults to `False`):
            Also give the bootstrap variant of FRPO.
        num_draws (`int`, *optional*, defaults to `1000`):
            Its draws.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage of intervals.
        seed (`int`, *optional*, defaults to `0`):
            Seed of resampling.
    """

    k: tuple[int, ...]
    aggregations: tuple[Aggregation, ...] = ("last", "min", "mean")
    group_by: tuple[str, ...] = ()
    bootstrap_pass_at_k: bool = False
    num_draws: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class _Counted:
    """Samples of a problem whose outcome is known."""

    correct: list[bool]
    answers: list[str | None]
    scores: dict[str, list[float]]

    @property
    def has_answer(self) -> bool:
        """Whether there is anything to vote for; without it, a vote is wrong."""
        return any(answer is not None for answer in self.answers)


def problem_values(rows: Sequence[Row], params: SummaryParams) -> dict[str, list[float | None]]:
    """Value of each metric on each problem.

    | metric | of a problem | estimator |
    |---|---|---|
    | `avg@n` | fraction of its samples that is correct | |
    | `pass@k` | whether one of k samples is correct | unbiased, over subsets without replacement |
    | `bootstrap_pass@k` | the same | share of draws with replacement, of FRPO |
    | `maj@k` | whether the most frequent answer of k samples is | exact mean over subsets, ties split |
    | `best@k/score` | whether the best of k samples by a score is | exact mean over subsets, ties split |
    | `majority_vote`, `best_of_n/score`, `weighted_vote/score` | one choice among all samples | first on ties |

    Args:
        rows (`Sequence[Mapping]`):
            Rows of one model.
        params ([`SummaryParams`]):
            What to estimate.

    Returns:
        `dict[str, list[float | None]]`: For each metric one value in [0, 1] per row; `None` where too few samples
        count.
    """
    counted = [_counted(row, params.aggregations) for row in rows]
    n = max((len(row["samples"]) for row in rows), default=0)
    with_answers = any(answer is not None for problem in counted for answer in problem.answers)
    names = sorted({name for problem in counted for name in problem.scores})

    def over(value: Callable[[_Counted], float], at_least: int = 1) -> list[float | None]:
        return [float(value(problem)) if len(problem.correct) >= at_least else None for problem in counted]

    found: dict[str, list[float | None]] = {f"avg@{n}": over(lambda p: sum(p.correct) / len(p.correct))}
    for k in params.k:
        found[f"pass@{k}"] = over(lambda p, k=k: pass_at_k(len(p.correct), sum(p.correct), k), k)  # type: ignore[misc]
    if params.bootstrap_pass_at_k:
        for k in params.k:
            found[f"bootstrap_pass@{k}"] = [
                # Another seed for every problem, or their errors would add up.
                bootstrap_pass_at_k(len(p.correct), sum(p.correct), k, params.num_draws, params.seed + row["row"])
                if p.correct
                else None
                for p, row in zip(counted, rows, strict=True)
            ]
    if with_answers:
        for k in params.k:
            found[f"maj@{k}"] = over(lambda p, k=k: maj_at_k(p.answers, p.correct, k), k)  # type: ignore[misc]
        found["majority_vote"] = over(lambda p: p.has_answer and p.correct[majority_vote(p.answers)])
    for name in names:

        def scores(problem: _Counted, name: str = name) -> list[float]:
            return problem.scores.get(name, [math.nan] * len(problem.correct))

        for k in params.k:
            found[f"best@{k}/{name}"] = over(lambda p, k=k, s=scores: best_at_k(s(p), p.correct, k), k)  # type: ignore[misc]
        found[f"best_of_n/{name}"] = over(lambda p, s=scores: p.correct[best_of_n(s(p))])  # type: ignore[misc]
        if with_answers:
            found[f"weighted_vote/{name}"] = over(
                lambda p, s=scores: p.has_answer and p.correct[weighted_vote(p.answers, s(p))]  # type: ignore[misc]
            )
    return found


def _counted(row: Row, aggregations: Sequence[Aggregation]) -> _Counted:
    samples = [sample for sample in row["samples"] if sample["correct"] is not None]
    scores: dict[str, list[float]] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample["scores"]):
        values = [sample["scores"].get(name) for sample in samples]
        if any(isinstance(value, list) for value in values):
            for aggregation in aggregations:
                scores[f"{name}/{aggregation}"] = [aggregate_step_values(value or [], aggregation) for value in values]
        else:
            scores[name] = [math.nan if value is None else float(value) for value in values]
    return _Counted([s["correct"] for s in samples], [s["answer"] for s in samples], scores)


def summarise(rows: Sequence[Row], params: SummaryParams) -> dict[str, Any]:
    """Estimates of one model, for all problems and per group.

    Args:
        rows (`Sequence[Mapping]`):
            Rows of one model.
        params ([`SummaryParams`]):
            What to estimate.

    Returns:
        `dict`: `num_problems`, `num_samples`, `num_counted`, `num_unfinished`, `num_unchecked`, `num_without_answer`,
        `num_tokens`; `accuracy_bounds`, the fraction of *all* samples that is correct if those that do not count are
        all wrong, or all right; `metrics`; and `groups`, by column and value, each with `num_problems` and `metrics`.
    """
    values = problem_values(rows, params)
    samples = [sample for row in rows for sample in row["samples"]]
    num_counted = sum(sample["correct"] is not None for sample in samples)
    num_correct = sum(sample["correct"] is True for sample in samples)
    num_unknown = len(samples) - num_counted
    tokens = [sample["num_tokens"] for sample in samples if sample["num_tokens"] is not None]
    groups: dict[str, Any] = {}
    for column in params.group_by:
        groups[column] = {
            label: {
                "num_problems": len(members),
                "metrics": {name: estimate([metric[i] for i in members], params) for name, metric in values.items()},
            }
            for label, members in group_rows(rows, column).items()
        }
    return {
        "num_problems": len(rows),
        "num_samples": len(samples),
        "num_counted": num_counted,
        "num_unfinished": sum(
            sample["finish_reason"] == "length" or sample["why_not"] == "unfinished" for sample in samples
        ),
        "num_unchecked": sum(sample["why_not"] == "unchecked" for sample in samples),
        "num_without_answer": sum(sample["answer"] is None for sample in samples),
        "num_tokens": sum(tokens) if tokens else None,
        "accuracy_bounds": [num_correct / len(samples), (num_correct + num_unknown) / len(samples)]
        if samples
        else None,
        "metrics": {name: estimate(metric, params) for name, metric in values.items()},
        "groups": groups,
    }


def estimate(values: Sequence[float | None], params: SummaryParams) -> dict[str, Any]:
    """Mean over problems with its interval.

    Args:
        values (`Sequence[float | None]`):
            One value per problem, `None` where there is none.
        params ([`SummaryParams`]):
            Confidence and seed.

    Returns:
        `dict`: `value`, `interval` and `interval_method` (`"wilson"` where every problem is right or wrong, else
        `"bootstrap"` over problems), `num_problems`; all but the last are `None` without a problem.
    """
    known = [value for value in values if value is not None]
    if not known:
        return {"value": None, "interval": None, "interval_method": None, "num_problems": 0}
    if set(known) <= {0.0, 1.0}:
        interval, method = wilson_interval(int(sum(known)), len(known), params.confidence), "wilson"
    else:
        interval, method = bootstrap_interval(known, params.confidence, seed=params.seed), "bootstrap"
    return {
        "value": math.fsum(known) / len(known),
        "interval": list(interval),
        "interval_method": method,
        "num_problems": len(known),
    }


def group_rows(rows: Sequence[Row], column: str) -> dict[str, list[int]]:
    """Which rows have which value of a column.

    Args:
        rows (`Sequence[Mapping]`):
            Rows of one model.
        column (`str`):
            A column of the problems.

    Returns:
        `dict[str, list[int]]`: Positions of the rows of each value, in the order of the values. Numbers with more than
        five values are cut at their quantiles. Rows without a value are under `"(none)"`.

    Raises:
        `ValueError`: If no row has the column.
    """
    values = [row["columns"].get(column) for row in rows]
    known = [value for value in values if value is not None]
    if rows and not known:
        available = ", ".join(sorted({name for row in rows for name in row["columns"]}))
        raise ValueError(
            f"No problem has the column {column!r}, so there are no groups. The columns are: {available or 'none'}."
        )
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if is_number and len(set(known)) > _MAX_GROUPS:
        cuts = np.quantile(known, np.linspace(0, 1, _MAX_GROUPS + 1)[1:-1])
        places = [None if value is None else int(np.searchsorted(cuts, value, side="left")) for value in values]
        labels = {
            place: f"{min(members):g} to {max(members):g}" if min(members) < max(members) else f"{members[0]:g}"
            for place in sorted({place for place in places if place is not None})
            if (members := [value for value, other in zip(values, places, strict=True) if other == place])
        }
    else:
        places = values
        labels = {value: str(value) for value in sorted(set(map(_hashable, known)), key=_sort_key)}
        places = [None if value is None else _hashable(value) for value in values]
    found: dict[Any, list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        found[place].append(i)
    groups = {label: found[place] for place, label in labels.items()}
    return {**groups, "(none)": found[None]} if found[None] else groups


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True, default=str)


def _sort_key(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value)
