"""The collected data set: Parquet in the stepwise format, with its card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from trl_prl.jobs.config import without_unset
from trl_prl.jobs.masking import mask_secrets
from trl_prl.metrics.sampling_estimates import pass_at_k
from trl_prl.storage.markdown import as_text, table
from trl_prl.storage.row_files import write_rows
from trl_prl.storage.row_tables import json_type


DATA_FILE = "data/train.parquet"

_LIST_COLUMNS = {
    "completions": pa.string(),
    "labels": pa.float64(),
    "num_rollouts": pa.int64(),
    "num_correct": pa.int64(),
    "interval_low": pa.float64(),
    "interval_high": pa.float64(),
    "num_unfinished": pa.int64(),
    "num_failed": pa.int64(),
}
_COLUMNS = {
    "row": pa.int64(),
    **{name: pa.list_(kind) for name, kind in _LIST_COLUMNS.items()},
    "initial_value": pa.float64(),
    "initial_num_rollouts": pa.int64(),
    "initial_num_correct": pa.int64(),
    "initial_interval_low": pa.float64(),
    "initial_interval_high": pa.float64(),
    "outcome": pa.float64(),
    "finish_reason": pa.string(),
    "num_seeds": pa.int64(),
    "branch_at": pa.int64(),
    "rest": pa.string(),
}
RESERVED_COLUMNS = {*_COLUMNS, "prompt"}


def table_schema(dataset: Any, prompt_column: str, metadata: Mapping[str, Any]) -> pa.Schema:
    """Schema of the output.

    Args:
        dataset ([`~datasets.Dataset`]):
            The prompts' data set; its other columns are kept.
        prompt_column (`str`):
            Its column of prompts.
        metadata (`Mapping[str, Any]`):
            Written into the file: prover, splitter and all settings, as JSON values.

    Returns:
        `pa.Schema`: The schema, with the metadata under the key `trl_prl`.

    Raises:
        `ValueError`: When a column of the data set has the name of one of the output.
    """
    source = dataset.features.arrow_schema
    others = [name for name in source.names if name != prompt_column]
    clashes = sorted(set(others) & RESERVED_COLUMNS)
    if clashes:
        raise ValueError(
            f"The dataset has the columns {', '.join(clashes)}, which the output has with another meaning. Rename or "
            "remove them first."
        )
    fields = [pa.field("prompt", source.field(prompt_column).type)]
    fields += [pa.field(name, kind) for name, kind in _COLUMNS.items()]
    # Shards hold JSON, where dates and the like are texts.
    fields += [pa.field(name, json_type(source.field(name).type)) for name in others]
    return pa.schema(fields, metadata={"trl_prl": json.dumps(mask_secrets(metadata), sort_keys=True)})


def write_table(folder: Path, schema: pa.Schema, units: Iterable[list[dict[str, Any]]]) -> None:
    """Write the rows, one unit in memory at a time; the file appears whole or not at all.

    Args:
        folder (`Path`):
            Folder of the job.
        schema (`pa.Schema`):
            As [`table_schema`] returns it.
        units (`Iterable[list[dict]]`):
            Rows of each unit, in order.
    """
    with write_rows(folder / DATA_FILE, lambda: schema) as write:
        for rows in units:
            write({**row["columns"], **row} for row in rows)


def dataset_card(settings: Mapping[str, Any], prover: str, spending: Mapping[str, int], num_rows: int) -> str:
    """Text of the data set's card; its header makes `datasets.load_dataset` find the Parquet file.

    Args:
        settings (`Mapping[str, Any]`):
            Settings of the job, as JSON values.
        prover (`str`):
            Whose values the labels are.
        spending (`Mapping[str, int]`):
            Sums over all rollouts.
        num_rows (`int`):
            Number of rows.

    Returns:
        `str`: Markdown.
    """
    settings, prover = mask_secrets(settings), mask_secrets(prover)
    shown = sorted(without_unset(settings).items())
    settings_table = table(("setting", "value"), ((name, json.dumps(value)) for name, value in shown))
    costs = ((name.removeprefix("num_").replace("_", " "), f"{n:,}") for name, n in spending.items())
    prover, data = as_text(prover), as_text(settings["dataset"])
    return f"""---
tags:
- trl_prl
- process-reward
- stepwise-supervision
configs:
- config_name: default
  data_files:
  - split: train
    path: {DATA_FILE}
# How the rows were made, for whatever is trained on them.
trl_prl: {json.dumps(dict(settings), sort_keys=True)}
---
# Step values of {prover}

{num_rows:,} solutions of {data}, each step labelled with the probability that {prover} reaches a
correct answer from there, estimated from rollouts (PAV, https://huggingface.co/papers/2410.08146). Collected with
`trl-prl collect`.

`completions` are the steps and `labels` their values; `initial_value` is that of the prompt. `num_rollouts`,
`num_correct`, `interval_low`, `interval_high` (Wilson, {
        settings["confidence"]:.0%}), `num_unfinished` and `num_failed`
say how each was measured: a step that ends a solution has its outcome as value and no rollouts, and one without any
counted rollout has no value. `outcome` is that of the whole solution, `rest` the steps that were not labelled.
Rollouts that reached the length limit are {
        "left out of the values" if settings["unfinished"] == "exclude" else "counted as wrong"
    }.

{table(("spent", "number"), costs)}

{settings_table}
"""


def push(folder: Path, repo_id: str) -> str:
    """Push the Parquet file and the card to a data set on the Hub.

    Args:
        folder (`Path`):
            Folder of a finished job.
        repo_id (`str`):
            Hub id; made, private, if absent.

    Returns:
        `str`: Address of the data set.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id, repo_type="dataset", folder_path=folder, allow_patterns=[DATA_FILE, "README.md"]
    )
    return str(address)


def best_of_k_row(
    row: dict[str, Any], k: int, estimator: Literal["plug_in", "unbiased"] = "plug_in"
) -> dict[str, Any]:
    """Values of the Best-of-K prover from those of the prover, without any further rollout.

    `Q^BoK = 1 - (1 - Q)^K` (https://huggingface.co/papers/2410.08146, eq. 30). Put in the fraction correct, it is too
    low on average, as the function is concave; from n >= K rollouts [`pass_at_k`] estimates it without bias, and a
    value of fewer has no such estimate and becomes `None`. Outcomes stay what they are.

    Args:
        row (`dict`):
            Row of [`estimate_step_values`].
        k (`int`):
            K, at least 1.
        estimator (`str`, *optional*, defaults to `"plug_in"`):
            `"plug_in"` or `"unbiased"`.

    Returns:
        `dict`: The row with other labels, initial value and interval ends.

    Raises:
        `ValueError`: When `k` is below 1 or the estimator is unknown.
    """
    if k < 1 or estimator not in ("plug_in", "unbiased"):
        raise ValueError(
            f"Got k={k} and estimator={estimator!r}. A Best-of-K prover draws at least one sample, and there are two "
            "estimators. Use k >= 1, and 'plug_in' or 'unbiased'."
        )

    def best(value: float | None) -> float | None:
        return None if value is None else 1.0 - (1.0 - value) ** k

    def estimate(value: float | None, num_rollouts: int, num_correct: int) -> float | None:
        if value is None or num_rollouts == 0 or estimator == "plug_in":
            return best(value)
        return pass_at_k(num_rollouts, num_correct, k) if num_rollouts >= k else None

    counts = zip(row["labels"], row["num_rollouts"], row["num_correct"], strict=True)
    return {
        **row,
        "labels": [estimate(*entry) for entry in counts],
        "initial_value": estimate(row["initial_value"], row["initial_num_rollouts"], row["initial_num_correct"]),
        **{name: [best(end) for end in row[name]] for name in ("interval_low", "interval_high")},
        **{name: best(row[name]) for name in ("initial_interval_low", "initial_interval_high")},
    }
