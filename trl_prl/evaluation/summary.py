"""Estimates over evaluated samples, each with its interval, for all problems and per group.

Works on the rows of [`check_samples`](samples.py). A sample counts if its outcome is known; the others are counted
apart, and every number says of how many problems it is the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_prl.metrics.aggregation import Aggregation, aggregate_step_values, best_of_n, majority_vote, weighted_vote
from trl_prl.metrics.groups import group_rows
from trl_prl.metrics.intervals import value_interval
from trl_prl.metrics.resampling import bootstrap_interval
from trl_prl.metrics.sampling_estimates import best_at_k, bootstrap_pass_at_k, maj_at_k, pass_at_k
from trl_prl.rewards.equality import group_answers


Row = Mapping[str, Any]
Values = Mapping[str, Sequence[float | None]]
"""What [`problem_values`] returns: for each metric one value per row."""


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
    """Samples of a problem whose outcome is known. Answers that are mathematically equal have one name."""

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
    return _Counted([s["correct"] for s in samples], group_answers([s["answer"] for s in samples]), scores)


def summarise(rows: Sequence[Row], params: SummaryParams, values: Values | None = None) -> dict[str, Any]:
    """Estimates of one model, for all problems and per group.

    Args:
        rows (`Sequence[Mapping]`):
            Rows of one model.
        params ([`SummaryParams`]):
            What to estimate.
        values (`Mapping`, *optional*):
            [`problem_values`] of the rows, where they are known already.

    Returns:
        `dict`: `num_problems`, `num_samples`, `num_counted`, `num_unfinished`, `num_unchecked`, `num_without_answer`,
        `num_tokens`; `avg_by_unfinished`, mean accuracy with the unfinished samples `"wrong"` and without them
        (`"exclude"`), whatever the metrics count them as; `accuracy_bounds`, the fraction of *all* samples that is
        correct if those that do not count are all wrong, or all right; `metrics`; and `groups`, by column and value,
        each with `num_problems` and `metrics`. What is defined for no problem is left out.
    """
    values = problem_values(rows, params) if values is None else values
    samples = [sample for row in rows for sample in row["samples"]]
    num_unknown = sum(sample["correct"] is None for sample in samples)
    num_correct = sum(sample["correct"] is True for sample in samples)
    tokens = [sample["num_tokens"] for sample in samples if sample["num_tokens"] is not None]
    bounds = [num_correct / len(samples), (num_correct + num_unknown) / len(samples)] if samples else None
    summary = {
        "num_problems": len(rows),
        "num_samples": len(samples),
        "num_counted": len(samples) - num_unknown,
        "num_unfinished": sum(map(is_unfinished, samples)),
        "num_unchecked": sum(sample["why_not"] == "unchecked" for sample in samples),
        "num_without_answer": sum(sample["answer"] is None for sample in samples),
        "num_tokens": sum(tokens) if tokens else None,
        "avg_by_unfinished": _avg_by_unfinished(rows, params),
        "accuracy_bounds": bounds,
        "metrics": _estimates(values, params),
        "groups": {
            column: {
                label: {
                    "num_problems": len(members),
                    "metrics": _estimates({n: [metric[i] for i in members] for n, metric in values.items()}, params),
                }
                for label, members in group_rows(rows, column).items()
            }
            for column in params.group_by
        },
    }
    return {name: value for name, value in summary.items() if value is not None}


def is_unfinished(sample: Mapping[str, Any]) -> bool:
    """Whether a sample came to the length limit."""
    return sample["finish_reason"] == "length" or sample["why_not"] == "unfinished"


def _avg_by_unfinished(rows: Sequence[Row], params: SummaryParams) -> dict[str, Any]:
    """Mean accuracy with unfinished samples as wrong, and without them."""
    ways: dict[str, list[float | None]] = {"wrong": [], "exclude": []}
    num_samples = {"wrong": 0, "exclude": 0}
    for row in rows:
        ended = [s["correct"] for s in row["samples"] if s["correct"] is not None and not is_unfinished(s)]
        num_cut = sum(map(is_unfinished, row["samples"]))
        for way, number in (("wrong", len(ended) + num_cut), ("exclude", len(ended))):
            ways[way].append(sum(ended) / number if number else None)
            num_samples[way] += number
    return {way: {**found, "num_samples": num_samples[way]} for way, found in _estimates(ways, params).items()}


def _estimates(values: Values, params: SummaryParams) -> dict[str, Any]:
    """The estimate of each metric that some problem has."""
    found = {name: [value for value in metric if value is not None] for name, metric in values.items()}
    return {name: estimate(known, params) for name, known in found.items() if known}


def estimate(values: Sequence[float], params: SummaryParams) -> dict[str, Any]:
    """Mean over problems with its interval.

    Args:
        values (`Sequence[float]`):
            One value per problem, at least one.
        params ([`SummaryParams`]):
            Confidence and seed.

    Returns:
        `dict`: `value`, `interval` and `interval_method` (`"wilson"` where every problem is right or wrong, else
        `"bootstrap"` over problems), `num_problems`.
    """
    if set(values) <= {0.0, 1.0}:
        interval, method = value_interval(int(sum(values)), len(values), params.confidence), "wilson"
    else:
        interval, method = bootstrap_interval(values, params.confidence, seed=params.seed), "bootstrap"
    return {
        "value": math.fsum(values) / len(values),
        "interval": list(interval),
        "interval_method": method,
        "num_problems": len(values),
    }
