"""How good a verifier is on stepwise data: first errors, discrimination and calibration, by position and group."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_prl.calibration import bootstrap_metrics, calibration_bins, choose_threshold
from trl_prl.evaluation_summary import group_rows
from trl_prl.stepwise_data import UNLABELLED
from trl_prl.verifier_metrics import POSITIVE, first_errors, process_bench_f1, verifier_metrics


# Steps with figures of their own; later ones share theirs.
MAX_POSITIONS = 8


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
    that is reported.

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
        `threshold` with `value`, `how`, `num_solutions_tuned_on`; `metrics`, each with `value` and `interval`;
        `first_error` at the threshold and `first_error_at_0.5`, where every label is 0 or 1; `bins` of the calibration
        curve; `positions`; and `groups`.

    Raises:
        `ValueError`: If the fraction is out of range, labels outnumber steps, or nothing has both value and label.
    """
    if not 0 <= tune_fraction < 1:
        raise ValueError(
            f"Got tune_fraction={tune_fraction}, which leaves nothing to report on. Use a share in [0, 1), 0.2 for "
            "instance."
        )
    values, labels = _padded(solutions)
    is_binary = bool(np.isin(labels[~np.isnan(labels)], (0.0, 1.0)).all())
    reported = np.ones(len(solutions), dtype=bool)
    how: dict[str, Any] = {
        "value": POSITIVE if threshold is None else threshold,
        "how": "given",
        "num_solutions_tuned_on": 0,
    }
    if threshold is None and tune_fraction > 0 and is_binary:
        reported = np.array([_share(solution.prompt, seed) >= tune_fraction for solution in solutions])
        if reported.all() or not reported.any():
            raise ValueError(
                f"A share of {tune_fraction} of the prompts leaves {int(reported.sum())} of {len(solutions)} "
                "solutions to report on and the others to choose the threshold on, but both need some. Give more "
                "solutions, another share, or a threshold."
            )
        how = {
            "value": choose_threshold(values[~reported], first_errors(labels[~reported])),
            "how": f"highest F1 on the solutions of {tune_fraction:.0%} of the prompts, which are not reported on",
            "num_solutions_tuned_on": int((~reported).sum()),
        }
    elif threshold is None:
        how["how"] = "default"
    kept = [solution for solution, keep in zip(solutions, reported, strict=True) if keep]
    values, labels, cut = values[reported], labels[reported], float(how["value"])
    both = ~(np.isnan(values) | np.isnan(labels))
    if not both.any():
        raise ValueError(
            f"None of the steps of {len(kept)} solutions has both a value and a label, so nothing can be compared. "
            "Check the column of the labels, and that solutions fit into the verifier's length."
        )
    results: dict[str, Any] = {
        "num_solutions": len(kept),
        "num_steps": int(sum(len(solution.values) for solution in kept)),
        "num_labels": int(both.sum()),
        "num_unscored": int((np.isnan(values) & ~np.isnan(labels)).sum()),
        "threshold": how,
        "metrics": _metrics(values, labels, cut, [_digest(s.prompt, seed) for s in kept], confidence, seed),
        "bins": calibration_bins(values, labels),
        "positions": _positions(values, labels),
        "groups": {},
    }
    if is_binary:
        errors = first_errors(labels)
        results["first_error"] = _finite(process_bench_f1(_labelled(values, labels), errors, cut))
        results["first_error_at_0.5"] = _finite(process_bench_f1(_labelled(values, labels), errors, POSITIVE))
    for column in group_by:
        members = group_rows([{"columns": solution.columns} for solution in kept], column)
        results["groups"][column] = {
            label: {"num_solutions": len(rows), **_part(values[rows], labels[rows], cut)}
            for label, rows in members.items()
        }
    return results


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
        marks = [math.nan if label is None or label == UNLABELLED else float(label) for label in solution.labels]
        labels[i, : len(marks)] = marks
    return values, labels


def _labelled(values: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    # What follows the first error has no label and must not be taken for a prediction.
    return np.where(np.isnan(labels), np.nan, values)


def _metrics(
    values: NDArray[np.float64],
    labels: NDArray[np.float64],
    threshold: float,
    groups: Sequence[int],
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    def compute(rows: NDArray[np.int64]) -> dict[str, float]:
        found = verifier_metrics(values[rows], labels[rows], threshold)
        return {name: value for name, value in found.items() if not name.startswith("brier_step")}

    intervals = bootstrap_metrics(compute, groups, confidence, seed=seed)
    return {
        name: {"value": value, "interval": list(intervals[name]) if name in intervals else None}
        for name, value in compute(np.arange(len(values))).items()
        if name != "num_labels"
    }


def _part(values: NDArray[np.float64], labels: NDArray[np.float64], threshold: float = POSITIVE) -> dict[str, Any]:
    """Metrics and calibration curve of some of the steps."""
    wanted = ("num_labels", "brier", "ece", "auroc", "mean_value", "mean_label", "process_bench_f1")
    found = verifier_metrics(values, labels, threshold)
    return {**{name: found.get(name) for name in wanted}, "bins": calibration_bins(values, labels)}


def _positions(values: NDArray[np.float64], labels: NDArray[np.float64]) -> list[dict[str, Any]]:
    parts = []
    for start in range(min(MAX_POSITIONS + 1, values.shape[1])):
        end = start + 1 if start < MAX_POSITIONS else values.shape[1]
        part = _part(values[:, start:end], labels[:, start:end])
        part.pop("process_bench_f1")
        if part["num_labels"]:
            name = f"{start + 1}" if end == start + 1 else f"{start + 1} to {end}"
            parts.append({"position": name, **part})
    return parts


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def _digest(prompt: Any, seed: int) -> int:
    text = f"{seed}\n{json.dumps(prompt, sort_keys=True, default=str)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _share(prompt: Any, seed: int) -> float:
    """A number in [0, 1) that depends on the prompt alone, so that its solutions stay on one side of a split."""
    return _digest(prompt, seed) / 2**64
