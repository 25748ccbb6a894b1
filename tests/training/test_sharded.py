"""Two processes that share the weights compute what one does: DeepSpeed ZeRO-2 and ZeRO-3, and FSDP2.

On CPUs; for FSDP2 with a patch in the script that runs, as accelerate does not offer it there. DeepSpeed is no
dependency: `make test-distributed` makes an environment that has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations import is_deepspeed_available

from tests.scripts.sharded_train import RUNS, name_of, save_models, train
from tests.training.test_trainer_distributed import assert_equal_runs
from tests.two_processes import (
    TORCHRUN,
    assert_close,
    assert_equal_logs,
    assert_equal_parameters,
    launch_two_processes,
    load_ranks,
)
from trl_prl.verifier.model import ProcessAdvantageVerifier


pytestmark = [pytest.mark.sharded, pytest.mark.timeout(1800)]

needs_deepspeed = pytest.mark.skipif(
    not is_deepspeed_available(), reason="DeepSpeed is not installed; `make test-distributed` brings it"
)
SHARDINGS = [
    pytest.param("zero2", marks=needs_deepspeed),
    pytest.param("zero3", marks=needs_deepspeed),
    "fsdp2",
]
RunOnOne = Callable[[str, bool], dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=SHARDINGS)
def sharded(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes found; all runs in one launch, which fails unless they share the weights."""
    folder = tmp_path_factory.mktemp(request.param)
    words = ("--models", str(models), "--sharding", request.param)
    launch_two_processes("sharded_train.py", folder, *words, launcher=launcher(request.param, folder), timeout=1500)
    return folder


def launcher(sharding: str, folder: Path) -> tuple[str, ...]:
    """Module and arguments that start two processes, as users do."""
    if sharding == "fsdp2":
        return TORCHRUN
    stage = int(sharding[-1])
    deepspeed = {"zero_stage": stage, "zero3_init_flag": stage == 3, "zero3_save_16bit_model": stage == 3}
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": deepspeed,
        "use_cpu": True,
        "num_processes": 2,
        "num_machines": 1,
        "mixed_precision": "no",
    }
    path = folder / "accelerate.json"
    path.write_text(json.dumps(config))
    return ("accelerate.commands.launch", "--config_file", str(path))


@pytest.fixture(scope="module")
def run_on_one(models: Path, tmp_path_factory: pytest.TempPathFactory) -> RunOnOne:
    """Runs on one process, each done once."""
    found: dict[str, dict[str, Any]] = {}

    def run(kind: str, adapter: bool) -> dict[str, Any]:
        name = name_of(kind, adapter)
        if name not in found:
            found[name] = train(kind, adapter, models, tmp_path_factory.mktemp(name), num_processes=1)
        return found[name]

    return run


@pytest.mark.parametrize(("kind", "adapter"), RUNS)
def test_computes_what_one_process_does(kind: str, adapter: bool, sharded: Path, run_on_one: RunOnOne) -> None:
    assert_same(kind, load_ranks(sharded, f"{name_of(kind, adapter)}-"), run_on_one(kind, adapter))


def assert_same(kind: str, ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Losses, metrics, evaluations and final weights."""
    if kind == "verifier":
        assert_equal_logs(ranks, one, ("loss", "grad_norm", "brier", "mean_value", "mean_label"))
    elif kind == "callback":
        names = ("loss", "grad_norm", "reward", "kl", "process/reward/mean", "process/reward/std", "process/kl_to_go")
        assert_equal_logs(ranks, one, names)
    else:
        assert_equal_runs(kind, ranks, one)
    assert_equal_parameters(ranks, one)
    assert len(one["evaluations"]) == {"callback": 2, "verifier": 1}.get(kind, 0)
    for rank in ranks:
        for entry, expected in zip(rank["evaluations"], one["evaluations"], strict=True):
            assert entry.keys() == expected.keys()
            for name in entry.keys() - {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}:
                assert_close(entry[name], expected[name], name)


@pytest.mark.parametrize(("kind", "adapter"), RUNS)
def test_goes_on_from_a_checkpoint(kind: str, adapter: bool, sharded: Path) -> None:
    for rank in load_ranks(sharded, f"{name_of(kind, adapter)}-"):
        for name, value in rank["parameters"].items():
            torch.testing.assert_close(rank["resumed"][name], value, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("kind", "adapter"), RUNS)
def test_saves_whole_weights(kind: str, adapter: bool, sharded: Path) -> None:
    name = name_of(kind, adapter)
    folder = sharded / name / "final"
    saved = load_file(folder / ("adapter_model.safetensors" if adapter else "model.safetensors"))
    trained = load_ranks(sharded, f"{name}-")[0]["parameters"]
    assert saved.keys() == {in_a_file(name) for name in trained}
    for name, value in trained.items():
        assert torch.equal(saved[in_a_file(name)], value), name
    if kind == "verifier":
        [[value]] = ProcessAdvantageVerifier.from_pretrained(folder)(["1+2="], [["3"]])
        assert 0 < value < 1


def in_a_file(name: str) -> str:
    """Name under which PEFT saves a parameter, or the whole model's own."""
    return name.replace(".modules_to_save", "").replace(".default", "")
