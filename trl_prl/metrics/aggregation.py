"""From step values to a solution's score, and from several solutions to one: best-of-n and votes, as pure functions.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, get_args


Aggregation = Literal["last", "min", "mean", "product", "soft_min"]


def aggregate_step_values(
    values: Sequence[float | None], aggregation: Aggregation = "last", temperature: float = 0.1
) -> float:
    """Score of a solution from the values of its steps.

    | aggregation | score |
    |---|---|
    | `last` | value after the last step: the outcome estimate of a verifier of prefixes |
    | `min` | lowest value of a step |
    | `mean` | arithmetic mean |
    | `product` | product: for probabilities that a step is right; values of prefixes are no such thing |
    | `soft_min` | `Σ v·exp(−v / temperature) / Σ exp(−v / temperature)`, between `min` and `mean` |

    `soft_min` is the sum of the min-form step rewards of PURE (https://huggingface.co/papers/2504.15275).

    Args:
        values (`Sequence[float | None]`):
            One value per step of this solution and nothing else: rows are ragged here, and a zero that pads would be
            the lowest value. A value of 0 is a value like any other. `None` or NaN is a step that could not be scored.
        aggregation (`str`, *optional*, defaults to `"last"`):
            One of the table.
        temperature (`float`, *optional*, defaults to `0.1`):
            Softness of `soft_min`, above 0, in units of the values.

    Returns:
        `float`: The score. NaN where it is not known: no steps, or a step without a value that the aggregation reads
            (`last` reads the last one only).

    Raises:
        `ValueError`: If the aggregation is unknown or the temperature is not above 0.
    """
    if aggregation not in get_args(Aggregation) or not temperature > 0:
        raise ValueError(
            f"Got aggregation={aggregation!r} and temperature={temperature}. There is no such rule, or a softmin is "
            f"divided by it. Use one of {', '.join(get_args(Aggregation))} and a temperature above 0."
        )
    numbers = [math.nan if value is None else float(value) for value in values]
    if aggregation == "last":
        numbers = numbers[-1:]
    if not numbers or any(map(math.isnan, numbers)):
        return math.nan
    if aggregation == "product":
        return math.prod(numbers)
    if aggregation == "mean":
        return math.fsum(numbers) / len(numbers)
    lowest = min(numbers)
    if aggregation != "soft_min" or math.isinf(lowest):
        return lowest
    # Measured from the lowest value, so that no exponential overflows; the common factor cancels.
    weights = [math.exp((lowest - number) / temperature) for number in numbers]
    weighted = math.fsum(weight * number for weight, number in zip(weights, numbers, strict=True) if weight)
    return weighted / math.fsum(weights)


def best_of_n(scores: Sequence[float | None]) -> int:
    """Index of the candidate with the highest score; of equal ones the first.

    Args:
        scores (`Sequence[float | None]`):
            One score per candidate. `None` or NaN, a candidate that could not be scored, never beats a score.

    Returns:
        `int`: Index; 0, which is one sample at random, where no candidate has a score.

    Raises:
        `ValueError`: If there are no candidates.
    """
    _check_candidates(scores)
    # A known score of -inf still beats an unknown one.
    keys = [(False, 0.0) if score is None or math.isnan(score) else (True, score) for score in scores]
    return keys.index(max(keys))


def majority_vote(answers: Sequence[Hashable | None], equal: Callable[[Any, Any], bool] | None = None) -> int:
    """Index of the first candidate with the most frequent answer; of equally frequent ones the first to appear.

    Source: Wang et al., [Self-Consistency](https://huggingface.co/papers/2203.11171).

    Args:
        answers (`Sequence[Hashable | None]`):
            Final answer of each candidate. `None`, no answer, has no vote and cannot win.
        equal (`Callable[[Any, Any], bool]`, *optional*):
            Whether two answers say the same, `1/2` and `0.5` for instance. Each answer joins the first group whose
            first answer it equals. Without it, answers are equal as Python has them.

    Returns:
        `int`: Index; 0 where no candidate has an answer.

    Raises:
        `ValueError`: If there are no candidates.
    """
    return weighted_vote(answers, [1.0] * len(answers), equal)


def weighted_vote(
    answers: Sequence[Hashable | None],
    weights: Sequence[float | None],
    equal: Callable[[Any, Any], bool] | None = None,
) -> int:
    """Index of the first candidate whose answer has the largest sum of weights; on ties the first to appear.

    Args:
        answers (`Sequence[Hashable | None]`):
            Final answer of each candidate. `None`, no answer, has no vote and cannot win.
        weights (`Sequence[float | None]`):
            Weight of each candidate's vote, a verifier's score for instance. `None` or NaN has no vote, which differs
            from a weight of 0 only where every weight of an answer is unknown: then that answer cannot win.
        equal (`Callable[[Any, Any], bool]`, *optional*):
            As in [`majority_vote`].

    Returns:
        `int`: Index; where nobody has a vote, that of the first candidate with an answer, or 0.

    Raises:
        `ValueError`: If there are no candidates, or not one weight per answer.
    """
    _check_candidates(answers)
    if len(answers) != len(weights):
        raise ValueError(
            f"Got {len(answers)} answers and {len(weights)} weights, so it is open whose weight is whose. Pass one "
            "weight per answer (NaN for a candidate that could not be scored)."
        )
    groups = _groups(answers, equal)
    votes: dict[int, list[float]] = {}
    for group, weight in zip(groups, weights, strict=True):
        if group is not None and weight is not None and not math.isnan(weight):
            votes.setdefault(group, []).append(float(weight))
    if not votes:
        return next((i for i, group in enumerate(groups) if group is not None), 0)
    # A group is named by its first candidate, so the lower name is the earlier answer.
    return max(votes, key=lambda group: (math.fsum(votes[group]), -group))


def _groups(answers: Sequence[Hashable | None], equal: Callable[[Any, Any], bool] | None) -> list[int | None]:
    """For each answer the index of the first one that equals it; `None` for no answer."""
    firsts: dict[Hashable, int] = {}
    groups: list[int | None] = []
    for i, answer in enumerate(answers):
        if answer is None:
            groups.append(None)
            continue
        if answer not in firsts:
            same = None if equal is None else next((n for n in firsts.values() if equal(answers[n], answer)), None)
            firsts[answer] = i if same is None else same
        groups.append(firsts[answer])
    return groups


def _check_candidates(candidates: Sequence[object]) -> None:
    if not candidates:
        raise ValueError(
            "Got no candidates, and there is no best of nothing. Pass at least one; leave a problem without "
            "candidates out."
        )
