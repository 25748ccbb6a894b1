"""The diagnosis of provers: both terms of PAV's Theorem 3.1 with intervals, their worth, and what to choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .credit import Use, alpha_range, best_credit, credit, credit_curve
from .moments import Candidate, SampledState, problem_sums
from .terms import Array, Terms, bootstrap_terms, terms_from_sums


USES: tuple[Use, ...] = ("rl", "search")

# A candidate whose credit may be within this share of the best one's is not worth choosing against.
MARGIN = 0.02


@dataclass(frozen=True)
class DiagnosisParams:
    """How provers are compared.

    Args:
        use (`str`, *optional*, defaults to `"rl"`):
            What the progress is for: `"rl"` or `"search"`.
        verifier_error (`float`, *optional*, defaults to `0.1`):
            Root-mean-square error of the progress that a verifier will tell, in units of probability.
        alpha (`float`, *optional*):
            Compare at this weight instead of at the best one of each prover.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage of the intervals.
        num_resamples (`int`, *optional*, defaults to `2000`):
            Resamples of the bootstrap over problems.
        seed (`int`, *optional*, defaults to `0`):
            Its seed.
        num_strata (`int`, *optional*, defaults to `4`):
            Strata of depth over which the credit is averaged.
        edges (`tuple[float, ...]`, *optional*, defaults to `(0.25, 0.75)`):
            Where difficulty, the base policy's measured success on the prompt, is divided.

    Raises:
        `ValueError`: When a number is outside its range.
    """

    use: Use = "rl"
    verifier_error: float = 0.1
    alpha: float | None = None
    confidence: float = 0.95
    num_resamples: int = 2000
    seed: int = 0
    num_strata: int = 4
    edges: tuple[float, ...] = (0.25, 0.75)

    def __post_init__(self) -> None:
        negative = self.verifier_error < 0 or (self.alpha is not None and self.alpha < 0)
        if negative or not 0 < self.confidence < 1 or min(self.num_resamples, self.num_strata) < 1:
            raise ValueError(
                f"Got verifier_error={self.verifier_error}, alpha={self.alpha}, confidence={self.confidence}, "
                f"resamples={self.num_resamples} and strata={self.num_strata}, not all of them in range. "
                "Use an error and a weight that are not negative, a confidence in (0, 1), and at least one resample "
                "and stratum."
            )
        if self.use not in USES or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(
                f"Got use={self.use!r} and bins={self.edges}. There are two uses, and edges of difficulty grow. Use "
                "'rl' or 'search', and for instance (0.25, 0.75)."
            )

    def score(self, terms: Terms) -> Array:
        """What provers are ranked by: the credit at the best or at the given weight."""
        if self.alpha is None:
            return best_credit(terms, self.verifier_error, self.use)[0]
        return credit(terms, self.alpha, self.verifier_error, self.use)


def diagnose(
    states: Sequence[SampledState],
    success: Mapping[int, float],
    names: Sequence[str],
    candidates: Sequence[Candidate],
    params: DiagnosisParams | None = None,
) -> dict[str, Any]:
    """Estimate the terms of every candidate and compare them.

    Args:
        states (`Sequence[SampledState]`):
            States with at least two draws, as [`sampled_states`] returns them.
        success (`Mapping[int, float]`):
            Measured success of the base policy on each problem, for the difficulty.
        names (`Sequence[str]`):
            Names of the provers, the base policy first.
        candidates (`Sequence[Candidate]`):
            What to compare.
        params ([`DiagnosisParams`], *optional*):
            How.

    Returns:
        `dict`: A JSON object with `candidates`, `by_difficulty` and `recommendation`, as `docs/diagnosis.md`
        describes.

    Raises:
        `ValueError`: When there is nothing to compare, or only one problem.
    """
    params = params or DiagnosisParams()
    number = len({state.problem for state in states})
    if number < 2 or not candidates:
        raise ValueError(
            f"Got {len(candidates)} candidates and {number} problems with a state that has two measured next "
            "steps, so there is nothing to compare or no spread to tell chance from. Collect more problems, several "
            "seeds (--n_cov) or siblings (--n_branch), and enough rollouts (--n_mc) for K; rollouts that reach the "
            "length limit (--max_completion_length) measure nothing."
        )
    problems, sums = problem_sums(states, candidates, params.num_strata)
    labels = [_label(names[candidate.prover], candidate.k) for candidate in candidates]
    groups = np.searchsorted(params.edges, [success[int(problem)] for problem in problems], side="right")
    bounds = (0.0, *params.edges, 1.0)
    bins = [
        {"low": bounds[group], "high": bounds[group + 1], "num_problems": int((groups == group).sum())}
        | {"candidates": _entries(sums[groups == group], labels, names, candidates, params)}
        for group in range(len(bounds) - 1)
        if (groups == group).sum() >= 2
    ]
    return {
        "params": asdict(params),
        "num_problems": len(problems),
        "effective_problems": effective_problems(sums),
        "num_states": len(states),
        **_base_numbers(sums, params),
        "candidates": _entries(sums, labels, names, candidates, params),
        "by_difficulty": bins,
        "recommendation": _recommend(sums, labels, candidates, names, params),
    }


def effective_problems(sums: Array) -> float:
    """How many problems the variance of the policy's own values rests on: all if each adds as much, few if few do.

    Args:
        sums (`np.ndarray` of shape (P, H, 2 C + 3)):
            As [`problem_sums`] returns them.

    Returns:
        `float`: Square of the sum by sum of the squares of what each problem adds; 0 if none adds anything.
    """
    added = np.abs(sums[..., -2].sum(1))
    return float(added.sum() ** 2 / (added**2).sum()) if added.any() else 0.0


def _base_numbers(sums: Array, params: DiagnosisParams) -> dict[str, Any]:
    """What belongs to the base policy alone: two variances, and the credit of the signal without a prover."""
    terms, resampled = terms_from_sums(sums.sum(0)), bootstrap_terms(sums, params.num_resamples, params.seed)
    numbers = {name: (terms.pooled(name), resampled.pooled(name)) for name in ("own_variance", "outcome_variance")}
    numbers["signal_credit"] = (_signal_credit(terms, params), _signal_credit(resampled, params))
    return {name: _estimate(value[0], draws[:, 0], params.confidence) for name, (value, draws) in numbers.items()}


def _signal_credit(terms: Terms, params: DiagnosisParams) -> Array:
    return credit(terms, 0.0, params.verifier_error, params.use)


def _label(name: str, k: int) -> str:
    return name if k == 1 else f"Bo{k} of {name}"


def _entries(
    sums: Array, labels: Sequence[str], names: Sequence[str], candidates: Sequence[Candidate], params: DiagnosisParams
) -> list[dict[str, Any]]:
    """Every number of every candidate, with its interval."""
    terms, resampled = terms_from_sums(sums.sum(0)), bootstrap_terms(sums, params.num_resamples, params.seed)

    def both(of: Callable[[Terms], Array]) -> tuple[Array, Array]:
        return of(terms), of(resampled)

    numbers = {
        "distinguishability": both(lambda t: t.pooled("distinguishability")),
        "alignment": both(lambda t: t.pooled("alignment")),
        "sum": both(lambda t: t.total),
        "correlation": both(lambda t: t.correlation),
        "credit": both(params.score),
        "gain": both(lambda t: params.score(t) / _signal_credit(t, params)),
    }
    for use in USES:
        weights = (best_credit(t, params.verifier_error, use)[1] for t in (terms, resampled))
        numbers[f"alpha_{use}"] = (next(weights), next(weights))
    ranges = {use: alpha_range(terms, params.verifier_error, use) for use in USES}
    curves = {use: credit_curve(terms, params.verifier_error, use) for use in USES}
    return [
        {"label": labels[j], "prover": names[candidate.prover], "k": candidate.k}
        | {name: _estimate(value[j], draws[:, j], params.confidence) for name, (value, draws) in numbers.items()}
        | {f"alpha_range_{use}": [float(ranges[use][end][j]) for end in (0, 1)] for use in USES}
        | {f"credit_curve_{use}": [_finite(v) for v in curves[use][:, j]] for use in USES}
        for j, candidate in enumerate(candidates)
    ]


def _estimate(value: float, draws: Array, confidence: float) -> dict[str, float | None]:
    """A number and its percentile interval; none where too many resamples leave it undefined."""
    defined = draws[~np.isnan(draws)]
    if len(defined) < 0.9 * len(draws):
        return {"value": _finite(value), "low": None, "high": None}
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"value": _finite(value), "low": _finite(low), "high": _finite(high)}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _recommend(
    sums: Array, labels: Sequence[str], candidates: Sequence[Candidate], names: Sequence[str], params: DiagnosisParams
) -> dict[str, Any]:
    """The candidate with the highest credit, those that cannot be told from it, and how much rests on assumptions."""
    terms, resampled = terms_from_sums(sums.sum(0)), bootstrap_terms(sums, params.num_resamples, params.seed)
    scores, draws = _comparable(params.score(terms)), _comparable(params.score(resampled))
    best = int(scores.argmax())
    tail = (1 - params.confidence) / 2
    tied = [
        j
        for j in range(len(labels))
        if j != best and np.quantile(draws[:, best] - (1 + MARGIN) * draws[:, j], tail) <= 0
    ]
    helps = bool(np.quantile(resampled.alignment[:, best], tail) > 0)
    verdict = "none helps" if not helps else "cannot tell" if tied else "clear"
    errors = sorted({params.verifier_error / 2, params.verifier_error, params.verifier_error * 2})
    return {
        "verdict": verdict,
        "label": labels[best],
        "prover": names[candidates[best].prover],
        "k": candidates[best].k,
        "not_told_apart": [labels[j] for j in tied],
        "probability_best": [float(p) for p in np.bincount(draws.argmax(1), minlength=len(labels)) / len(draws)],
        **_alpha_ranges(terms, best, params),
        "by_theorem": labels[int(_comparable(terms.total).argmax())],
        "by_verifier_error": {
            f"{error:g}": _best_at(terms, labels, replace(params, verifier_error=error)) for error in errors
        },
    }


def _best_at(terms: Terms, labels: Sequence[str], params: DiagnosisParams) -> dict[str, Any]:
    """What would be chosen at one error of the verifier, and its weights."""
    best = int(_comparable(params.score(terms)).argmax())
    return {"label": labels[best], **_alpha_ranges(terms, best, params)}


def _alpha_ranges(terms: Terms, place: int, params: DiagnosisParams) -> dict[str, list[float]]:
    """Weights of one candidate that keep most of what the best one adds."""
    ends = {use: alpha_range(terms, params.verifier_error, use) for use in USES}
    return {f"alpha_{use}": [float(end[place]) for end in ends[use]] for use in USES}


def _comparable(scores: Array) -> Array:
    """Scores without NaN: what is not defined is below every credit, and not the best."""
    return np.where(np.isnan(scores), -2.0, scores)
