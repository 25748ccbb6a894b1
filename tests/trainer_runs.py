"""Process-reward trainers on tiny models that keep what passed through them, and the checks every run must stand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from trl_prl.rewards.scoring import progress_of, score_values
from trl_prl.steps.split import SplitBatch
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer


KINDS = ("prl", "pav")
# Progress in its own units, so that expected numbers need no standard deviation of the outcomes.
PAV_UNITS: dict[str, Any] = {"progress_scale": "none"}

PROCESS_METRICS = (
    "process/steps_per_completion",
    "process/tokens_per_step",
    "process/reward/mean",
    "process/reward/std",
    "process/reward/frac_zero",
    "process/unscorable_frac",
    "process/advantage_share",
    "process/outcome_correlation",
)


def text_values(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
    """Process reward that any two texts are unlikely to share: a value in [0, 1] from the bytes of the prefix.

    Args:
        prompts (`list`):
            Prompts, unused.
        steps (`list[list[str]]`):
            Step texts of each completion.
        **columns:
            The rest of the process-reward arguments, unused.

    Returns:
        `list[list[float]]`: One value per step.
    """
    return [[sum("".join(row[: i + 1]).encode()) % 17 / 16 for i in range(len(row))] for row in steps]


def score_progress(*args: Any, best_of_k: int = 1, **kwargs: Any) -> torch.Tensor:
    """Progress of every step, as the trainer computes it from the arguments of `score_values`."""
    return progress_of(*score_values(*args, **kwargs), best_of_k)


class Recording:
    """Mixin, first among the bases, that keeps a copy of every rollout and of what every loss weighs tokens with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rollouts: list[dict[str, Any]] = []
        self.losses: list[dict[str, torch.Tensor]] = []
        super().__init__(*args, **kwargs)

    def add_process_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> None:
        outcome_advantages = output["advantages"].clone()
        super().add_process_advantages(inputs, output, split)  # type: ignore[misc]
        tensors = {name: value.clone() for name, value in output.items() if isinstance(value, torch.Tensor)}
        self.rollouts.append({**tensors, "outcome_advantages": outcome_advantages, "steps": split.steps})

    def on_loss_logps(self, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        super().on_loss_logps(logps, inputs)  # type: ignore[misc]
        self.losses.append({**before, "logps": logps.clone(), "advantages": inputs["advantages"].clone()})


class RecordingPRLTrainer(Recording, PRLTrainer):
    kind = "prl"


class RecordingPAVTrainer(Recording, PAVTrainer):
    kind = "pav"


def make_trainer(kind: str, model: Any, output_dir: Path | str, trainer: dict[str, Any], **overrides: Any) -> Any:
    """Build a recording trainer.

    Args:
        kind (`str`):
            `"prl"` or `"pav"`.
        model (`str` or `PreTrainedModel`):
            The policy.
        output_dir (`Path` or `str`):
            Folder of the run.
        trainer (`dict`):
            Arguments of the trainer that replace or extend the defaults.
        **overrides:
            Configuration fields that replace or extend the defaults.

    Returns:
        `PRLTrainer` or `PAVTrainer`: The trainer.
    """
    arguments = {"reward_funcs": token_reward, **trainer}
    if "train_dataset" not in arguments:
        arguments["train_dataset"] = prompt_dataset()
    if kind == "prl":
        prl_args = make_grpo_args(PRLConfig, output_dir, **{"beta": 0.2, "step_splitter": "newline", **overrides})
        return RecordingPRLTrainer(model, args=prl_args, **arguments)
    pav_args = make_grpo_args(PAVConfig, output_dir, **{**PAV_UNITS, "alpha": 1.0, "initial_value": 0.5, **overrides})
    return RecordingPAVTrainer(model, args=pav_args, **{"process_reward": text_values, **arguments})


def move_away_from_reference(trainer: Any, scale: float = 0.05) -> None:
    """Change the trained parameters, so that the log-ratio to the reference is not 0 from the start."""
    generator = torch.Generator().manual_seed(3)
    changed = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    with torch.no_grad(), gathered(changed, modifier_rank=0):
        for parameter in changed:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def gathered(parameters: Iterable[torch.Tensor], **options: Any) -> AbstractContextManager[Any]:
    """Have parameters whole that DeepSpeed ZeRO-3 has partitioned; all processes must ask."""
    shared = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not shared:
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(shared, **options)


def trainable(trainer: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained parameters, whole where the processes share them; then all processes must ask."""
    return {name: whole(value) for name, value in trainer.model.named_parameters() if value.requires_grad}


def whole(value: torch.Tensor) -> torch.Tensor:
    """Copy of a tensor, gathered if it is sharded."""
    with gathered([value]):
        value = value.detach()
        return value.full_tensor().clone() if isinstance(value, DTensor) else value.clone()


def train_logs(trainer: Any) -> list[dict[str, float]]:
    """Logs of the optimizer steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def eval_logs(trainer: Any) -> list[dict[str, float]]:
    """Logs of the evaluations."""
    return [entry for entry in trainer.state.log_history if "eval_loss" in entry]


def assert_process_metrics(log: dict[str, Any], prefix: str = "", empty: bool = False) -> None:
    """Every process metric is logged and finite; with nothing to measure (`empty`) it is not logged."""
    for name in PROCESS_METRICS:
        # A correlation needs two completions that differ in outcome and in process reward.
        if prefix + name not in log:
            assert empty or name == "process/outcome_correlation", name
        else:
            assert math.isfinite(log[prefix + name]), name


def assert_sound(trainer: Any, before: dict[str, torch.Tensor], num_losses: int | None = None) -> None:
    """Checks a finished run: finite logs, per-token credit on the action mask only, and parameters that moved.

    Args:
        trainer (`PRLTrainer` or `PAVTrainer`):
            The trainer after `train()`.
        before (`dict`):
            Its trained parameters before.
        num_losses (`int`, *optional*):
            Losses that must have been computed.
    """
    logs = train_logs(trainer)
    assert logs
    for log in logs:
        assert math.isfinite(log["loss"])
        assert math.isfinite(log["grad_norm"])
        # What a process reward model says is known per rollout, as TRL's `reward` is; PRL's part is known per loss.
        if trainer.kind == "prl" or "reward" in log:
            assert_process_metrics(log)
    if num_losses is not None:
        assert len(trainer.losses) == num_losses
    for record in trainer.losses:
        advantages, step_ids = record["advantages"], record["step_ids"]
        mask = record["completion_mask"] * record.get("tool_mask", torch.ones_like(record["completion_mask"]))
        assert torch.equal(step_ids >= 0, mask.bool())
        assert advantages.shape == step_ids.shape
        assert advantages.isfinite().all()
        assert (advantages[step_ids < 0] == 0).all()
    varied = [
        advantages[ids >= 0].unique().numel() > 1
        for record in trainer.losses
        for advantages, ids in zip(record["advantages"], record["step_ids"], strict=True)
    ]
    assert any(varied), "no completion had two different token advantages: nothing was credited per step"
    after = trainable(trainer)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def run(trainer: Any, move: bool = True) -> Any:
    """Train, and check that the run is sound.

    Args:
        trainer (`PRLTrainer` or `PAVTrainer`):
            The trainer.
        move (`bool`, *optional*, defaults to `True`):
            Whether the policy is first moved away from the reference.

    Returns:
        `PRLTrainer` or `PAVTrainer`: The trainer.
    """
    if move:
        move_away_from_reference(trainer)
    before = trainable(trainer)
    trainer.train()
    assert_sound(trainer, before)
    return trainer
