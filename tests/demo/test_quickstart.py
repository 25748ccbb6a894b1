"""The quickstart from end to end with few steps, and the parts of the experiments that can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.planted_samples import StopAtAccuracy
from trl_prl.__main__ import main
from trl_prl.demo.training import steps_to_accuracy
from trl_prl.report.plots import moving_average


PNG_SIGNATURE = b"\x89PNG\r\n"


@pytest.mark.slow
def test_quickstart_writes_plots_tables_numbers_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--planted-steps", "3", "--problems", "8", "--output-dir", str(tmp_path)]) == 0
    for name in ("planted.png", "search.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG_SIGNATURE)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [len(curve) for curve in results["planted"].values()] == [3, 3, 3, 3]
    learned, exact = results["verifier"].values()
    assert exact["auroc"] > learned["auroc"] > 0.5  # chance
    # Whoever knows the values finds what a policy that is right in 3 % of its walks hardly does.
    assert results["search"]["beam of 4, exact values"]["accuracy"]["value"] > 0.7
    assert "</html>" in (tmp_path / "report.html").read_text()
    assert len([*(tmp_path / "runs").iterdir()]) == 4
    assert len([*(tmp_path / "searches").iterdir()]) == 3
    printed = capsys.readouterr().out
    for words in ("report.html", "Planted sub-sequence", "beam of 4, learned verifier", "Not learned:"):
        assert words in printed


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
