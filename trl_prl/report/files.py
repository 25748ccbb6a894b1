"""Result files for the report: searches, evaluations, verifiers, diagnoses, collections, scored solutions.

Readers are tolerant: a field that is missing is left out of the page, a file of an unknown kind is shown as it is, and
a file that is no result at all says so once.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .limits import MAX_CHARACTERS, shorten_row


NODE_FIELDS = {"q": ("q", "value"), "a": ("a", "advantage"), "score": ("score",)}
MAX_JSON_CHARACTERS = 20_000


def read_json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a file of JSON lines, gzipped or not, with long texts cut; other lines are passed over."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # no JSON, or nested too deep
                continue
            if isinstance(row, dict):
                yield shorten_row(row) if len(line) > MAX_CHARACTERS else row


def read_parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a Parquet file, with long texts cut."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
        yield from map(shorten_row, batch.to_pylist())


def number(value: Any) -> float | None:
    """A finite number, or nothing."""
    # Integers may be too large for a float.
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return value if is_number else None


def numbers(values: Any) -> list[float | None] | None:
    """Numbers of a list, or nothing."""
    return (
        [number(value) for value in values] if isinstance(values, Sequence) and not isinstance(values, str) else None
    )


def estimate(value: Any) -> dict[str, float | None] | None:
    """An estimate however it is written: a number, or an object with a value and an interval."""
    if number(value) is not None:
        return {"value": value, "low": None, "high": None}
    if not isinstance(value, Mapping) or "value" not in value:
        return None
    low, high = value.get("low"), value.get("high")
    if isinstance(value.get("interval"), Sequence) and len(value["interval"]) == 2:
        low, high = value["interval"]
    return {"value": number(value["value"]), "low": number(low), "high": number(high)}


def estimates(values: Any) -> dict[str, dict[str, float | None]]:
    """Those entries of an object that are estimates."""
    if not isinstance(values, Mapping):
        return {}
    return {str(name): found for name, value in values.items() if (found := estimate(value)) is not None}


def as_prompt(value: Any) -> str:
    """Text of a prompt that is text or messages."""
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, Mapping)]
        return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in turns)
    return "" if value is None else str(value)


# ---- searches ----


def search_problem(row: Mapping[str, Any]) -> dict[str, Any]:
    """One searched problem with its tree."""
    candidates = [c for c in row.get("candidates") or [] if isinstance(c, Mapping)]
    chosen = row.get("chosen")
    nodes = row.get("tree") or row.get("nodes") or []
    cost = row.get("cost") if isinstance(row.get("cost"), Mapping) else {}
    columns = row.get("columns") if isinstance(row.get("columns"), Mapping) else {}
    answer = row.get("answer", (columns or {}).get("answer"))
    return {
        "n": number(row.get("n")),
        "prompt": as_prompt(row.get("prompt", row.get("problem", ""))),
        "answer": None if answer is None else str(answer),
        "correct": row.get("correct") if isinstance(row.get("correct"), bool) else None,
        "cost": {name: value for name, value in (cost or {}).items() if number(value) is not None},
        "chosen": chosen if isinstance(chosen, int) else None,
        "candidates": [search_candidate(candidate) for candidate in candidates],
        "nodes": [search_node(node) for node in nodes if isinstance(node, Mapping) and "id" in node],
    }


def search_candidate(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """One completion a search ended with."""
    steps = candidate.get("steps")
    text = "".join(map(str, steps)) if steps else candidate.get("text")
    return {
        "text": str(text or ""),
        "score": number(candidate.get("score")),
        "value": number(candidate.get("value")),
        "finished": candidate.get("finished"),
        "correct": candidate.get("correct") if isinstance(candidate.get("correct"), bool) else None,
        "end": candidate.get("end_reason", candidate.get("end")),
    }


def search_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """One step of a search tree."""
    found: dict[str, Any] = {"id": node["id"], "parent": node.get("parent"), "text": str(node.get("text") or "")}
    for name, keys in NODE_FIELDS.items():
        found[name] = next((number(node[key]) for key in keys if key in node), None)
    found |= {name: node.get(name) for name in ("status", "reason", "count", "end", "label")}
    return found


# ---- other results ----


def verifier_result(data: Mapping[str, Any], label: str) -> dict[str, Any]:
    """An evaluation of a verifier: metrics, calibration bins, and tables by position, difficulty and the like."""
    bins = data.get("calibration", data.get("bins", data.get("reliability")))
    if isinstance(bins, Mapping):
        bins = bins.get("bins")
    tables = {"by_position": breakdown(data.get("positions"))}
    tables |= {name: breakdown(value) for name, value in data.items() if name.startswith("by_")}
    groups = data.get("groups")
    tables |= {f"by_{name}": breakdown(value) for name, value in groups.items()} if isinstance(groups, Mapping) else {}
    errors = data.get("first_error")
    first = {f"first error {name}": value for name, value in errors.items()} if isinstance(errors, Mapping) else {}
    return {
        "label": str(data.get("verifier", data.get("model", label))),
        "metrics": estimates(data.get("metrics", data)) | estimates(first),
        "bins": [calibration_bin(row) for row in bins or [] if isinstance(row, Mapping)],
        "tables": {name: rows for name, rows in tables.items() if rows},
    }


def calibration_bin(row: Mapping[str, Any]) -> dict[str, float | None]:
    """A bin of a reliability diagram, however its fields are called."""

    def first(*names: str) -> float | None:
        return next((number(row[name]) for name in names if number(row.get(name)) is not None), None)

    interval = row.get("interval")
    low, high = interval if isinstance(interval, Sequence) and len(interval) == 2 else (None, None)
    return {
        "predicted": first("mean_value", "mean_predicted", "predicted", "mean_prediction", "confidence"),
        "observed": first("mean_label", "observed", "mean_observed", "fraction_positive", "accuracy"),
        "count": first("num_steps", "num_labels", "count", "num"),
        "low": first("label_low", "interval_low", "observed_low") if low is None else number(low),
        "high": first("label_high", "interval_high", "observed_high") if high is None else number(high),
    }


def breakdown(value: Any) -> list[dict[str, Any]]:
    """Rows of a breakdown given as a list of objects or as an object of objects: a label and estimates."""
    if isinstance(value, Mapping):
        value = [{"label": name, **row} for name, row in value.items() if isinstance(row, Mapping)]
    rows = []
    for row in value if isinstance(value, list) else []:
        if not isinstance(row, Mapping):
            continue
        label = row.get("label", row.get("position", row.get("name")))
        if label is None and "low" in row:
            label = f"{row['low']} to {row.get('high')}"
        inner = row.get("metrics") if isinstance(row.get("metrics"), Mapping) else row
        skipped = {"label", "position", "name", "low", "high"}
        rows.append({"label": str(label), **estimates({k: v for k, v in (inner or {}).items() if k not in skipped})})
    return rows


def diagnosis_result(data: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A diagnosis of provers: both terms of each candidate, by difficulty too, and what to use."""

    def candidates(rows: Any) -> list[dict[str, Any]]:
        return [
            {
                "label": str(row.get("label", row.get("prover", ""))),
                "prover": str(row.get("prover", "")),
                "k": number(row.get("k")),
                "numbers": estimates({k: v for k, v in row.items() if k not in ("k", "label", "prover")}),
            }
            for row in rows or []
            if isinstance(row, Mapping)
        ]

    bins = [row for row in data.get("by_difficulty") or [] if isinstance(row, Mapping)]
    return {
        "label": str(data.get("base", label)),
        "candidates": candidates(data.get("candidates")),
        "by_difficulty": [
            {"low": number(row.get("low")), "high": number(row.get("high")), "num_problems": row.get("num_problems")}
            | {"candidates": candidates(row.get("candidates"))}
            for row in bins
        ],
        "words": [str(text) for text in data.get("words") or []],
        "recommendation": flat(data.get("recommendation")),
        "warnings": [str(text) for text in data.get("warnings") or []],
    }


def flat(value: Any, prefix: str = "") -> list[list[str]]:
    """Name and text of everything in an object, nested ones with dotted names."""
    if isinstance(value, Mapping):
        return [
            pair for name, inner in value.items() for pair in flat(inner, f"{prefix}.{name}" if prefix else str(name))
        ]
    if isinstance(value, float):
        value = f"{value:.4g}"
    elif isinstance(value, list | tuple):
        value = ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
    return [] if value is None else [[prefix.replace("_", " "), str(value)]]


def evaluation_result(data: Mapping[str, Any], label: str) -> dict[str, Any]:
    """An evaluation of models: metrics with intervals, per group too, and paired tests."""
    models = data.get("models", data.get("summaries"))
    if isinstance(models, Mapping):
        models = [{"name": name, **row} for name, row in models.items() if isinstance(row, Mapping)]
    if not isinstance(models, list):
        models = [{"name": data.get("model", label), **data}]
    found = []
    for row in models:
        if not isinstance(row, Mapping):
            continue
        groups = row.get("groups") if isinstance(row.get("groups"), Mapping) else {}
        found.append(
            {
                "name": str(row.get("name", row.get("model", label))),
                "metrics": estimates(row.get("metrics")),
                "num_problems": number(row.get("num_problems")),
                "groups": {str(name): breakdown(value) for name, value in (groups or {}).items()},
            }
        )
    comparisons = data.get("comparisons", data.get("paired_tests", data.get("tests")))
    return {
        "label": label,
        "models": found,
        "comparisons": [
            {str(k): v for k, v in row.items() if isinstance(v, str | int | float | bool)} | _interval(row)
            for row in comparisons or []
            if isinstance(row, Mapping)
        ],
        "differences": [
            {name: str(row.get(name)) for name in ("metric", "first", "second")} | difference
            for row in comparisons or []
            if isinstance(row, Mapping) and (difference := estimate({**row, "value": row.get("difference")}))
        ],
    }


def _interval(row: Mapping[str, Any]) -> dict[str, str]:
    interval = row.get("interval")
    if not isinstance(interval, Sequence) or len(interval) != 2 or None in map(number, interval):
        return {}
    return {"interval": f"{interval[0]:.3f} to {interval[1]:.3f}"}


def search_points(data: Mapping[str, Any], label: str) -> list[dict[str, Any]]:
    """Accuracy against compute: one point per n, and pass@n where it was measured, as a line of its own."""
    curve = data.get("curve", data.get("points"))
    method = str(data.get("method", label))
    points = []
    for row in curve if isinstance(curve, list) else []:
        tokens = number(row.get("generated_tokens_per_problem")) if isinstance(row, Mapping) else None
        for name, line in (("accuracy", method), ("pass_at_n", f"pass@n ({method})")):
            found = estimate(row.get(name)) if isinstance(row, Mapping) else None
            if found is not None and tokens is not None:
                points.append({"line": line, "n": row.get("n"), "tokens": tokens, **found})
    return points


def other_result(data: Any, label: str) -> dict[str, str]:
    """A file of an unknown kind, as it is."""
    text = json.dumps(data, indent=1, ensure_ascii=False, default=str)
    return {"label": label, "text": text[:MAX_JSON_CHARACTERS] + ("\n…" if len(text) > MAX_JSON_CHARACTERS else "")}
