"""Solutions for the report: collections, scored files, stepwise data sets and evaluated samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .files import mapping, mappings, number, numbers


def solution(row: Mapping[str, Any], prompt: int, source: int) -> dict[str, Any] | None:
    """A solution with values of its steps, from `trl-prl collect`, `trl-prl score` or a stepwise data set."""
    steps = row.get("steps", row.get("completions"))
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        return None
    found = next((row[key] for key in ("step_values", "labels") if row.get(key) is not None), None)
    # Labels of some data sets are right or wrong instead of probabilities.
    values = numbers([float(v) if isinstance(v, bool) else v for v in found] if isinstance(found, list) else None)
    # That of the verifier, where it is its values that are shown.
    initial = number(row.get("scored_initial_value", row.get("initial_value")))
    progress = numbers(row.get("step_advantages"))
    if progress is None and values is not None and initial is not None:
        before = [initial, *values[:-1]]
        pairs = zip(values, before, strict=True)
        progress = [None if a is None or b is None else round(a - b, 6) for a, b in pairs]
    outcome = number(row.get("outcome"))
    correct = row.get("correct", row.get("final_answer_correct"))
    if correct is None and outcome in (0.0, 1.0):
        correct = outcome == 1.0
    labels = numbers([float(v) if isinstance(v, bool) else v for v in row.get("labels") or []])
    reason = row.get("finish_reason")
    return {
        "run": -1,
        "source": source,
        "prompt": prompt,
        "steps": steps,
        "val": values,
        "rew": progress if progress and len(progress) == len(steps) else None,
        "v0": initial,
        "low": numbers(row.get("interval_low")),
        "high": numbers(row.get("interval_high")),
        "rollouts": numbers(row.get("num_rollouts")),
        "lab": labels if found is not row.get("labels") and labels else None,
        "correct": correct if isinstance(correct, bool) else None,
        "rewards": {} if outcome is None else {"outcome": outcome},
        "finished": None if reason is None else reason != "length",
        "skipped": row.get("skipped"),
    }


def evaluated_samples(row: Mapping[str, Any], prompt: int, source: int) -> list[dict[str, Any]]:
    """Samples of a problem from `trl-prl evaluate`, with the step values of the first verifier that has any.

    The file has no steps. Lines are taken for them where there are as many as values, else the text is one step.
    """
    found: list[dict[str, Any]] = []
    for sample in mappings(row.get("samples")):
        if not isinstance(sample.get("completion"), str):
            continue
        lines = sample["completion"].splitlines(keepends=True)
        values = next((value for value in mapping(sample.get("scores")).values() if isinstance(value, list)), None)
        fits = values is not None and len(values) == len(lines)
        reason = sample.get("finish_reason")
        found.append(
            {
                "run": -1,
                "source": source,
                "label": str(row.get("model", "")),
                "prompt": prompt,
                "steps": lines if fits else [sample["completion"]],
                "val": numbers(values) if fits else None,
                "rewards": {},
                "correct": sample.get("correct") if isinstance(sample.get("correct"), bool) else None,
                "tokens": number(sample.get("num_tokens")),
                "finished": None if reason is None else reason != "length",
            }
        )
    return found
