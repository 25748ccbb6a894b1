"""Two processes that train with a public process reward model compute what one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.scripts.distributed_prm import train
from tests.two_processes import launch_two_processes, load_ranks


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen", "rlhflow"])
def test_two_processes_equal_one(family: str, prm_paths: dict[str, str], tiny_model_path: str, tmp_path: Path) -> None:
    words = ("--model", tiny_model_path, "--verifier", prm_paths[family])
    launch_two_processes("distributed_prm.py", tmp_path, *words)
    ranks = load_ranks(tmp_path)
    one = train(tiny_model_path, prm_paths[family], tmp_path / "one", num_processes=1)
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    for name, expected in one["parameters"].items():
        torch.testing.assert_close(ranks[0]["parameters"][name], expected, rtol=1e-3, atol=1e-5)
        assert torch.equal(ranks[0]["parameters"][name], ranks[1]["parameters"][name])
    for entry, expected in zip(ranks[0]["logs"], one["logs"], strict=True):
        assert expected["process/reward/std"] > 0
        for name in ("process/reward/mean", "process/reward/std", "process/advantage_share"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
