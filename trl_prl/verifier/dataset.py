"""Data sets of stepwise rows, made ready for [`PAVRewardTrainer`]."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value

from trl_prl.metrics.step_values import POSITIVE
from trl_prl.prompts.chat import is_messages
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.storage.row_values import read_labels, read_steps

from .config import PAVRewardConfig
from .formats import add_separator
from .rows import clean_labels, cut_after_first_error, is_finished, tokenize_stepwise


logger = logging.getLogger(__name__)

PREPARED = Features(
    {
        "input_ids": List(Value("int32")),
        "positions": List(Value("int32")),
        "labels": List(Value("float32")),
        "length": Value("int32"),
        "num_cut_labels": Value("int32"),
        # `RewardTrainer` takes a data set with these two as tokenised, and leaves it alone.
        "chosen_ids": List(Value("int32")),
        "rejected_ids": List(Value("int32")),
    }
)


def prepare_stepwise_dataset(
    dataset: Dataset | IterableDataset, tokenizer: Any, args: PAVRewardConfig, name: str
) -> Dataset | IterableDataset:
    """Tokenise rows, put labels at the positions of prompt and steps, and drop rows without any label.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Stepwise rows. A data set that was prepared already is returned as it is.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the verifier.
        args ([`PAVRewardConfig`]):
            Settings.
        name (`str`):
            What to call the data set in messages.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: Columns of `PREPARED`. Position and label of the prompt
        come first.

    Raises:
        `ValueError`: If a column is missing, a row is malformed, or no row is left.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    if set(PREPARED) <= set(columns):
        return dataset
    if missing := sorted({args.prompt_column, "completions", "labels"} - set(columns)):
        raise ValueError(
            f"The {name} data set has the columns {columns} and lacks {missing}. Steps and their labels cannot be "
            "found. Pass stepwise rows; `trl_prl.verifier.formats` converts public formats to them."
        )
    _warn_without_separators(dataset, args, name)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    kwargs = {
        "fn_kwargs": {"tokenizer": tokenizer, "args": _RowArguments(args), "name": name},
        "with_indices": True,
        "remove_columns": columns,
        "features": PREPARED,
    }
    if isinstance(dataset, IterableDataset):
        return dataset.map(prepare_row, **kwargs).filter(has_labels)
    with args.main_process_first(desc=f"preparing the {name} data set"):
        prepared = dataset.map(prepare_row, num_proc=args.dataset_num_proc, desc=f"Tokenizing {name} steps", **kwargs)
        kept = prepared.filter(has_labels, num_proc=args.dataset_num_proc, desc=f"Dropping unlabelled {name} rows")
    if not len(kept):
        raise ValueError(
            f"None of the {len(prepared)} rows of the {name} data set has a label to learn from: "
            f"{', '.join(_losses(prepared, args))}. Give labels between 0 and 1, or raise `max_length`."
        )
    if losses := _losses(prepared, args):
        logger.warning("%s data set, %d rows: %s are left out.", name, len(prepared), ", ".join(losses))
    return kept


def _losses(prepared: Dataset, args: PAVRewardConfig) -> list[str]:
    """What has no label: rows that never had one, and what the length took."""
    rows = [(has_labels(row), row["num_cut_labels"]) for row in prepared.select_columns(["labels", "num_cut_labels"])]
    beyond = f"beyond {args.max_length} tokens"
    losses = {
        "rows without any label (null, as of steps whose rollouts did not count)": rows.count((False, 0)),
        f"rows with labels only {beyond}": sum(not kept and num_cut > 0 for kept, num_cut in rows),
        f"labels {beyond} in other rows": sum(num_cut for kept, num_cut in rows if kept),
    }
    return [f"{number} {what}" for what, number in losses.items() if number]


def prepare_eval_dataset(eval_dataset: Any, tokenizer: Any, args: PAVRewardConfig) -> Any:
    """Make evaluation rows ready: one data set, several by name, or the name of one of the trainer's own."""
    if isinstance(eval_dataset, dict):
        return {name: prepare_stepwise_dataset(rows, tokenizer, args, name) for name, rows in eval_dataset.items()}
    if eval_dataset is None or isinstance(eval_dataset, str):
        return eval_dataset
    return prepare_stepwise_dataset(eval_dataset, tokenizer, args, "eval")


def prompt_type_of(dataset: Dataset | IterableDataset, args: PAVRewardConfig) -> str | None:
    """Whether the prompts of a data set are `"text"` or `"messages"`; `None` for one that is prepared already."""
    row = next(iter(dataset), None)
    if row is None or args.prompt_column not in row:
        return None
    return "messages" if is_messages(args.prompts().prompt_of(row)) else "text"


class _RowArguments:
    """The few settings a row depends on, so that the cache of `map` does not miss when another one changes."""

    def __init__(self, args: PAVRewardConfig) -> None:
        self.prompts = args.prompts()
        # What is only stored with the verifier, or used after the model.
        self.settings = replace(args.verifier_settings(), step_splitter=None, prover=None, best_of_k=1, collected=None)
        self.step_separator = args.step_separator
        self.cut_at_first_error = args.cut_at_first_error


def prepare_row(row: dict[str, Any], index: int, tokenizer: Any, args: Any, name: str) -> dict[str, Any]:
    """Tokenise one row and put its labels at its positions."""
    try:
        steps = add_separator(read_steps(row["completions"], "The solution"), args.step_separator)
        labels = clean_labels(row["labels"], len(steps))
        initial = read_labels([row.get("initial_value")], "The initial value")
        finished, num_steps = is_finished(row), len(steps)
        if args.cut_at_first_error:
            steps, labels = cut_after_first_error(steps, labels)
        finished = finished and len(steps) == num_steps
        prompt = args.prompts.prompt_of(row)
        tokens = tokenize_stepwise(tokenizer, prompt, steps, args.settings, _pieces_of(tokenizer), finished)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Row {index} of the {name} data set cannot be used: {error}") from error
    at_positions = list(zip(tokens.positions, initial + labels, strict=True))
    return {
        "input_ids": tokens.input_ids,
        "positions": tokens.positions,
        "labels": [math.nan if position < 0 else label for position, label in at_positions],
        "length": len(tokens.input_ids),
        "num_cut_labels": sum(position < 0 and not math.isnan(label) for position, label in at_positions),
        "chosen_ids": [],
        "rejected_ids": [],
    }


# `map` calls with one row at a time, and the table of a tokenizer takes long to build.
_pieces_of = lru_cache(maxsize=1)(TokenPieces)


def has_labels(row: dict[str, Any]) -> bool:
    """Whether a prepared row has a label; without one its loss would be a mean of nothing."""
    return any(label is not None and not math.isnan(label) for label in row["labels"])


def balanced_class_weights(dataset: Dataset | IterableDataset) -> tuple[float, float]:
    """Weights with which labels below 0.5 and from 0.5 on count equally in total, and 1 on average.

    Args:
        dataset ([`~datasets.Dataset`]):
            Prepared rows.

    Returns:
        `tuple[float, float]`: Weight of the labels below 0.5, and of the others; both 1 where one class is empty.

    Raises:
        `ValueError`: If the data set is a stream, whose labels cannot be counted beforehand.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "`balance_classes` is True, but the training data is an `IterableDataset`, whose labels cannot be counted "
            "beforehand. Pass a `Dataset`, or set `balance_classes=False` and balance the stream yourself."
        )
    labels = np.concatenate([np.asarray(row, dtype=np.float64) for row in dataset["labels"]])
    labels = labels[~np.isnan(labels)]
    num_negative = int((labels < POSITIVE).sum())
    num_positive = len(labels) - num_negative
    if not num_negative or not num_positive:
        return 1.0, 1.0
    return len(labels) / (2 * num_negative), len(labels) / (2 * num_positive)


def _warn_without_separators(dataset: Dataset | IterableDataset, args: PAVRewardConfig, name: str) -> None:
    if args.step_separator:
        return
    rows = [row["completions"] for _, row in zip(range(8), dataset, strict=False)]
    inner = [step for row in rows if isinstance(row, list) for step in row[:-1] if isinstance(step, str)]
    if inner and not any(step[-1:].isspace() for step in inner):
        logger.warning(
            "No step of the first rows of the %s data set ends with whitespace, so that joined they run into each "
            "other: %r. If line breaks were taken out when they were split, set `step_separator` to put them back.",
            name,
            inner[0][-40:],
        )
