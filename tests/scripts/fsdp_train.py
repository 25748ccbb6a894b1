"""The run of distributed_train.py under FSDP2, and one step with TRL's own generation; results go to files.

torchrun --nproc_per_node 2 tests/scripts/fsdp_train.py --model DIR --output-dir DIR

This patches accelerate, which has no FSDP on CPUs: it ignores the plugin there, without a word, and wraps the model
for DDP. Told that the processes run FSDP, it shards models over gloo with the code it uses on GPUs.
"""

from __future__ import annotations

import argparse
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from tests.scripts.distributed_train import ONLINE, make_fixed_trainer, train_and_collect
from tests.trainer_runs import KINDS, make_trainer, run


FSDP: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def allow_fsdp_on_cpu() -> None:
    """Let accelerate take an FSDP plugin on CPUs, as it does on every other device."""
    original = AcceleratorState.__init__

    @wraps(original)
    def patched(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            # Every later state copies the type from here.
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = patched  # type: ignore[method-assign]


def assert_sharded(model: Any) -> None:
    """Each of two processes holds its half of every parameter; of an odd number of rows the first has one more."""
    assert isinstance(model, FSDPModule)
    for name, value in model.named_parameters():
        assert isinstance(value, DTensor), name
        assert value.placements == (Shard(0),), name
        assert value.device_mesh.shape == (2,), name
        assert value.to_local().shape[0] in (value.shape[0] // 2, (value.shape[0] + 1) // 2), name


def assert_fsdp(trainer: Any) -> None:
    """The trained model is sharded, and so is TRL's copy of the reference."""
    assert torch.distributed.get_world_size() == trainer.accelerator.num_processes == 2
    assert torch.distributed.get_backend() == "gloo"
    assert trainer.is_fsdp_enabled
    assert trainer.accelerator.is_fsdp2
    assert_sharded(trainer.model_wrapped)
    assert_sharded(trainer.model)
    # The policy's layers are gathered one by one; TRL shards the reference as a whole.
    assert all(isinstance(layer, FSDPModule) for layer in trainer.model.model.layers)
    assert_sharded(trainer.ref_model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    for kind in (*KINDS, ONLINE):
        trainer = make_fixed_trainer(kind, options.model, options.output_dir / kind, num_processes=2, **FSDP)
        result = train_and_collect(trainer)
        assert_fsdp(trainer)
        torch.save(result, options.output_dir / f"{kind}-{torch.distributed.get_rank()}.pt")
        if kind == ONLINE:
            continue
        # TRL's generation gathers the sharded layers; what is sampled differs from a run on one process.
        sampled = make_trainer(kind, options.model, options.output_dir / kind, {}, beta=0.2, max_steps=1, **FSDP)
        assert_fsdp(run(sampled))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
