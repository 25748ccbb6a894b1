"""Problems and samples for an evaluation: prompts of a data set, or files of samples that are there already."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trl_prl.generation.rollouts import Problem
from trl_prl.storage.row_sources import open_rows
from trl_prl.storage.row_values import missing_as_none, read_number, read_outcome, read_text, row_place

from .config import EvaluateConfig


logger = logging.getLogger(__name__)

# Where prompts and samples are looked for, in this order.
_PROMPT_COLUMNS = ("prompt", "problem", "question")
_SAMPLE_COLUMNS = ("samples", "completions", "completion")


Samples = tuple[list[Problem], list[list[dict[str, Any]]]]
"""Problems, and the samples of each."""


def read_samples(path: str, config: EvaluateConfig) -> Samples:
    """Read a file of samples.

    Args:
        path (`str`):
            A file, folder or Hub id. A row has a prompt and either `samples` (dictionaries with a `completion`, and
            possibly `correct`, `finish_reason`, an answer and scores), `completions` (whole solutions, texts or
            lists of messages) or one `completion`. Rows of the last kind are samples of one problem where their
            prompts and right answers are equal, rows of any kind where their `config.id_column` is.
        config ([`EvaluateConfig`]):
            Names of the columns and fields, and which rows.

    Returns:
        `tuple[list[Problem], list[list[dict]]]`: The problems, and the samples of each.

    Raises:
        `ValueError`: If a row has no prompt or no samples, or holds what cannot be read.
        `OSError`: If there is no such file.
    """
    problems, samples, _ = _read(path, config)
    return _grouped(problems, samples, config.id_column, path)


def read_models(path: str, config: EvaluateConfig) -> dict[str, Samples]:
    """Read a file of samples, apart for each model where `trl-prl evaluate` wrote those of several.

    Args:
        path (`str`), config ([`EvaluateConfig`]):
            As in [`read_samples`], which raises the same.

    Returns:
        `dict[str, tuple[list[Problem], list[list[dict]]]]`: What [`read_samples`] returns, by the name of the model;
        of a file of one model by `""`.
    """
    problems, samples, models = _read(path, config)
    names = list(dict.fromkeys(models))
    if len(names) == 1:
        return {"": _grouped(problems, samples, config.id_column, path)}
    found: dict[str, Samples] = {}
    for name in names:
        places = [place for place, model in enumerate(models) if model == name]
        of_model = [problems[place] for place in places], [samples[place] for place in places]
        own, drawn = _grouped(*of_model, config.id_column, path)
        # As in the evaluation that drew them: what is random depends on the number of the row.
        found[name] = [replace(problem, row=row) for row, problem in enumerate(own)], drawn
    return found


def _read(path: str, config: EvaluateConfig) -> tuple[list[Problem], list[list[dict[str, Any]]], list[str]]:
    """The rows of a file as problems and samples, and the model of each, where this command has written it."""
    problems: list[Problem] = []
    models: list[str] = []
    samples: list[list[dict[str, Any]]] = []
    for index, row in enumerate(open_rows(path).head(config.max_rows)):
        where = row_place(index, path)
        prompt_column = _first(row, (config.prompt_column, *_PROMPT_COLUMNS), where)
        sample_column = _first(row, _SAMPLE_COLUMNS, where)
        columns = {name: value for name, value in row.items() if name not in (prompt_column, sample_column)}
        # What this command writes has the columns of the problem below a key of their own.
        written_here = isinstance(columns.get("columns"), Mapping)
        models.append(str(columns.get("model", "")) if written_here else "")
        if written_here:
            columns |= columns.pop("columns")
        prompt = config.prompts().apply(read_text(row[prompt_column], f"{where} has a {prompt_column!r} that"))
        problems.append(Problem(index, prompt, (), {name: missing_as_none(value) for name, value in columns.items()}))
        entries = _entries(row, sample_column, where)
        samples.append([_sample(entry, config, f"{where} has a sample") for entry in entries])
    if not problems:
        raise ValueError(f"{path} has no rows, so there is nothing to evaluate. Give a file with samples.")
    # A column that some rows lack is null there.
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    problems = [replace(p, columns={name: p.columns.get(name) for name in names}) for p in problems]
    _warn_of_cut_samples(samples, config, path)
    return problems, samples, models


def _warn_of_cut_samples(samples: Sequence[Sequence[Mapping[str, Any]]], config: EvaluateConfig, path: str) -> None:
    """Warn where cut samples shall be checked and the file calls them wrong, perhaps only for being cut."""
    cut = [sample for row in samples for sample in row if sample.get("finish_reason") == "length"]
    num_wrong = sum(sample["correct"] is False for sample in cut)
    if config.unfinished == "check" and num_wrong:
        logger.warning(
            "%s: %d samples at the length limit are called wrong by the file, which is kept, so unfinished='check' "
            "does not check them. Give --recheck to check all samples.",
            path,
            num_wrong,
        )


def _grouped(
    problems: list[Problem], samples: list[list[dict[str, Any]]], id_column: str | None, path: str
) -> Samples:
    """Problems and samples, with those of one problem put together where rows have one sample each."""
    if id_column is None and any(len(row) > 1 for row in samples):
        return problems, samples
    return _merged(problems, samples, id_column, path)


def _entries(row: Mapping[str, Any], column: str, where: str) -> list[Any]:
    """The samples of a row."""
    found = row[column]
    if column == "completion":
        return [found]
    if not isinstance(found, list):
        raise ValueError(
            f"{where} has {found!r:.80} as {column!r}, which is no list. Give a list of samples, or name a column of "
            "one sample 'completion'."
        )
    if column == "completions" and row.get("labels") is not None:
        raise ValueError(
            f"{where} has `completions` with `labels`, which are the steps of one solution, but whole solutions are "
            "expected. Join the steps into one text as `completion`, or evaluate labels with `evaluate-verifier`."
        )
    return found


def _first(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if row.get(name) is not None:
            return name
    raise ValueError(
        f"{where} has the columns {', '.join(row)} and none of {', '.join(dict.fromkeys(names))}. A row needs a "
        "prompt and samples. Rename a column, or name that of the prompts with prompt_column."
    )


def _sample(entry: Any, config: EvaluateConfig, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or "role" in entry:
        # A text, or a list of messages.
        completion = [entry] if isinstance(entry, Mapping) else entry
        return {"completion": read_text(completion, f"{where} that"), "scores": {}}
    if entry.get("completion") is None:
        raise ValueError(
            f"{where} with the fields {', '.join(entry)} and no 'completion', so there is nothing to evaluate. Give "
            "each sample a completion."
        )
    given = entry.get("scores") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} whose 'scores' are {given!r:.80}. Name each: an object of numbers, or of lists.")
    scores = {**given, **{field: _lookup(entry, field, where) for field in config.score_fields}}
    # A pattern that is given says what the answer is, whatever the file took for it.
    fields = (config.answer_field, "answer") if config.answer_pattern is None else ()
    answers = [{"answer": missing_as_none(entry[name])} for name in fields if name in entry]
    correct = None if config.recheck else entry.get("correct")
    return {
        **(answers[0] if answers else {}),
        "completion": read_text(entry["completion"], f"{where} whose 'completion'"),
        "finish_reason": entry.get("finish_reason"),
        "num_tokens": entry.get("num_tokens"),
        "correct": read_outcome(correct, f"{where} whose 'correct'", config.reward_threshold),
        "scores": {name: _score(value, f"{where} whose score {name!r}") for name, value in scores.items()},
    }


def _score(value: Any, where: str) -> Any:
    """A score: a number, or one per step."""
    if isinstance(value, list):
        return [missing_as_none(read_number(item, where)) for item in value]
    return missing_as_none(read_number(value, where))


def _lookup(entry: Mapping[str, Any], field: str, where: str) -> Any:
    value: Any = entry
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(
                f"{where} without the score field {field!r}; its fields are {', '.join(entry)}. Samples without a "
                "score cannot be ranked. Correct score_fields."
            )
        value = value[name]
    return value


def _merged(
    problems: Sequence[Problem], samples: Sequence[Sequence[dict[str, Any]]], id_column: str | None, path: str
) -> Samples:
    """Rows that are samples of one problem, put together; what differs between them is none of its columns."""
    members: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        if id_column is not None and problem.columns.get(id_column) is None:
            raise ValueError(
                f"Row {problem.row} of {path} has no column {id_column!r} to tell its problem by; its columns are "
                f"{', '.join(problem.columns) or 'none'}. Correct id_column, or leave it out to group by prompts."
            )
        # Samples that are held against different answers are not of one problem.
        same = [problem.prompt, problem.columns.get("answer")] if id_column is None else problem.columns[id_column]
        members.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(place)
    merged, differing = [], set()
    for places in members.values():
        first = problems[places[0]]
        kept = {
            name: value
            for name, value in first.columns.items()
            if all(problems[place].columns.get(name) == value for place in places)
        }
        differing |= {name for place in places for name in problems[place].columns} - {*kept}
        merged.append(replace(first, columns=kept))
    if differing:
        logger.warning(
            "%s: rows of one problem differ in %s, so these are taken for columns of the samples and left out of the "
            "problems. If such rows are problems of their own, name the column that tells them apart with id_column.",
            path,
            ", ".join(sorted(differing)),
        )
    num_prompts = len({json.dumps(problem.prompt, sort_keys=True, default=str) for problem in merged})
    if id_column is None and num_prompts < len(merged):
        logger.warning(
            "%s: %d prompts are there with several right answers, and count as problems of their own for each.",
            path,
            len(merged) - num_prompts,
        )
    return merged, [[sample for place in places for sample in samples[place]] for places in members.values()]
