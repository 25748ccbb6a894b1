"""The collected data set's table: columns of the prompts' data set keep their values."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from trl_prl.collection.output import dataset_card, table_schema, write_table
from trl_prl.jobs.config import JobConfig
from trl_prl.jobs.problems import make_problem


class NoTokenizer:
    """Enough of a tokenizer to make a problem."""

    def __call__(self, text: str) -> dict[str, Any]:
        return {"input_ids": [1]}


def test_columns_survive_the_way_through_json(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "day": [None, date(2024, 1, 2)],
            "price": [Decimal("0.50"), None],
            "gold": pa.array([10**30, None], pa.decimal256(76, 0)),
            "score": [float("nan"), 0.5],
            "meta": [{"at": date(2024, 1, 2), "n": 1}, None],
        }
    )
    dataset = Dataset(table)
    schema = table_schema(dataset, "prompt", {"prover": "p"})
    problems = [make_problem(dataset, row, JobConfig(dataset="d"), NoTokenizer()) for row in range(2)]
    # As the shards of a job keep them.
    rows = json.loads(json.dumps([{"prompt": p.prompt, "columns": p.columns, "row": p.row} for p in problems]))
    write_table(tmp_path, schema, [[row] for row in rows])
    found = pq.read_table(tmp_path / "data" / "train.parquet").select(table.column_names).to_pylist()
    assert found == [
        {"prompt": "a", "day": None, "price": "0.50", "gold": Decimal(10**30), "score": None,
         "meta": {"at": "2024-01-02", "n": 1}},
        {"prompt": "b", "day": "2024-01-02", "price": None, "gold": None, "score": 0.5, "meta": None},
    ]  # fmt: skip


def test_the_card_has_no_secrets() -> None:
    """It is pushed with the data."""
    address = "https://user:s3cretpw@host/p.jsonl"
    card = dataset_card(
        {"dataset": address, "confidence": 0.95, "unfinished": "wrong", "api_key": "k3y"}, address, {}, 3
    )
    assert "s3cretpw" not in card
    assert "k3y" not in card
    assert card.count("https://***@host/p.jsonl") >= 4
