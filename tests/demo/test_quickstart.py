"""The quickstart from end to end with few steps, and the parts of the experiments that can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.arithmetic.task import LONG_NUM_TERMS, completion_length, reference_solution, sample_problems
from trl_prl.commands.main import main
from trl_prl.demo.training import StopAtAccuracy, steps_to_accuracy
from trl_prl.report.plots import moving_average


PNG_SIGNATURE = b"\x89PNG\r\n"


@pytest.mark.slow
def test_quickstart_writes_plots_tables_numbers_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--planted-steps", "3", "--arithmetic-steps", "2", "--problems", "4", "--output-dir", str(tmp_path)]
    assert main(["quickstart", *arguments]) == 0
    for name in ("planted.png", "arithmetic.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG_SIGNATURE)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [len(curve) for curve in results["planted"].values()] == [3, 3, 3, 3]
    assert list(results["arithmetic"]) == ["before", "GRPO", "PRL", "PAV, exact", "PAV, learned"]
    for name, result in results["arithmetic"].items():
        assert len(result["curve"]) == (0 if name == "before" else 2)
        assert all(0.0 <= score <= 100.0 for score in result["scores"].values())
    assert "</html>" in (tmp_path / "report.html").read_text()
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"grpo", "prl", "pav-exact", "pav-learned"}
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert "Planted sub-sequence" in printed
    assert "PAV" in printed


def test_quickstart_refuses_nothing_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--problems", "0"]) == 2
    assert "--problems is 0" in capsys.readouterr().err


def test_steps_to_accuracy_by_hand() -> None:
    accuracies = [0.0, 1.0, 1.0, 0.9, 1.0]
    assert steps_to_accuracy(accuracies, 0.9, window=2) == 3
    assert steps_to_accuracy(accuracies, 0.9, window=5) is None
    assert steps_to_accuracy([], 0.9) is None


def test_training_stops_at_the_accuracy() -> None:
    class Control:
        should_training_stop = False

    callback, control = StopAtAccuracy(0.9, window=2), Control()
    stopped = []
    for step, reward in enumerate([0.0, 1.0, 0.8, 1.0], start=1):
        callback.on_log(None, None, control, {"reward": reward})
        stopped.append((step, control.should_training_stop))
    assert stopped == [(1, False), (2, False), (3, True), (4, True)]


def test_moving_average_by_hand() -> None:
    assert moving_average([2.0, 4.0, 9.0, 2.0], 3).tolist() == [2.0, 3.0, 5.0, 5.0]


def test_solutions_fit_the_completion_length() -> None:
    problems = sample_problems("train", 200, seed=0, num_terms=LONG_NUM_TERMS)
    longest = max(len(reference_solution(problem)) for problem in problems)
    assert longest < completion_length(LONG_NUM_TERMS)  # one token per character, and the end token
