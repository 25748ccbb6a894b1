"""Result files for the report: searches, evaluations, verifiers, diagnoses, collections, scored solutions.

Readers are tolerant: a field that is missing is left out of the page, a file of an unknown kind is shown as it is, and
a file that is no result at all says so once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_prl.prompts.chat import content_text

from .limits import json_lines, shorten_row


MAX_JSON_CHARACTERS = 20_000


def read_json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a file of JSON lines, gzipped or not, with long texts cut; other lines are passed over."""
    return (row for row in json_lines(path) if row is not None)


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
    return {str(name): found for name, value in mapping(values).items() if (found := estimate(value)) is not None}


def mapping(value: Any) -> Mapping[str, Any]:
    """An object, or an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def mappings(values: Any) -> list[Mapping[str, Any]]:
    """The objects of a list, or none."""
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list) else []


def as_text(conversation: Any) -> str:
    """Text of a prompt or a completion: that of messages one below the other, each after its role."""
    if isinstance(conversation, list) and all(isinstance(message, Mapping) for message in conversation):
        return "\n".join(
            f"{message.get('role', '')}: {content_text(message.get('content'))}" for message in conversation
        )
    return "" if conversation is None else str(conversation)


# ---- searches ----


def search_problem(row: Mapping[str, Any]) -> dict[str, Any]:
    """One searched problem with its tree."""
    chosen, answer = row.get("chosen"), mapping(row.get("columns")).get("answer")
    return {
        "n": number(row.get("n")),
        "prompt": as_text(row.get("prompt")),
        "answer": None if answer is None else str(answer),
        "correct": row.get("correct") if isinstance(row.get("correct"), bool) else None,
        "cost": {name: value for name, value in mapping(row.get("cost")).items() if number(value) is not None},
        "chosen": chosen if isinstance(chosen, int) else None,
        "candidates": [search_candidate(candidate) for candidate in mappings(row.get("candidates"))],
        "nodes": [search_node(node) for node in mappings(row.get("tree")) if "id" in node],
    }


def search_candidate(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """One completion a search ended with."""
    return {
        "text": str(candidate.get("text") or ""),
        "score": number(candidate.get("score")),
        "value": number(candidate.get("value")),
        "finished": candidate.get("finished"),
        "correct": candidate.get("correct") if isinstance(candidate.get("correct"), bool) else None,
        "end": candidate.get("end_reason"),
    }


def search_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """One step of a search tree."""
    return {
        "id": node["id"],
        "parent": node.get("parent"),
        "text": str(node.get("text") or ""),
        "q": number(node.get("value")),
        "a": number(node.get("advantage")),
        "score": number(node.get("score")),
        **{name: node.get(name) for name in ("status", "reason", "count")},
    }


# ---- other results ----


def verifier_result(data: Mapping[str, Any], label: str) -> dict[str, Any]:
    """An evaluation of a verifier: metrics, calibration bins, and tables by position, difficulty and the like."""
    tables = {"by_position": breakdown(data.get("positions"))}
    tables |= {f"by_{name}": breakdown(value) for name, value in mapping(data.get("groups")).items()}
    first = {f"first error {name}": value for name, value in mapping(data.get("first_error")).items()}
    return {
        "label": str(data.get("verifier", label)),
        "metrics": estimates(data.get("metrics")) | estimates(first),
        "bins": [calibration_bin(row) for row in mappings(data.get("bins"))],
        "tables": {name: rows for name, rows in tables.items() if rows},
    }


def calibration_bin(row: Mapping[str, Any]) -> dict[str, float | None]:
    """A bin of a reliability diagram."""
    names = {"predicted": "mean_value", "observed": "mean_label", "count": "num"}
    return {shown: number(row.get(name)) for shown, name in names.items()}


def breakdown(value: Any) -> list[dict[str, Any]]:
    """Rows of a breakdown given as a list of objects or as an object of objects: a label and estimates."""
    if isinstance(value, Mapping):
        value = [{"position": name, **row} for name, row in value.items() if isinstance(row, Mapping)]
    return [{"label": str(row.get("position")), **estimates(row.get("metrics", row))} for row in mappings(value)]


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
            for row in mappings(rows)
        ]

    return {
        "label": str(data.get("base", label)),
        "candidates": candidates(data.get("candidates")),
        "by_difficulty": [
            {"low": number(row.get("low")), "high": number(row.get("high")), "num_problems": row.get("num_problems")}
            | {"candidates": candidates(row.get("candidates"))}
            for row in mappings(data.get("by_difficulty"))
        ],
        "words": [str(text) for text in data.get("words") or []],
        "warnings": [str(text) for text in data.get("warnings") or []],
    }


def evaluation_result(data: Mapping[str, Any], label: str) -> dict[str, Any]:
    """An evaluation of models: metrics with intervals, per group too, and paired tests."""
    comparisons = mappings(data.get("comparisons"))
    return {
        "label": label,
        "models": [
            {
                "name": str(row.get("name", label)),
                "metrics": estimates(row.get("metrics")),
                "groups": {str(name): breakdown(value) for name, value in mapping(row.get("groups")).items()},
            }
            for row in mappings(data.get("models"))
        ],
        "comparisons": [
            {str(k): v for k, v in row.items() if isinstance(v, str | int | float | bool)} | _interval(row)
            for row in comparisons
        ],
        "differences": [
            {name: str(row.get(name)) for name in ("metric", "before", "after")} | {"difference": difference}
            for row in comparisons
            if (difference := estimate({**row, "value": row.get("difference")}))
        ],
    }


def _interval(row: Mapping[str, Any]) -> dict[str, str]:
    interval = row.get("interval")
    if not isinstance(interval, Sequence) or len(interval) != 2 or None in map(number, interval):
        return {}
    # Where all problems say the same, resampling them shows no spread.
    return {"interval": f"{interval[0]:.3f} to {interval[1]:.3f}" if interval[0] < interval[1] else "-"}


def search_points(data: Mapping[str, Any], label: str) -> list[dict[str, Any]]:
    """Accuracy against compute: one point per n, and pass@n where it was measured, as a line of its own."""
    method = str(data.get("method", label))
    points = []
    for row in mappings(data.get("curve")):
        # What pass@n is of are samples of their own, which cost other tokens than the search.
        for name, line, cost in (
            ("accuracy", method, "generated_tokens_per_problem"),
            ("pass_at_n", f"pass@n ({method})", "pass_at_n_tokens_per_problem"),
        ):
            found, tokens = estimate(row.get(name)), number(row.get(cost))
            if found is not None and tokens is not None:
                points.append({"line": line, "n": row.get("n"), "tokens": tokens, **found})
    return points


def other_result(data: Any, label: str) -> dict[str, str]:
    """A file of an unknown kind, as it is."""
    text = json.dumps(data, indent=1, ensure_ascii=False, default=str)
    return {"label": label, "text": text[:MAX_JSON_CHARACTERS] + ("\n…" if len(text) > MAX_JSON_CHARACTERS else "")}
