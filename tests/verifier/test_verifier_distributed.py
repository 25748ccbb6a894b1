"""Two processes train and measure a verifier as one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.distributed_verifier import train
from tests.two_processes import assert_equal_logs, assert_equal_parameters, launch_two_processes, load_ranks


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    launch_two_processes("distributed_verifier.py", tmp_path)
    ranks = load_ranks(tmp_path)
    one = train(tmp_path / "one", num_processes=1)
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    # The rows of the processes differ in their number of labels: each label counts the same.
    assert_equal_logs(ranks, one, ("loss", "grad_norm", "brier", "mean_value", "mean_label"))
    assert_equal_parameters(ranks, one)
    wanted = ("eval_loss", "eval_auroc", "eval_brier", "eval_ece", "eval_num", "eval_spearman")
    names = [name for name in one["metrics"] if name.startswith(wanted)]
    assert len(names) >= 7
    for name in names:
        # No row counts twice, although the last batch is filled up; the rest is rounding.
        assert ranks[0]["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-3, abs=1e-5), name
        assert ranks[1]["metrics"][name] == ranks[0]["metrics"][name], name
    assert one["metrics"]["eval_num_labels"] == 26
