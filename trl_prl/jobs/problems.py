"""The problems of a job: rows of a data set, each with its prompt as the model sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from trl_prl.generation.rollouts import Problem
from trl_prl.storage.row_values import json_value, read_text, row_place

from .config import JobConfig


def select_problems(dataset: Any, config: JobConfig) -> Any:
    """The rows of a data set that a job is about.

    Args:
        dataset ([`~datasets.Dataset`]):
            Prompts and the columns that rewards read.
        config ([`JobConfig`]):
            The job.

    Returns:
        [`~datasets.Dataset`]: The first `config.max_rows` rows, or all, with prompts as models are given them.

    Raises:
        `ValueError`: If there is no column of prompts, or the options do not fit what it holds.
    """
    if config.prompt_column not in dataset.column_names:
        raise ValueError(
            f"The dataset has the columns {', '.join(dataset.column_names)} and not {config.prompt_column!r}, so "
            "there are no prompts. Name their column with prompt_column."
        )
    if config.max_rows is not None:
        dataset = dataset.select(range(min(config.max_rows, len(dataset))))
    prompts = config.prompts()
    if not prompts.changes_prompts:
        return dataset
    return dataset.map(lambda row: {config.prompt_column: prompts.prompt_of(row)}, desc="Writing prompts")


def make_problem(dataset: Any, row: int, config: JobConfig, tokenizer: Any) -> Problem:
    """One row of a data set as a problem.

    Args:
        dataset ([`~datasets.Dataset`]):
            What [`select_problems`] returned.
        row (`int`):
            Position of the row.
        config ([`JobConfig`]):
            The job.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model that reads the prompt.

    Returns:
        [`Problem`]: The problem.
    """
    # As JSON values, which is what the shards of a job keep.
    columns = {name: json_value(value) for name, value in dataset[row].items()}
    prompt = read_text(columns.pop(config.prompt_column), f"{row_place(row, config.dataset)} has a prompt that")
    return Problem(row, prompt, config.prompts().token_ids(tokenizer, prompt), columns)


def fingerprint(rows: Iterable[Any]) -> str:
    """Checksum of everything in rows, such as those of a data set, so that a job is not resumed with other prompts."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
