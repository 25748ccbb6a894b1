"""How good a verifier is on stepwise data: first errors, discrimination and calibration, by position and group."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trl_prl.metrics.calibration import calibration_bins
from trl_prl.metrics.groups import group_rows
from trl_prl.metrics.resampling import bootstrap_metrics
from trl_prl.metrics.step_values import (
    POSITIVE,
    choose_threshold,
    first_errors,
    process_bench_f1,
    progress_error,
    verifier_metrics,
)
from trl_prl.storage.row_values import read_labels


# Columns that only rollouts can fill.
_ROLLOUT_COLUMNS = ("num_rollouts", "initial_value")
# Steps with figures of their own; later ones share theirs.
MAX_POSITIONS = 8

LabelKind = Literal["hard", "monte_carlo", "soft"]


@dataclass(frozen=True)
class ScoredSolution:
    """A solution with the values a verifier gave its steps.

    Args:
        prompt (`str` or `list[dict]`):
            Its prompt.
        values (`list[float | None]`):
            Values of its steps, `None` or NaN where there is none.
        labels (`list`):
            Labels of its first steps: a number in [0, 1] or a boolean, `None`, NaN or -100 where nobody judged.
        columns (`Mapping[str, Any]`):
            Other columns, to group by.
    """

    prompt: Any
    values: list[float | None]
    labels: list[Any]
    columns: Mapping[str, Any]


def evaluate_verifier(
    solutions: Sequence[ScoredSolution],
    *,
    threshold: float | None = None,
    tune_fraction: float = 0.2,
    group_by: Sequence[str] = (),
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare step values with step labels.

    Without a `threshold`, the solutions of `tune_fraction` of the prompts choose it and are left out of *every* number
    that is reported. First errors exist where labels are judgements, 0 or 1: a share of rollouts that happens to be 0
    or 1 is none.

    Args:
        solutions (`Sequence[ScoredSolution]`):
            Scored solutions.
        threshold (`float`, *optional*):
            Values below it are errors, for first-error detection.
        tune_fraction (`float`, *optional*, defaults to `0.2`):
            Share of the prompts that choose the threshold where none is given, in [0, 1); with 0 it is 0.5.
        group_by (`Sequence[str]`, *optional*):
            Columns, such as a difficulty, to report by.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage of the bootstrap intervals over prompts.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the split and of the draws.

    Returns:
        `dict`: `num_solutions`, `num_steps`, `num_labels`, `num_unscored` (labelled steps without a value, left out);
        `labels`, their kind, see [`label_kind`]; `threshold` with `value`, `how`, `num_solutions_tuned_on`; `metrics`,
        each with `value` and, where it can be drawn, `interval`; `first_error` at the threshold and
        `first_error_at_0.5`, of hard labels; `progress_error`, of shares of rollouts, or why it is not known as
        `no_progress_error`; `bins` of the calibration curve; `positions`; and `groups`. What cannot be computed is
        left out.

    Raises:
        `ValueError`: If the fraction or a label is out of range, labels outnumber steps, or nothing has both value and
            label.
    """
    values, labels = _padded(solutions)
    kind = label_kind(solutions)
    how, reported = _threshold(solutions, (values, labels), kind, threshold, tune_fraction, seed)
    kept = [solution for solution, keep in zip(solutions, reported, strict=True) if keep]
    parts = _Parts(values[reported], labels[reported], float(how["value"]), kind)
    return {
        "num_solutions": len(kept),
        "num_steps": int(sum(len(solution.values) for solution in kept)),
        "num_labels": parts.num_labels,
        "num_unscored": int((np.isnan(parts.values) & ~np.isnan(parts.labels)).sum()),
        "labels": kind,
        "threshold": how,
        "metrics": _with_intervals(parts, [_digest(s.prompt, seed) for s in kept], confidence, seed),
        "bins": calibration_bins(parts.values, parts.labels),
        "positions": parts.by_position(),
        "groups": {column: _by_group(parts, kept, column) for column in group_by},
        **parts.first_errors(),
        **_progress_error(parts, kept),
    }


def label_kind(solutions: Sequence[ScoredSolution]) -> LabelKind:
    """What labels are.

    Args:
        solutions (`Sequence[ScoredSolution]`):
            Scored solutions.

    Returns:
        `str`: `"monte_carlo"` where rows have counts of rollouts or a value of the prompt, whatever the labels are;
        else `"hard"` where every label is 0 or 1, and `"soft"`.
    """
    if any(solution.columns.get(name) is not None for solution in solutions for name in _ROLLOUT_COLUMNS):
        return "monte_carlo"
    labels = _padded(solutions)[1]
    return "hard" if np.isin(labels[~np.isnan(labels)], (0.0, 1.0)).all() else "soft"


def _threshold(
    solutions: Sequence[ScoredSolution],
    padded: tuple[NDArray[np.float64], NDArray[np.float64]],
    kind: LabelKind,
    threshold: float | None,
    tune_fraction: float,
    seed: int,
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """The threshold with where it is from, and which solutions are reported on."""
    if not 0 <= tune_fraction < 1:
        raise ValueError(
            f"Got tune_fraction={tune_fraction}, which leaves nothing to report on. Use a share in [0, 1), 0.2 for "
            "instance."
        )
    if threshold is not None or tune_fraction == 0 or kind != "hard":
        value, how = (POSITIVE, "default") if threshold is None else (threshold, "given")
        return {"value": value, "how": how, "num_solutions_tuned_on": 0}, np.ones(len(solutions), dtype=bool)
    reported = np.array([_share(solution.prompt, seed) >= tune_fraction for solution in solutions], dtype=bool)
    if reported.all() or not reported.any():
        raise ValueError(
            f"A share of {tune_fraction} of the prompts leaves {int(reported.sum())} of {len(solutions)} solutions to "
            "report on and the others to choose the threshold on, but both need some. Give more solutions, another "
            "share, or a threshold."
        )
    values, labels = padded
    return {
        "value": choose_threshold(values[~reported], first_errors(labels[~reported])),
        "how": f"highest F1 on the solutions of {tune_fraction:.0%} of the prompts, which are not reported on",
        "num_solutions_tuned_on": int((~reported).sum()),
    }, reported


@dataclass(frozen=True)
class _Parts:
    """Values and labels of what is reported on, of shape (B, S), and metrics of parts of them."""

    values: NDArray[np.float64]
    labels: NDArray[np.float64]
    threshold: float
    kind: LabelKind

    def __post_init__(self) -> None:
        if not self.num_labels:
            raise ValueError(
                f"None of the steps of {len(self.values)} solutions has both a value and a label, so nothing can be "
                "compared. Check the column of the labels, and that solutions fit into the verifier's length."
            )

    @property
    def num_labels(self) -> int:
        """Steps with both."""
        return int((~np.isnan(self.values) & ~np.isnan(self.labels)).sum())

    def metrics(self, rows: Any = slice(None), steps: slice = slice(None)) -> dict[str, float]:
        """All metrics of some solutions or steps."""
        hard = self.kind == "hard"
        return verifier_metrics(self.values[rows, steps], self.labels[rows, steps], self.threshold, hard_labels=hard)

    def summary(self, rows: Any = slice(None), steps: slice = slice(None)) -> dict[str, Any]:
        """Those metrics that are shown of a part, with its calibration curve."""
        wanted = ("num_labels", "brier", "ece", "auroc", "mean_value", "mean_label", "process_bench_f1")
        found = {name: value for name, value in self.metrics(rows, steps).items() if name in wanted}
        return {**found, "bins": calibration_bins(self.values[rows, steps], self.labels[rows, steps])}

    def by_position(self) -> list[dict[str, Any]]:
        """A summary of each of the first steps, and of all later ones."""
        parts, size = [], self.values.shape[1]
        for start in range(min(MAX_POSITIONS + 1, size)):
            end = start + 1 if start < MAX_POSITIONS else size
            part = self.summary(steps=slice(start, end))
            part.pop("process_bench_f1", None)
            if part["num_labels"]:
                parts.append({"position": f"{start + 1}" if end == start + 1 else f"{start + 1} to {end}", **part})
        return parts

    def first_errors(self) -> dict[str, dict[str, float]]:
        """First-error detection at the threshold and at 0.5, of hard labels."""
        if self.kind != "hard":
            return {}
        # What follows the first error has no label and must not be taken for a prediction.
        labelled = np.where(np.isnan(self.labels), np.nan, self.values)
        wanted, found = first_errors(self.labels), {}
        for name, threshold in {"first_error": self.threshold, "first_error_at_0.5": POSITIVE}.items():
            scores = process_bench_f1(labelled, wanted, threshold)
            found[name] = {key: value for key, value in scores.items() if not math.isnan(value)}
        return found


def _padded(solutions: Sequence[ScoredSolution]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and labels of shape (B, S), NaN where there is none."""
    size = max((len(solution.values) for solution in solutions), default=0)
    values, labels = np.full((2, len(solutions), size), np.nan)
    for i, solution in enumerate(solutions):
        if len(solution.labels) > len(solution.values):
            raise ValueError(
                f"Solution {i} has {len(solution.values)} steps and {len(solution.labels)} labels, so labels would "
                "belong to other steps. Give at most one label per step."
            )
        values[i, : len(solution.values)] = [math.nan if v is None else v for v in solution.values]
        marks = read_labels(solution.labels, f"Solution {i} has a label that")
        labels[i, : len(marks)] = marks
    return values, labels


def _with_intervals(parts: _Parts, groups: Sequence[int], confidence: float, seed: int) -> dict[str, Any]:
    def compute(rows: NDArray[np.int64]) -> dict[str, float]:
        return {name: v for name, v in parts.metrics(rows).items() if not name.startswith(("brier_step", "num_"))}

    intervals = bootstrap_metrics(compute, groups, confidence, seed=seed)
    return {
        name: {"value": value, **({"interval": list(intervals[name])} if name in intervals else {})}
        for name, value in compute(np.arange(len(groups))).items()
    }


def _progress_error(parts: _Parts, solutions: Sequence[ScoredSolution]) -> dict[str, float | str]:
    """The error of the progress of collected values, or why there is none."""
    if parts.kind != "monte_carlo":
        return {}
    counts = np.full(parts.values.shape, np.nan)
    for i, solution in enumerate(solutions):
        numbers = solution.columns.get("num_rollouts") or []
        counts[i, : len(numbers)] = numbers
    error = progress_error(parts.values, parts.labels, counts)
    if error > 0:
        return {"progress_error": error}
    if np.isnan(counts).all():
        return {"no_progress_error": "the rows have no 'num_rollouts', without which noise cannot be told apart"}
    if error == 0:
        return {"no_progress_error": "it is below the noise of the rollouts; `trl-prl collect` more of them (--n_mc)"}
    reason = (
        "no two steps in a row have labels of two rollouts or more; `trl-prl collect` more (--n_mc), or longer ones"
    )
    return {"no_progress_error": f"{reason} (--max_completion_length)"}


def _by_group(parts: _Parts, solutions: Sequence[ScoredSolution], column: str) -> dict[str, Any]:
    members = group_rows([{"columns": solution.columns} for solution in solutions], column)
    return {label: {"num_solutions": len(rows), **parts.summary(rows)} for label, rows in members.items()}


def _digest(prompt: Any, seed: int) -> int:
    text = f"{seed}\n{json.dumps(prompt, sort_keys=True, default=str)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _share(prompt: Any, seed: int) -> float:
    """A number in [0, 1) that depends on the prompt alone, so that its solutions stay on one side of a split."""
    return _digest(prompt, seed) / 2**64
