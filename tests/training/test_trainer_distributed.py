"""Two processes compute what one does: same global batch, same advantages, same metrics, same parameters."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripts.distributed_train import ONLINE, train
from tests.trainer_runs import KINDS, PROCESS_METRICS
from trl_prl.report.run_files import read_run


pytestmark = pytest.mark.slow


def run_two_processes(
    script: str, model: str, folder: Path, repo_root: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of tests/scripts on two real processes, to whatever end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [f"tests/scripts/{script}", "--model", model, "--output-dir", str(folder), *words]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    return subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, timeout=300)


def launch_two_processes(script: str, model: str, folder: Path, repo_root: Path) -> None:
    """Run a script of tests/scripts on two real processes; what they find goes to the folder."""
    done = run_two_processes(script, model, folder, repo_root)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def two_processes(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """Folder of what two real processes found; both trainers in one launch, as starting costs the most."""
    folder = tmp_path_factory.mktemp("two_processes")
    launch_two_processes("distributed_train.py", tiny_model_path, folder, repo_root)
    return folder


def assert_close(value: float | None, expected: float | None, name: str) -> None:
    # Other sums in another order: float32 sums of a few hundred terms, carried through up to four optimizer steps.
    if expected is None or math.isnan(expected):
        assert value is None or math.isnan(value), name
    else:
        assert value == pytest.approx(expected, rel=2e-4, abs=2e-6), name


def assert_equal_runs(kind: str, ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """What two processes found together is what one found."""
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert one["world_size"] == 1

    # Advantages: each loss has 8 rows, on one process or 4 on each of two.
    for loss in range(4):
        rows = sorted(one["advantages"][loss * 8 : (loss + 1) * 8])
        shared = sorted(row for rank in ranks for row in rank["advantages"][loss * 4 : (loss + 1) * 4])
        assert [ids for ids, _ in rows] == [ids for ids, _ in shared]
        for (_, expected), (_, values) in zip(rows, shared, strict=True):
            assert values == pytest.approx(expected, rel=2e-4, abs=2e-5)

    # Metrics, those of the process reward included; every process logs the same.
    names = [
        *PROCESS_METRICS,
        "process/repeated_steps",
        "process/kl_to_go",
        "loss",
        "grad_norm",
        "reward",
        "reward_std",
        "entropy",
    ]
    names += ["process/alpha", "steps_seen", "starts_with_take"] if kind == "pav" else ["kl"]
    calibration = ("num_solutions", "mean_value", "mean_outcome", "brier", "ece", "auroc")
    names += [f"process/calibration/{name}" for name in calibration] if kind == "pav" else []
    for log, other_log, expected_log in zip(ranks[0]["logs"], ranks[1]["logs"], one["logs"], strict=True):
        for name in names:
            assert (name in log) == (name in expected_log), name
            if name in expected_log:
                assert_close(log[name], expected_log[name], name)
            if name.startswith("process/") and name in log:
                assert log[name] == other_log[name]
    logged = set().union(*one["logs"])
    assert set(names) <= logged

    # The table of all processes, in the order of the global batch.
    assert ranks[0]["table"].keys() == one["table"].keys() >= {"steps", "step_rewards"}
    assert ranks[0]["table"]["steps"] == one["table"]["steps"]
    for values, expected in zip(ranks[0]["table"]["step_rewards"], one["table"]["step_rewards"], strict=True):
        assert len(values) == len(expected) > 0
        assert values == pytest.approx(expected, rel=2e-4, abs=2e-5, nan_ok=True)

    change = max((value - one["start"][name]).abs().max().item() for name, value in one["parameters"].items())
    assert change > 1e-2
    for name, value in one["parameters"].items():
        torch.testing.assert_close(ranks[0]["parameters"][name], value, rtol=0.0, atol=1e-4 * change)
        assert torch.equal(ranks[0]["parameters"][name], ranks[1]["parameters"][name])


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, two_processes: Path, tiny_model_path: str, tmp_path: Path) -> None:
    ranks: list[dict[str, Any]] = [torch.load(two_processes / f"{kind}-{rank}.pt") for rank in range(2)]
    assert_equal_runs(kind, ranks, train(kind, tiny_model_path, tmp_path, num_processes=1))
    assert_equal_records(two_processes / kind, tmp_path)


def assert_equal_refreshes(ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Both processes hold the verifier that one process would have refreshed, and train with what it says."""
    names = ("process/update/loss", "process/update/auroc", "process/update/grad_norm", "process/reward/mean", "loss")
    for log, other, expected in zip(ranks[0]["logs"], ranks[1]["logs"], one["logs"], strict=True):
        for name in set(names) & set(expected):
            assert_close(log[name], expected[name], name)
            assert_close(other[name], expected[name], name)
    refreshed = [log for log in one["logs"] if "process/update/loss" in log]
    assert [log["process/update/num_solutions"] for log in refreshed] == [8, 8]
    assert any(value.any() for name, value in one["learned"].items() if "lora_B" in name)
    for name, value in one["learned"].items():
        torch.testing.assert_close(ranks[0]["learned"][name], value, rtol=0.0, atol=1e-6)
        assert torch.equal(ranks[0]["learned"][name], ranks[1]["learned"][name])


def test_two_processes_refresh_one_verifier(two_processes: Path, tiny_model_path: str, tmp_path: Path) -> None:
    ranks: list[dict[str, Any]] = [torch.load(two_processes / f"{ONLINE}-{rank}.pt") for rank in range(2)]
    assert_equal_refreshes(ranks, train(ONLINE, tiny_model_path, tmp_path, num_processes=1))


def test_one_process_has_nothing_to_score(two_processes: Path, tiny_model_path: str, tmp_path: Path) -> None:
    """No step of the second process has a score: it waits for nobody, and both learn what one process would."""
    ranks: list[dict[str, Any]] = [torch.load(two_processes / f"pav-half-{rank}.pt") for rank in range(2)]
    one = train("pav-half", tiny_model_path, tmp_path, num_processes=1)
    assert one["logs"][0]["process/unscorable_frac"] > 0.4
    names = ("process/unscorable_frac", "process/reward/mean", "process/reward/std", "loss", "grad_norm")
    for log, other, expected in zip(ranks[0]["logs"], ranks[1]["logs"], one["logs"], strict=True):
        for name in set(names) & set(expected):
            assert_close(log[name], expected[name], name)
            assert_close(other[name], expected[name], name)
    change = max((value - one["start"][name]).abs().max().item() for name, value in one["parameters"].items())
    for name, value in one["parameters"].items():
        torch.testing.assert_close(ranks[0]["parameters"][name], value, rtol=0.0, atol=1e-4 * change)
        assert torch.equal(ranks[0]["parameters"][name], ranks[1]["parameters"][name])


def test_an_exception_in_one_process_ends_both(tiny_model_path: str, tmp_path: Path, repo_root: Path) -> None:
    """The other one waits in a collective operation; the launcher ends it, well within the time limit of the run."""
    done = run_two_processes("distributed_train.py", tiny_model_path, tmp_path, repo_root, "--kinds", "pav-failing")
    assert done.returncode != 0
    assert "The verifier of the second process is gone." in done.stderr


def assert_equal_records(two: Path, one: Path) -> None:
    """Each process records its own completions, the first one the scalars; together they are those of one process."""
    assert len(list((two / "process").glob("completions-*.jsonl"))) == 2
    shared, expected = read_run(two), read_run(one)
    assert [row["optimizer_step"] for row in shared.metrics] == [row["optimizer_step"] for row in expected.metrics]

    def by_text(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda row: (row["optimizer_step"], row["prompt"], row["steps"]))

    assert len(shared.completions) == len(expected.completions) > 0
    for row, other in zip(by_text(shared.completions), by_text(expected.completions), strict=True):
        assert (row["steps"], row["finished"], row["num_tokens"]) == (
            other["steps"],
            other["finished"],
            other["num_tokens"],
        )
        assert row["rewards"] == pytest.approx(other["rewards"], rel=1e-4, abs=1e-4)
        assert row["outcome_advantage"] == pytest.approx(other["outcome_advantage"], rel=1e-3, abs=1e-4)
        assert row["step_advantages"] == pytest.approx(other["step_advantages"], rel=1e-3, abs=1e-4)
