"""ProcessBench: its four subsets as stepwise rows, and the scores its paper reports.

Source: [ProcessBench](https://huggingface.co/papers/2412.06559), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_prl.metrics.step_values import POSITIVE, choose_threshold, first_errors, process_bench_f1
from trl_prl.storage.row_sources import load_rows
from trl_prl.storage.row_values import json_value
from trl_prl.verifier.evaluation import ScoredSolution
from trl_prl.verifier.formats import add_separator, from_process_bench


NAME = "processbench"
HUB_ID = "Qwen/ProcessBench"
SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")
# The paper chooses thresholds on this subset.
TUNED_ON = "gsm8k"


def read_process_bench(source: str | None = None, max_rows: int | None = None) -> list[dict[str, Any]]:
    """Read the benchmark as stepwise rows.

    Args:
        source (`str`, *optional*):
            Folder with a file per subset, named after it (`gsm8k.json`, `processbench_math.jsonl.gz`, ...), as
            published or as stepwise rows; or a hub id. The published one by default.
        max_rows (`int`, *optional*):
            Most rows of a subset.

    Returns:
        `list[dict]`: Rows with `prompt`, `completions`, `labels` and `subset`.

    Raises:
        `ValueError`: If a folder holds none of the subsets.
    """
    folder = Path(source or HUB_ID)
    if folder.is_dir():
        files = {path.name.split(".")[0].removeprefix(f"{NAME}_"): path for path in sorted(folder.iterdir())}
        parts = {subset: load_rows(str(files[subset])) for subset in SUBSETS if subset in files}
        if not parts:
            raise ValueError(
                f"The folder '{folder}' holds no subset of ProcessBench. Looked for files named "
                f"{', '.join(SUBSETS)} with the ending .json, .jsonl, .jsonl.gz or .parquet. Download {HUB_ID} there, "
                f"or leave the folder out: --dataset {NAME}."
            )
    else:
        parts = {subset: load_rows(source or HUB_ID, None, subset) for subset in SUBSETS}
    return [{**_stepwise(row), "subset": name} for name, rows in parts.items() for row in list(rows)[:max_rows]]


def _stepwise(row: Mapping[str, Any]) -> dict[str, Any]:
    if "steps" in row:
        return from_process_bench(row)[0]
    steps, labels = [*row["completions"], *(row.get("rest") or [])], list(row["labels"])
    labels += [None] * (len(steps) - len(labels))
    kept = {name: row[name] for name in ("id", "generator", "final_answer_correct") if name in row}
    return {"prompt": row["prompt"], "completions": add_separator(steps, "\n\n"), "labels": labels, **kept}


def score_process_bench(solutions: Sequence[ScoredSolution], threshold: float | None = None) -> dict[str, Any]:
    """F1 scores of first-error detection by subset, and their mean.

    Args:
        solutions (`Sequence[ScoredSolution]`):
            Scored solutions with a column `subset`.
        threshold (`float`, *optional*):
            Values below it are errors; by default the one with the highest F1 score on GSM8K, as in the paper.

    Returns:
        `dict`: `threshold` with `value` and `how`; for every subset `num_solutions`, `error_accuracy`,
        `correct_accuracy`, `f1` and `f1_at_0.5`; `average_f1` and `average_f1_at_0.5`.
    """
    parts: dict[str, list[ScoredSolution]] = {}
    for solution in solutions:
        parts.setdefault(str(solution.columns["subset"]), []).append(solution)
    arrays = {name: _arrays(part) for name, part in parts.items()}
    how = "given"
    if threshold is None:
        tuned = arrays.get(TUNED_ON)
        threshold = POSITIVE if tuned is None else choose_threshold(*tuned)
        how = "default" if tuned is None else f"highest F1 on {TUNED_ON}"
    subsets = {}
    for name, (values, errors) in arrays.items():
        found = process_bench_f1(values, errors, threshold)
        plain = process_bench_f1(values, errors, POSITIVE)["f1"]
        subsets[name] = {"num_solutions": len(values), **json_value({**found, "f1_at_0.5": plain})}
    averages = {f"average_{name}": _mean([part[name] for part in subsets.values()]) for name in ("f1", "f1_at_0.5")}
    return {"threshold": {"value": threshold, "how": how}, "subsets": subsets, **averages}


def _arrays(solutions: Sequence[ScoredSolution]) -> tuple[Any, Any]:
    """Values of the labelled steps of shape (B, S), and the first wrong step of each solution."""
    size = max(len(solution.values) for solution in solutions)
    values, labels = np.full((2, len(solutions), size), np.nan)
    for i, solution in enumerate(solutions):
        labels[i, : len(solution.labels)] = [math.nan if label is None else label for label in solution.labels]
        values[i, : len(solution.values)] = [math.nan if value is None else value for value in solution.values]
    # What follows the first error has no label and must not be taken for a prediction.
    return np.where(np.isnan(labels), np.nan, values), first_errors(labels)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None
