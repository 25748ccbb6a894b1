"""Both trainers under FSDP2 on two processes compute what they do on one.

On two CPU processes, with a patch in the script they run: accelerate does not offer FSDP on CPUs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.distributed_train import ONLINE, train
from tests.trainer_runs import KINDS
from tests.training.test_trainer_distributed import assert_equal_refreshes, assert_equal_runs
from tests.two_processes import launch_two_processes, load_ranks


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes found; they fail unless the policy and the reference are sharded over both."""
    folder = tmp_path_factory.mktemp("fsdp")
    launch_two_processes("fsdp_train.py", folder, "--model", tiny_model_path)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_fsdp2_equals_one_process(kind: str, two_processes: Path, tiny_model_path: str, tmp_path: Path) -> None:
    # PRL's credit is the log-ratio to the reference, which is sharded too.
    assert_equal_runs(
        kind, load_ranks(two_processes, f"{kind}-"), train(kind, tiny_model_path, tmp_path, num_processes=1)
    )


def test_fsdp2_refreshes_one_verifier(two_processes: Path, tiny_model_path: str, tmp_path: Path) -> None:
    """The policy is sharded; the verifier is whole on both processes, and the same."""
    ranks = load_ranks(two_processes, f"{ONLINE}-")
    assert_equal_refreshes(ranks, train(ONLINE, tiny_model_path, tmp_path, num_processes=1))
