"""`trl-prl evaluate-verifier` on real labels and on the output of `trl-prl collect`'s format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_models import build_tokenizer
from tests.verifier_models import build_verifier
from trl_prl.__main__ import main
from trl_prl.verifier.model import ProcessAdvantageVerifier


@pytest.fixture(scope="module")
def verifier_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("verifier")
    build_verifier(build_tokenizer(), step_splitter="newline", max_length=2000).save_pretrained(path)
    return str(path)


def evaluate(verifier: str, dataset: Path, folder: Path, *words: str) -> dict[str, Any]:
    arguments = ["--verifier", verifier, "--dataset", str(dataset), "--output-dir", str(folder), *words]
    assert main(["evaluate-verifier", *arguments]) == 0
    return json.loads((folder / "verifier_evaluation.json").read_text())


@pytest.mark.slow
def test_real_labels(verifier_path: str, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "stepwise" / "processbench_gsm8k.jsonl.gz"
    words = ["--max-rows", "40", "--step-separator", r"\n\n", "--group-by", "generator", "n_steps", "--plot", "svg"]
    results = evaluate(verifier_path, path, tmp_path, *words)
    assert (results["kind"], results["format_version"]) == ("verifier_evaluation", 1)
    assert results["num_solutions"] + results["threshold"]["num_solutions_tuned_on"] == 40
    # All of these solutions have an error, so that the other accuracy and F1 are not defined.
    assert (set(results["first_error"]), results["labels"]) == ({"error_accuracy"}, "hard")
    # An untrained verifier knows nothing.
    assert 0.2 < results["metrics"]["auroc"]["value"] < 0.8
    assert sum(entry["num"] for entry in results["bins"]) == results["num_labels"]
    # A column of numbers with many values is cut into ranges.
    assert any(" to " in label for label in results["groups"]["n_steps"])
    assert (tmp_path / "verifier_evaluation.svg").stat().st_size > 1000
    rows = [json.loads(line) for line in (tmp_path / "solutions.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    # The values are those of the joined text, separators included, also of the last labelled step.
    verifier = ProcessAdvantageVerifier.from_pretrained(verifier_path)
    row = next(row for row in rows if row["rest"] and row["step_values"][-1] is not None)
    (expected,) = verifier(prompts=[row["prompt"]], steps=[[step + "\n\n" for step in row["completions"]]])
    assert row["step_values"] == pytest.approx(expected, abs=1e-5)


def test_soft_labels_and_values_that_are_missing(verifier_path: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Add {i}.\n", "completions": ["So 1\n", "2\n", "3"], "labels": [0.5, None, 1.0]} for i in range(10)
    ]
    for i, row in enumerate(rows):
        row["initial_value"] = i / 10
    rows[0]["completions"][2] = "x" * 3000
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(verifier_path, path, tmp_path / "out", "--plot", "none", "--group-by", "initial_value")
    assert (results["num_labels"], results["num_unscored"], results["num_solutions"]) == (19, 1, 10)
    assert (results["labels"], "first_error" in results) == ("monte_carlo", False)
    assert len(results["groups"]["initial_value"]) == 5


def test_the_terminal_says_what_was_judged_and_what_is_not_known(
    verifier_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": "1+2=", "completions": ["3\n", "#3"], "labels": [0.5, None], "num_rollouts": [4, 0]}
    table = pa.Table.from_pylist([row]).replace_schema_metadata({"trl_prl": json.dumps({"fingerprint": "f"})})
    pq.write_table(table, tmp_path / "values.parquet")
    verifier = ProcessAdvantageVerifier.from_pretrained(verifier_path)
    for fingerprint in ("other", "f"):
        verifier.settings = replace(verifier.settings, collected={"fingerprint": fingerprint})
        verifier.save_pretrained(tmp_path / "trained")
        caplog.clear()
        evaluate(str(tmp_path / "trained"), tmp_path / "values.parquet", tmp_path / "out", "--plot", "none")
        assert ("was trained on the prompts of" in caplog.text) == (fingerprint == "f")
    said = " ".join(capsys.readouterr().out.split())
    assert "trained on " in said
    assert "Threshold" not in said
    assert "is not known: no two steps in a row" in said


def test_mistakes_are_explained(verifier_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    words = ["--verifier", verifier_path, "--dataset", str(path), "--output-dir", str(tmp_path / "out")]
    assert main(["evaluate-verifier", *words]) == 2
    assert "no completions and no labels" in capsys.readouterr().err
    path.write_text('{"prompt": "a", "completions": ["b", "c"], "labels": [1, -1]}\n')
    assert main(["evaluate-verifier", *words]) == 2
    assert "Rescale them to [0, 1]" in capsys.readouterr().err
