"""Two processes compute what one does: same global batch, same advantages, same metrics, same parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripts.distributed_train import ONLINE, train
from tests.trainer_runs import KINDS, PROCESS_METRICS
from tests.two_processes import (
    assert_close,
    assert_equal_logs,
    assert_equal_parameters,
    launch_two_processes,
    load_ranks,
    run_two_processes,
)
from trl_prl.report.run_files import read_run


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two real processes found; both trainers in one launch, as starting costs the most."""
    folder = tmp_path_factory.mktemp("two_processes")
    launch_two_processes("distributed_train.py", folder, "--model", tiny_model_path)
    return folder


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
    calibration = ("num_solutions", "mean_value", "mean_outcome", "brier", "ece", "auroc")
    pav = ["process/alpha", *(f"process/calibration/{name}" for name in calibration)]
    names += ["kl"] if kind == "prl" else pav
    names += ["steps_seen", "starts_with_take"] if kind == "pav" else []
    assert_equal_logs(ranks, one, names)

    # The table of all processes, in the order of the global batch.
    assert ranks[0]["table"].keys() == one["table"].keys() >= {"steps", "step_rewards"}
    assert ranks[0]["table"]["steps"] == one["table"]["steps"]
    for values, expected in zip(ranks[0]["table"]["step_rewards"], one["table"]["step_rewards"], strict=True):
        assert len(values) == len(expected) > 0
        assert values == pytest.approx(expected, rel=2e-4, abs=2e-5, nan_ok=True)

    assert_equal_parameters(ranks, one)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, two_processes: Path, tiny_model_path: str, tmp_path: Path) -> None:
    ranks = load_ranks(two_processes, f"{kind}-")
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
    ranks = load_ranks(two_processes, f"{ONLINE}-")
    assert_equal_refreshes(ranks, train(ONLINE, tiny_model_path, tmp_path, num_processes=1))


def test_one_process_has_nothing_to_score(two_processes: Path, tiny_model_path: str, tmp_path: Path) -> None:
    """No step of the second process has a score: it waits for nobody, and both learn what one process would."""
    ranks = load_ranks(two_processes, "pav-half-")
    one = train("pav-half", tiny_model_path, tmp_path, num_processes=1)
    assert one["logs"][0]["process/unscorable_frac"] > 0.4
    names = ("process/unscorable_frac", "process/reward/mean", "process/reward/std", "loss", "grad_norm")
    for log, other, expected in zip(ranks[0]["logs"], ranks[1]["logs"], one["logs"], strict=True):
        for name in set(names) & set(expected):
            assert_close(log[name], expected[name], name)
            assert_close(other[name], expected[name], name)
    assert_equal_parameters(ranks, one)


def test_an_exception_in_one_process_ends_both(tiny_model_path: str, tmp_path: Path) -> None:
    """The other one waits in a collective operation; the launcher ends it, well within the time limit of the run."""
    done = run_two_processes("distributed_train.py", tmp_path, "--model", tiny_model_path, "--kinds", "pav-failing")
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
        assert row["advantages"] == pytest.approx(other["advantages"], rel=1e-3, abs=1e-4)
