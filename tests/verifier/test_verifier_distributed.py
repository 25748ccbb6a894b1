"""Two processes train and measure a verifier as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.scripts.distributed_verifier import train


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, repo_root: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["tests/scripts/distributed_verifier.py", "--output-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    one = train(tmp_path / "one", num_processes=1)
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    wanted = ("eval_loss", "eval_auroc", "eval_brier", "eval_ece", "eval_num", "eval_spearman")
    names = [name for name in one["metrics"] if name.startswith(wanted)]
    assert len(names) >= 7
    for name in names:
        # No row counts twice, although the last batch is filled up; the rest is rounding.
        assert ranks[0]["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-3, abs=1e-5), name
        assert ranks[1]["metrics"][name] == ranks[0]["metrics"][name], name
    assert one["metrics"]["eval_num_labels"] == 26
