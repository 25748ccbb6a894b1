"""What the process-reward trainers share: settings, checks of what they are given and produce, the model card."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from trl import GRPOConfig, GRPOTrainer

from trl_prl.credit.groups import ProcessBaseline
from trl_prl.credit.step_tensors import check_option
from trl_prl.jobs.config import without_unset
from trl_prl.report.run_files import check_record_completions
from trl_prl.report.run_recorder import package_versions
from trl_prl.steps.splitters import SPLITTER_HELP
from trl_prl.verifier.card import section, trl_card


logger = logging.getLogger(__name__)

# The loss types of TRL 1.16, each tested to weight every token by its own advantage.
PER_TOKEN_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")

# What becomes of completions to which the outcome rewards give no advantage.
WithoutOutcome = Literal["process", "skip"]

Config = TypeVar("Config", bound=GRPOConfig)


@dataclass
class ProcessArguments:
    r"""
    Settings that PRL and PAV have in common.

    Args:
        process_baseline (`str`, *optional*, defaults to `"none"`):
            `"group"` subtracts, from what a token's process reward is, the mean of the other completions of the prompt
            at the same depth (that many of their own tokens in; behind the end of all of them, the mean over all their
            tokens). It changes no expected gradient. It lowers the variance where the mean is large next to the
            spread, as the KL of a policy is that has drifted, and raises it elsewhere. For PRL it costs one forward
            pass of the policy per on-policy rollout.
        unscorable_outcomes (`str`, *optional*, defaults to `"process"`):
            Completions that no outcome reward can score get no outcome advantage from TRL: train on their process part
            alone (`"process"`), or on nothing of them (`"skip"`).
        step_splitter (`str`, *optional*):
            Where steps end, see [`get_splitter`]; by default `"newline"`, for PRL `"fixed"`.
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of the `"fixed"` splitter.
        record_run (`bool`, *optional*, defaults to `True`):
            Whether to record scalars and a few completions in `output_dir/process`, for `trl-prl report`.
        record_completions (`int`, *optional*, defaults to `16`):
            Completions recorded per logging step and evaluation, of all processes together; `0` for none.
        radar_window (`int`, *optional*, defaults to `10`):
            Log entries at the start and at the end of a run that the reward-hacking radar compares, at least 3;
            `0` switches it off.
    """

    process_baseline: ProcessBaseline = field(
        default="none",
        metadata={"help": "'group' subtracts the mean process reward of the prompt's other completions, or 'none'."},
    )
    unscorable_outcomes: WithoutOutcome = field(
        default="process",
        metadata={"help": "Completions without outcome: train on their 'process' part alone, or 'skip' them."},
    )
    step_splitter: str = field(
        default="newline",
        metadata={"help": f"Where steps end: {SPLITTER_HELP}."},
    )
    step_length: int = field(default=256, metadata={"help": "Tokens per step of the 'fixed' splitter."})
    record_run: bool = field(
        default=True,
        metadata={
            "help": "Whether to record scalars and a few completions in `output_dir/process`, for `trl-prl report`."
        },
    )
    record_completions: int = field(
        default=16, metadata={"help": "Completions recorded per logging step and evaluation; 0 for none."}
    )
    radar_window: int = field(
        default=10, metadata={"help": "Log entries the reward-hacking radar compares. 0 switches it off."}
    )

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            `ValueError`: if a setting is out of its range.
        """
        check_option("process_baseline", self.process_baseline, ProcessBaseline)
        check_option("unscorable_outcomes", self.unscorable_outcomes, WithoutOutcome)
        check_record_completions(self.record_completions)
        if self.radar_window != 0 and self.radar_window < 3:
            raise ValueError(
                f"`radar_window` was set to {self.radar_window}, but fewer than three log entries have no spread to "
                "tell a change from noise. Set it to 3 or more, or to 0 to switch the radar off."
            )


def promote_config(args: GRPOConfig | None, config_class: type[Config], model: Any, suffix: str) -> Config:
    """Make the configuration a process-reward trainer needs out of what the user gave.

    A script that only swaps the trainer class passes a plain [`~trl.GRPOConfig`]. It is kept field by field, and the
    new fields get their defaults.

    Args:
        args (`GRPOConfig`, *optional*):
            What the user passed.
        config_class (`type`):
            The configuration class of the trainer.
        model (`str` or `PreTrainedModel`):
            The model, after which the output folder is named if `args` is `None`, as in TRL.
        suffix (`str`):
            End of that folder's name.

    Returns:
        `config_class`: A configuration; `args` itself if it already is one.

    Raises:
        `TypeError`: if `args` is not a `GRPOConfig`, or is the configuration of another trainer of this package.
        `ValueError`: if its settings do not go with the defaults of the new ones.
    """
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        return config_class(f"{name.split('/')[-1]}-{suffix}")
    if isinstance(args, config_class):
        return args
    if not isinstance(args, GRPOConfig):
        raise TypeError(
            f"`args` is a {type(args).__name__}, which has no GRPO settings. Pass a `{config_class.__name__}`; it "
            "takes every field of `GRPOConfig`."
        )
    if hasattr(args, "step_splitter"):
        raise TypeError(
            f"`args` is a {type(args).__name__}, the configuration of another trainer, whose defaults do not fit this "
            f"one. Pass a `{config_class.__name__}`."
        )
    promoted: Any = copy.copy(args)
    promoted.__class__ = config_class
    own = [f for f in dataclasses.fields(config_class) if f.name not in {g.name for g in dataclasses.fields(args)}]
    for new in own:
        setattr(promoted, new.name, new.default)
    promoted.check()
    logger.warning(
        "A %s was passed where a %s is expected. Its settings are kept, and the new ones have their defaults: %s.",
        type(args).__name__,
        config_class.__name__,
        ", ".join(f"{new.name}={new.default!r}" for new in own),
    )
    return promoted


def check_loss_type(loss_type: str) -> None:
    """Refuse a loss type that is not known to use an advantage per token.

    Raises:
        `ValueError`: if it is not one of [`PER_TOKEN_LOSS_TYPES`].
    """
    if loss_type not in PER_TOKEN_LOSS_TYPES:
        raise ValueError(
            f"`loss_type={loss_type!r}` is not known to use an advantage per token; it could drop the process rewards "
            f"without a sign. Set `loss_type` to one of: {', '.join(PER_TOKEN_LOSS_TYPES)}."
        )


def check_loss_is_trls(trainer: GRPOTrainer) -> None:
    """Refuse a subclass whose own loss is not known to use an advantage per token.

    A loss that calls TRL's is fine. One that replaces it, such as GMPO's, takes advantages as TRL's rollouts have
    them, one per completion: per token they fail, or broadcast to nonsense for one completion or a square batch.

    Raises:
        `TypeError`: if the loss of the trainer's class never calls the one it overrides.
    """
    names = {"compute_loss", "_compute_loss"}
    mro = type(trainer).__mro__
    for cls in mro[: mro.index(GRPOTrainer)]:
        for name in names & vars(cls).keys():
            # The names that the method's code refers to; a decorator keeps the method in `__wrapped__`.
            function = vars(cls)[name]
            while hasattr(function, "__wrapped__"):
                function = function.__wrapped__
            if not names & set(function.__code__.co_names):
                raise TypeError(
                    f"The trainer is a {type(trainer).__name__}, and {cls.__name__}.{name} replaces the loss of "
                    "GRPOTrainer, which alone is known to take an advantage per token: process rewards would fail in "
                    "it or be broadcast to nonsense. Use a GRPOTrainer, or `level='completion'`, which adds the "
                    "process reward to the scalar reward."
                )


def check_outcomes(rewards: torch.Tensor, names: Sequence[str]) -> None:
    """Refuse infinite outcome rewards, of which TRL would silently make advantages of 0.

    Args:
        rewards (`torch.Tensor`):
            Rewards of shape (N, F), NaN where unscorable.
        names (`Sequence[str]`):
            Names of the F reward functions.

    Raises:
        `ValueError`: if one is infinite.
    """
    if rewards.isinf().any():
        row, function = (int(index) for index in rewards.isinf().nonzero()[0])
        raise ValueError(
            f"The reward function '{names[function]}' gave completion {row} of the rollout "
            f"{rewards[row, function].item()}, or a number that float32, which ends at 3.4e38, cannot hold. The "
            "completions of its prompt would get no advantage. Return finite numbers of ordinary size, or None for a "
            "completion that cannot be scored."
        )


def check_advantages(advantages: torch.Tensor, source: str) -> None:
    """Stop a step whose advantages are not finite.

    Raises:
        `ValueError`: if one is not.
    """
    if not advantages.isfinite().all():
        count = int((~advantages.isfinite()).sum())
        raise ValueError(
            f"{count} of {advantages.numel()} advantages are not finite with {source}. One update with them would "
            "leave no weight finite. Look at what the policy writes and at the process rewards of these completions "
            "(`log_completions=True`); a lower learning rate or weight may help, and so may an earlier checkpoint."
        )


def check_weights(model: Any, accelerator: Accelerator) -> None:
    """Refuse to save weights that are not finite. Where processes share the weights, all must call it.

    Raises:
        `ValueError`: if there are any.
    """
    bad = ""
    for name, parameter in model.named_parameters():
        here = getattr(parameter, "ds_tensor", parameter).detach()  # DeepSpeed ZeRO-3 keeps its part there
        here = here.to_local() if hasattr(here, "to_local") else here
        if here.is_floating_point() and not here.isfinite().all():
            bad = name
            break
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        count = accelerator.reduce(torch.tensor(float(bool(bad)), device=accelerator.device))
        bad = bad or ("of another process" if count.item() else "")
    if bad:
        raise ValueError(
            f"The model has weights that are not finite ({bad}), so it is not saved: nothing can be generated with "
            "it. Go on from an earlier checkpoint, with a lower learning rate or `max_grad_norm`, and see in the log "
            "where `loss` or `grad_norm` left its range."
        )


def write_card(trainer: Any) -> None:
    """Add settings, data and last metrics of a process-reward trainer to the model card that TRL wrote."""
    path = Path(str(trainer.args.output_dir)) / "README.md"
    settings = without_unset(trainer.process_settings()) | {
        "outcome rewards": ", ".join(trainer.reward_func_names),
        "number of prompts": len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else "a stream",
        "optimizer steps": trainer.state.global_step,
        "trl_prl": package_versions().get("trl-prl"),
    }
    last = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    # TRL logs None for a reward that had no number in a whole rollout.
    kept = [
        name
        for name, value in last.items()
        if name.startswith(("reward", "kl", "process/", "eval_")) and isinstance(value, Real)
    ]
    card = trl_card(path).rstrip() + section("Process rewards", settings)
    path.write_text(card + section("Last metrics", {name: f"{last[name]:.4g}" for name in kept}), encoding="utf-8")


def warn_of_too_few_prompts(args: Any, train_dataset: Any) -> None:
    """Say that nothing would be trained where TRL, which drops an incomplete rollout, has less than one of prompts."""
    needed = (args.generation_batch_size or 0) // (args.num_generations or 1)
    if isinstance(train_dataset, Sized) and len(train_dataset) < needed:
        logger.warning(
            "The data set has %d prompts and a rollout needs %d, so there is no optimizer step. Give more prompts, or "
            "lower `gradient_accumulation_steps` (%d) or `per_device_train_batch_size` (%d).",
            len(train_dataset), needed, args.gradient_accumulation_steps, args.per_device_train_batch_size,
        )  # fmt: skip
