"""The collected data set: Parquet in the stepwise format, with its card."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


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
    fields += [source.field(name) for name in others]
    return pa.schema(fields, metadata={"trl_prl": json.dumps(dict(metadata), sort_keys=True)})


def write_table(folder: Path, schema: pa.Schema, units: Iterable[list[dict[str, Any]]]) -> int:
    """Write the rows, one unit in memory at a time; the file appears whole or not at all.

    Args:
        folder (`Path`):
            Folder of the job.
        schema (`pa.Schema`):
            As [`table_schema`] returns it.
        units (`Iterable[list[dict]]`):
            Rows of each unit, in order.

    Returns:
        `int`: Number of rows.
    """
    path = folder / DATA_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    num_rows = 0
    with pq.ParquetWriter(temporary, schema) as writer:
        for rows in units:
            flat = [{**row["columns"], **row} for row in rows]
            writer.write_table(pa.Table.from_pylist(flat, schema=schema))
            num_rows += len(rows)
    os.replace(temporary, path)
    return num_rows


def dataset_card(settings: Mapping[str, Any], prover: str, spending: Mapping[str, int], num_rows: int) -> str:
    """Text of the data set's card; its header makes `datasets.load_dataset` find the Parquet file.

    Args:
        settings (`Mapping[str, Any]`):
            Settings of the job.
        prover (`str`):
            Whose values the labels are.
        spending (`Mapping[str, int]`):
            Sums over all rollouts.
        num_rows (`int`):
            Number of rows.

    Returns:
        `str`: Markdown.
    """
    rows = "\n".join(f"| `{name}` | `{json.dumps(value)}` |" for name, value in sorted(settings.items()))
    costs = "\n".join(f"| {name.removeprefix('num_').replace('_', ' ')} | {n:,} |" for name, n in spending.items())
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
---
# Step values of {prover}

{num_rows:,} solutions of `{settings["dataset"]}`, each step labelled with the probability that {prover} reaches a
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

| spent | |
|---|---|
{costs}

| setting | |
|---|---|
{rows}
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
