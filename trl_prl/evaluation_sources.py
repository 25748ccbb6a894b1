"""Problems and samples for an evaluation: prompts of a data set, or files of samples that are there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_prl.evaluate_config import EvaluateConfig
from trl_prl.rollouts import Problem
from trl_prl.row_files import read_rows


# Where prompts and samples are looked for, in this order.
_PROMPT_COLUMNS = ("prompt", "problem", "question")
_SAMPLE_COLUMNS = ("samples", "completions", "completion")


def read_samples(path: str, config: EvaluateConfig) -> tuple[list[Problem], list[list[dict[str, Any]]]]:
    """Read a file of samples.

    Args:
        path (`str`):
            A `.jsonl`, `.jsonl.gz` or `.parquet` file. A row has a prompt and either `samples` (dictionaries with a
            `completion`, and possibly `correct`, `finish_reason`, an answer and scores), `completions` (texts, or
            lists of messages) or one `completion`; a problem may have several rows of the last kind.
        config ([`EvaluateConfig`]):
            Names of the columns and fields, and which rows.

    Returns:
        `tuple[list[Problem], list[list[dict]]]`: The problems, and the samples of each.

    Raises:
        `ValueError`: If a row has no prompt or no samples.
        `OSError`: If there is no such file.
    """
    rows, _ = read_rows(Path(path))
    problems: list[Problem] = []
    samples: list[list[dict[str, Any]]] = []
    for index, row in enumerate(rows):
        if config.max_rows is not None and index >= config.max_rows:
            break
        prompt_column = _first(row, (config.prompt_column, *_PROMPT_COLUMNS), index, path)
        sample_column = _first(row, _SAMPLE_COLUMNS, index, path)
        found = row[sample_column]
        entries = [found] if sample_column == "completion" else found
        columns = {name: value for name, value in row.items() if name not in (prompt_column, sample_column)}
        # What this command writes has the columns of the problem below a key of their own.
        columns = {**columns, **(columns.pop("columns", None) or {})}
        problems.append(Problem(index, row[prompt_column], (), columns))
        samples.append([_sample(entry, config, index, path) for entry in entries])
    if not problems:
        raise ValueError(f"{path} has no rows, so there is nothing to evaluate. Give a file with samples.")
    return _merged(problems, samples) if all(len(row) == 1 for row in samples) else (problems, samples)


def _first(row: Mapping[str, Any], names: Sequence[str], index: int, path: str) -> str:
    for name in names:
        if row.get(name) is not None:
            return name
    raise ValueError(
        f"Row {index} of {path} has the columns {', '.join(row)} and none of {', '.join(dict.fromkeys(names))}. A row "
        "needs a prompt and samples. Rename a column, or name that of the prompts with prompt_column."
    )


def _sample(entry: Any, config: EvaluateConfig, index: int, path: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or "role" in entry:
        # A text, or a list of messages.
        return {"completion": [entry] if isinstance(entry, Mapping) else entry, "scores": {}}
    if entry.get("completion") is None:
        raise ValueError(
            f"Row {index} of {path} has a sample with the fields {', '.join(entry)} and no 'completion', so there is "
            "nothing to evaluate. Give each sample a completion."
        )
    scores = dict(entry.get("scores") or {})
    scores.update({field: _lookup(entry, field, index, path) for field in config.score_fields})
    answers = [{"answer": entry[name]} for name in (config.answer_field, "answer") if name in entry]
    return {
        **(answers[0] if answers else {}),
        "completion": entry["completion"],
        "finish_reason": entry.get("finish_reason"),
        "num_tokens": entry.get("num_tokens"),
        "correct": None if config.recheck else entry.get("correct"),
        "scores": scores,
    }


def _lookup(entry: Mapping[str, Any], field: str, index: int, path: str) -> Any:
    value: Any = entry
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(
                f"Row {index} of {path} has a sample without the score field {field!r}; its fields are "
                f"{', '.join(entry)}. Samples without a score cannot be ranked. Correct score_fields."
            )
        value = value[name]
    return value


def _merged(
    problems: Sequence[Problem], samples: Sequence[Sequence[dict[str, Any]]]
) -> tuple[list[Problem], list[list[dict[str, Any]]]]:
    """Rows of one completion each: those of equal prompt and columns are samples of one problem."""
    places: dict[str, int] = {}
    merged: tuple[list[Problem], list[list[dict[str, Any]]]] = ([], [])
    for problem, row in zip(problems, samples, strict=True):
        key = json.dumps([problem.prompt, problem.columns], sort_keys=True, default=str)
        if key not in places:
            places[key] = len(merged[0])
            merged[0].append(problem)
            merged[1].append([])
        merged[1][places[key]].extend(row)
    return merged


def checksum(problems: Sequence[Problem], samples: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Checksum of everything in a file of samples, so that a job is not resumed with another one."""
    digest = hashlib.blake2b(digest_size=16)
    for problem, row in zip(problems, samples, strict=True):
        digest.update(json.dumps([problem.prompt, problem.columns, row], sort_keys=True, default=str).encode())
    return digest.hexdigest()
