"""Every kind of training with weights that two processes share; what came of it goes to files.

accelerate launch --config_file ZERO.json tests/scripts/sharded_train.py --models DIR --output-dir DIR --sharding zero3
torchrun --nproc_per_node 2 tests/scripts/sharded_train.py --models DIR --output-dir DIR --sharding fsdp2

The models are those of [`save_models`]. Each run saves a checkpoint in the middle and goes on; then a new trainer
resumes from it. For FSDP2 accelerate is patched, see fsdp_train.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tests.prm_models import FOLDER_NAMES, save_all
from tests.scripts.distributed_evaluation import half_right
from tests.scripts.distributed_train import (
    fixed_rollout,
    fixed_settings,
    make_fixed_trainer,
    train_and_collect,
    train_and_compare,
)
from tests.scripts.distributed_verifier import make_fixed_verifier_trainer
from tests.scripts.fsdp_train import FSDP, allow_fsdp_on_cpu, assert_sharded
from tests.tiny_models import build_tokenizer, make_grpo_args, prompt_dataset, save_tiny_model, token_reward
from tests.trainer_runs import trainable
from tests.verifier_models import build_verifier
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.training.evaluation_callback import EvaluationCallback


# Those with `pav-` are PAVTrainer with that process reward, `callback` is a stock trainer with both callbacks, and
# `verifier` is PAVRewardTrainer.
KINDS = ("prl", "pav-verifier", "pav-qwen", "callback", "verifier")
# Their policy is whole: what is of interest is the model that scores.
PUBLIC_KINDS = ("pav-rlhflow", "pav-implicit")
RUNS = [(kind, adapter) for kind in KINDS for adapter in (False, True)] + [(kind, False) for kind in PUBLIC_KINDS]
SHARDINGS = ("zero2", "zero3", "fsdp2")


def save_models(folder: Path) -> Path:
    """Save a policy, a verifier, and a public process reward model of each family."""
    save_tiny_model(folder / "policy")
    build_verifier(build_tokenizer()).save_pretrained(folder / "verifier")
    save_all(folder)
    return folder


def name_of(kind: str, adapter: bool) -> str:
    """Name of a run."""
    return f"{kind}-lora" if adapter else kind


def process_reward_of(kind: str, models: Path) -> str:
    """What a user would pass. Batches are small, so that the two processes need different numbers of them."""
    family = kind.removeprefix("pav-")
    path = models / ("verifier" if family in ("verifier", "callback") else f"{family}/{FOLDER_NAMES[family]}")
    more = f",reference={models / 'implicit' / 'reference'},beta=0.05,returns=values" if family == "implicit" else ""
    return f"{path},max_batch_tokens=112{more}"


def make(kind: str, adapter: bool, models: Path, output_dir: Path, num_processes: int, **overrides: Any) -> Any:
    """Build the trainer of a run.

    Args:
        kind (`str`):
            One of `KINDS` or `PUBLIC_KINDS`.
        adapter (`bool`):
            Whether LoRA is trained instead of the whole model.
        models (`Path`):
            Folder of [`save_models`].
        output_dir (`Path`):
            Folder of the run.
        num_processes (`int`):
            Number of processes the global batch is shared out to.
        **overrides:
            Configuration fields that say how the model is spread over the processes.

    Returns:
        [`~transformers.Trainer`]: The trainer.
    """
    overrides |= {"save_strategy": "steps", "save_steps": 2}
    # Adam has a state that checkpoints must bring back. With this epsilon it does not blow up the rounding of small
    # gradients, as it divides by their size plus 1.
    overrides |= {"optim": "adamw_torch", "adam_epsilon": 1.0}
    peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if adapter else None
    policy = str(models / "policy")
    if kind == "verifier":
        tokenizer = AutoTokenizer.from_pretrained(models / "verifier")
        overrides |= {"eval_strategy": "steps", "eval_steps": 4}
        return make_fixed_verifier_trainer(
            str(models / "verifier"), tokenizer, output_dir, num_processes, peft_config, **overrides
        )
    arguments: dict[str, Any] = {"peft_config": peft_config}
    if kind == "callback":
        settings = {**fixed_settings(num_processes), "logging_steps": 1, **overrides}
        args = make_grpo_args(GRPOConfig, output_dir, **settings)
        arguments |= {"rollout_func": fixed_rollout, "train_dataset": prompt_dataset()}
        trainer = GRPOTrainer(policy, token_reward, args, **arguments)
        trainer.add_callback(ProcessRewardCallback(trainer, process_reward_of(kind, models), alpha=1.0))
        # Five prompts: the processes have different shares.
        trainer.add_callback(EvaluationCallback(trainer, prompt_dataset(5), half_right, n=4, k=(1, 4), freq=2))
        return trainer
    if kind.startswith("pav"):
        arguments["process_reward"] = process_reward_of(kind, models)
    return make_fixed_trainer(kind, policy, output_dir, num_processes, arguments, **overrides)


def train(
    kind: str, adapter: bool, models: Path, output_dir: Path, num_processes: int, sharding: str | None = None
) -> dict[str, Any]:
    """Train, save, and train once more from the checkpoint in the middle.

    Args:
        kind (`str`), adapter (`bool`), models (`Path`), output_dir (`Path`), num_processes (`int`):
            As for [`make`].
        sharding (`str`, *optional*):
            How the weights must be shared by the processes: one of `SHARDINGS`.

    Returns:
        `dict`: What [`train_and_compare`] or [`train_and_collect`] finds, with the `evaluations` and the `resumed`
        parameters. What is saved lies in the folder `final`.
    """
    overrides = FSDP if sharding == "fsdp2" else {}
    trainer = make(kind, adapter, models, output_dir, num_processes, **overrides)
    found = (train_and_compare if kind in ("callback", "verifier") else train_and_collect)(trainer)
    if sharding is not None:
        assert_shared(trainer, sharding)
    trainer.save_model(str(output_dir / "final"))
    resumed = make(kind, adapter, models, output_dir, num_processes, **overrides)
    resumed.train(resume_from_checkpoint=str(output_dir / "checkpoint-2"))
    evaluations = [entry for entry in trainer.state.log_history if any(name.startswith("eval_") for name in entry)]
    return {**found, "evaluations": evaluations, "resumed": trainable(resumed)}


def use_gloo_alone() -> None:
    """Keep DeepSpeed from compiling its collectives for CPUs, which takes a compiler and minutes."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def assert_shared(trainer: Any, sharding: str) -> None:
    """No process holds the trained model whole, nor under ZeRO-3 the reference and the process reward."""
    assert torch.distributed.get_world_size() == trainer.accelerator.num_processes == 2
    if sharding == "fsdp2":
        assert_sharded(trainer.model)
        return
    engine = trainer.model_wrapped
    assert trainer.is_deepspeed_enabled
    assert engine.zero_optimization_stage() == int(sharding[-1])
    trained = sum(parameter.numel() for parameter in trainable(trainer).values())
    held = (
        sum(part.numel() for part in engine.optimizer.fp32_partitioned_groups_flat)
        if sharding == "zero3"
        else sum(part.numel() for part in engine.optimizer.single_partition_of_fp32_groups)
    )
    assert held < 0.6 * trained
    if sharding == "zero3":
        scorer = getattr(getattr(trainer, "process_reward", None), "model", None)
        for model in (trainer.model, getattr(trainer, "ref_model", None), scorer):
            assert model is None or all(hasattr(parameter, "ds_tensor") for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--sharding", choices=SHARDINGS, required=True)
    parser.add_argument("--runs", nargs="+", default=[name_of(*run) for run in RUNS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.sharding == "fsdp2":
        allow_fsdp_on_cpu()
    else:
        use_gloo_alone()
    for kind, adapter in RUNS:
        name = name_of(kind, adapter)
        if name in options.runs:
            folder = options.output_dir / name
            found = train(kind, adapter, options.models, folder, num_processes=2, sharding=options.sharding)
            torch.save(found, options.output_dir / f"{name}-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
