"""Runs of scripts on two real processes, and what it means that they compute what one process does."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPO_ROOT


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run_two_processes(
    script: str, folder: Path, *words: str, launcher: Sequence[str] = TORCHRUN, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run a script of tests/scripts on two real processes, to whatever end.

    Args:
        script (`str`):
            Its name.
        folder (`Path`):
            Its `--output-dir`.
        *words (`str`):
            Its further arguments.
        launcher (`Sequence[str]`, *optional*):
            Module that starts the processes, and its arguments.
        timeout (`float`, *optional*, defaults to `500`):
            Seconds after which it counts as hanging.

    Returns:
        `subprocess.CompletedProcess`: With `stdout` and `stderr`.
    """
    command = [sys.executable, "-m", *launcher, f"tests/scripts/{script}", "--output-dir", str(folder), *words]
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    return subprocess.run(command, cwd=REPO_ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def launch_two_processes(
    script: str, folder: Path, *words: str, launcher: Sequence[str] = TORCHRUN, timeout: float = 500
) -> None:
    """Run a script of tests/scripts on two real processes; what they find goes to the folder."""
    done = run_two_processes(script, folder, *words, launcher=launcher, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def load_ranks(folder: Path, prefix: str = "") -> list[dict[str, Any]]:
    """What each of two processes found."""
    return [torch.load(folder / f"{prefix}{rank}.pt") for rank in range(2)]


def assert_close(value: float | None, expected: float | None, name: str) -> None:
    # Other sums in another order: float32 sums of a few hundred terms, carried through up to four optimizer steps.
    if expected is None or math.isnan(expected):
        assert value is None or math.isnan(value), name
    else:
        assert value == pytest.approx(expected, rel=2e-4, abs=2e-6), name


def assert_equal_logs(ranks: list[dict[str, Any]], one: dict[str, Any], names: Iterable[str]) -> None:
    """Both processes log, optimizer step by optimizer step, what one logged; each of the names at least once."""
    for log, other_log, expected_log in zip(ranks[0]["logs"], ranks[1]["logs"], one["logs"], strict=True):
        for name in names:
            assert (name in log) == (name in expected_log), name
            if name in expected_log:
                assert_close(log[name], expected_log[name], name)
            if name.startswith("process/") and name in log:
                assert log[name] == other_log[name]
    assert set(names) <= set().union(*one["logs"])


def assert_equal_parameters(ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Both processes end with the weights of one, to a ten-thousandth of how far the weights have moved."""
    change = max((value - one["start"][name]).abs().max().item() for name, value in one["parameters"].items())
    assert change > 1e-2
    for name, value in one["parameters"].items():
        torch.testing.assert_close(ranks[0]["parameters"][name], value, rtol=0.0, atol=1e-4 * change)
        assert torch.equal(ranks[0]["parameters"][name], ranks[1]["parameters"][name])
