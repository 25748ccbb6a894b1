"""What the benchmarks of searches share: runs as plain data, accuracy at equal tokens, and gains with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl_prl.generation.rollouts import Problem
from trl_prl.metrics.intervals import value_interval
from trl_prl.metrics.resampling import bootstrap_interval
from trl_prl.search.results import Candidate, SearchResult


CEILING = "pass@n"
Check = Callable[[Problem, Sequence[str]], list[float]]
"""Outcomes of texts that answer a problem."""
Rule = Callable[[Sequence[Candidate]], int | None]
"""Which of the candidates to take."""


def search_run(problems: Sequence[Problem], found: Sequence[SearchResult], check: Check) -> dict[str, Any]:
    """Which problems a search solved, at what cost per problem."""
    costs = [result.cost for result in found]
    texts = [result.answer.text if result.answer else "" for result in found]
    return {
        "correct": [int(check(problem, [text])[0]) for problem, text in zip(problems, texts, strict=True)],
        "tokens": statistics.fmean(cost.num_generated_tokens for cost in costs),
        "scored": statistics.fmean(cost.num_scored_tokens for cost in costs),
        "seconds": sum(cost.seconds for cost in costs) / len(costs),
    }


def sample_run(
    problems: Sequence[Problem], found: Sequence[SearchResult], check: Check, rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """Whole solutions: whether what each rule takes among the first n is right, for growing n, and pass@n."""
    n = len(found[0].candidates)
    sizes = sorted({round(2 ** (k / 4)) for k in range(4 * n.bit_length()) if 2 ** (k / 4) <= n} | {n})
    correct: dict[str, list[list[int]]] = {name: [] for name in (*rules, CEILING)}
    for problem, result in zip(problems, found, strict=True):
        right = [int(r) for r in check(problem, [c.text if c.finished else "" for c in result.candidates])]
        for name, rule in rules.items():
            taken = [rule(result.candidates[:size]) for size in sizes]
            correct[name].append([0 if index is None else right[index] for index in taken])
        correct[CEILING].append([max(right[:size]) for size in sizes])
    tokens = statistics.fmean(result.cost.num_generated_tokens for result in found) / n
    scored = statistics.fmean(result.cost.num_scored_tokens for result in found)
    return {"sizes": sizes, "tokens_per_sample": tokens, "scored": scored, "correct": correct}


def tokens_each(samples: dict[str, Any], scored: bool) -> float:
    """Tokens of a whole solution: those sampled, and on request those that a verifier reads as well."""
    return samples["tokens_per_sample"] + (samples["scored"] / samples["sizes"][-1] if scored else 0.0)


def at_tokens(samples: dict[str, Any], method: str, tokens: float, scored: bool = False) -> tuple[int, list[int]]:
    """The number of whole solutions that have about these tokens, and which problems they solve."""
    wanted = tokens / tokens_each(samples, scored)
    place = min(range(len(samples["sizes"])), key=lambda k: abs(samples["sizes"][k] - wanted))
    return samples["sizes"][place], [row[place] for row in samples["correct"][method]]


def share(runs: Sequence[Sequence[int]]) -> float:
    """Accuracy over all problems of all seeds, in %."""
    return 100 * sum(map(sum, runs)) / sum(map(len, runs))


def percent(runs: Sequence[Sequence[int]]) -> str:
    """Accuracy in %, and the Wilson interval of all problems together."""
    low, high = value_interval(sum(map(sum, runs)), sum(map(len, runs)))
    return f"{share(runs):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def difference(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> str:
    """Points between two methods on the same problems, with a paired bootstrap interval."""
    pairs = [
        (float(a), float(b))
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in zip(mine, other, strict=True)
    ]
    low, high = bootstrap_interval([a - b for a, b in pairs])
    between = statistics.fmean(a for a, _ in pairs) - statistics.fmean(b for _, b in pairs)
    return f"{100 * between:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def tokens_ratio(
    sampled: Sequence[dict[str, Any]],
    method: str,
    ours: Sequence[Sequence[int]],
    tokens: Sequence[float],
    scored: bool = False,
) -> str:
    """How many times our tokens a method over whole solutions needs for our accuracy."""
    sizes = sampled[0]["sizes"]
    means = [
        statistics.fmean(row[place] for one in sampled for row in one["correct"][method])
        for place in range(len(sizes))
    ]
    per_sample = statistics.fmean(tokens_each(one, scored) for one in sampled)
    aim = statistics.fmean(float(c) for correct in ours for c in correct)
    enough = next((size for size, mean in zip(sizes, means, strict=True) if mean >= aim), None)
    ratio = (enough or sizes[-1]) * per_sample / statistics.fmean(tokens)
    return f"{ratio:.1f}" if enough else f"more than {ratio:.1f}"
