"""Process rewards for a trainer that already exists."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from trl_prl.prms.load import load_process_reward
from trl_prl.rewards.checks import check_process_reward
from trl_prl.steps.split import get_splitter
from trl_prl.types import ProcessReward, StepSplitter

from .pav_config import PAVArguments
from .pav_trainer import PAVHooks, add_reward_column, remove_reward_column
from .process_grpo_trainer import ProcessRewardHooks
from .setup import check_loss_is_trls, check_loss_type
from .step_reward_func import StepRewardFunc


def refuse_second_process_reward(trainer: Any) -> None:
    """Refuse a trainer whose advantages already have a process part.

    Raises:
        `TypeError`: if it is one.
    """
    if isinstance(trainer, ProcessRewardHooks):
        raise TypeError(
            f"The trainer is a {type(trainer).__name__}, which has process rewards of its own; a second set would "
            "overwrite the first. Add one callback to a stock GRPOTrainer, or give PAVTrainer the process reward."
        )


def check_trainer(trainer: Any, level: str) -> None:
    """Refuse something whose completions cannot get process rewards at a level.

    Raises:
        `TypeError`: if it is no trainer of GRPO's or RLOO's kind, or has one advantage per completion in its loss.
        `ValueError`: if its loss type is not known to use an advantage per token.
    """
    if not isinstance(trainer, GRPOTrainer | RLOOTrainer):
        raise TypeError(
            f"`trainer` is a {type(trainer).__name__}. A callback can add process rewards where completions are "
            "sampled and rewarded as in GRPO or RLOO; other trainers have no rewards, keep them elsewhere or choose "
            "by them. Build the trainer first, then pass it: `trainer.add_callback(ProcessRewardCallback(trainer, "
            "process_reward=...))` with a GRPOTrainer, or with an RLOOTrainer and `level='completion'`."
        )
    if level == "completion":
        return
    if not isinstance(trainer, GRPOTrainer):
        raise TypeError(
            f"`level='step'` was asked of a {type(trainer).__name__}, whose loss has one advantage per completion: "
            "advantages per token would fail, or be broadcast to nonsense where the batch is as long as the "
            "completions. Use a GRPOTrainer, or `level='completion'`, which adds the process reward to the scalar "
            "reward."
        )
    check_loss_is_trls(trainer)
    check_loss_type(trainer.loss_type)


def check_process_args(process_args: Mapping[str, Any]) -> None:
    """Refuse settings that do not exist.

    Raises:
        `TypeError`: if a name is not a field of [`PAVArguments`].
    """
    valid = {field.name for field in fields(PAVArguments)}
    unknown = sorted(process_args.keys() - valid)
    if unknown:
        near = [match for name in unknown for match in difflib.get_close_matches(name, valid, n=1)]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise TypeError(
            f"ProcessRewardCallback was given {', '.join(unknown)}, which it does not know, so nothing would come of "
            f"it.{hint} It takes level, aggregation and the settings of PAVConfig: {', '.join(sorted(valid))}."
        )


class ProcessRewardCallback(TrainerCallback):
    r"""
    Adds process rewards to a stock TRL trainer while it trains.

    At the level of steps, a [`~trl.GRPOTrainer`], or an instance of any subclass of it, computes the very advantages
    of [`PAVTrainer`]. At the level of completions, the step scores are folded into one more outcome reward, which also
    works for [`~trl.RLOOTrainer`].

    It attaches when training begins and detaches when training ends, also when it ends with an exception. While
    attached at the level of steps, the trainer's class is a subclass of its own that adds the hooks of [`PAVTrainer`].

    Args:
        trainer ([`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]):
            The trainer the callback is added to.
        process_reward ([`ProcessReward`] or `str`):
            What scores the steps, as for [`PAVTrainer`].
        level (`str`, *optional*, defaults to `"step"`):
            `"step"` for an advantage per step, `"completion"` for one more outcome reward of weight `alpha`.
        aggregation (`str`, *optional*, defaults to `"mean"`):
            At the level of completions: how scores are folded, see [`StepRewardFunc`].
        step_splitter ([`StepSplitter`] or `str`, *optional*, defaults to `"newline"`):
            Where steps end.
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of the `"fixed"` splitter.
        alpha (`float`, *optional*):
            Weight of the process reward: by default that of [`PAVArguments`] at the level of steps, and 1.0 at the
            level of completions, where it is that of one more outcome reward.
        **process_args:
            Further fields of [`PAVArguments`], for the level of steps.

    Raises:
        `TypeError`: if the trainer has no advantages that a step could get a part in, the process reward cannot be
        called as one, or a setting does not exist.
        `ValueError`: if a setting is out of range or does not belong to the level, or no progress can be computed
        from what the process reward returns.

    Example:

    ```python
    trainer = GRPOTrainer(...)
    trainer.add_callback(ProcessRewardCallback(trainer, process_reward=my_step_values, initial_value=0.5))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Any,
        process_reward: ProcessReward | str,
        *,
        level: str = "step",
        aggregation: str = "mean",
        step_splitter: StepSplitter | str = "newline",
        step_length: int = 256,
        alpha: float | None = None,
        **process_args: Any,
    ) -> None:
        if level not in ("step", "completion"):
            raise ValueError(
                f"`level` was set to {level!r}. Process rewards reach steps or whole completions, nothing else. "
                "Set it to 'step' or 'completion'."
            )
        check_trainer(trainer, level)
        check_process_args(process_args)
        if level == "completion" and process_args:
            raise ValueError(
                f"{', '.join(sorted(process_args))} was given for `level='completion'`, which folds the scores "
                "as they are into one reward of weight `alpha`. Leave it out, or use `level='step'`."
            )
        if level == "step" and aggregation != "mean":
            raise ValueError(
                f"`aggregation` was set to {aggregation!r} with `level='step'`, where every step keeps its own score. "
                "Leave it out, or use `level='completion'`."
            )
        refuse_second_process_reward(trainer)
        self.trainer = trainer
        self.level = level
        if alpha is None:
            alpha = PAVArguments.alpha if level == "step" else 1.0
        self.arguments = PAVArguments(alpha=alpha, step_length=step_length, **process_args)
        self.arguments.check()
        self.step_splitter = get_splitter(step_splitter, step_length=step_length)
        self._detach: Callable[[], None] | None = None
        self._checkpoint: str | bool | None = None
        if level == "completion":
            self.reward_func = StepRewardFunc(
                process_reward,
                self.step_splitter,
                aggregation,
                processing_class=trainer.processing_class,
                eos_token_ids=trainer.eos_token_ids,
            )
        else:
            self.arguments.check_units(trainer.multi_objective_aggregation)
            self.process_reward = load_process_reward(process_reward)
            check_process_reward(self.process_reward, **self.arguments.scoring())
        # A callback hears nothing of an exception, so the public `train` of this one instance is wrapped.
        trainer.train = functools.partial(self._train, trainer.train)

    def _train(
        self, train: Callable[..., Any], resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        self._checkpoint = resume_from_checkpoint
        try:
            return train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.detach()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.attach()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.detach()

    def attach(self) -> None:
        """Make the trainer use process rewards; does nothing if it does already."""
        if self._detach is None:
            self._detach = self._attach_to_steps() if self.level == "step" else self._attach_to_completions()

    def detach(self) -> None:
        """Give the trainer back as it was; does nothing if it is."""
        if self._detach is not None:
            self._detach()
            self._detach = None

    def _attach_to_steps(self) -> Callable[[], None]:
        trainer: Any = self.trainer
        refuse_second_process_reward(trainer)
        original_class = type(trainer)
        # Only what the hooks set is undone: whatever else appears while training belongs to the trainer.
        names = {*ProcessRewardHooks.__annotations__, *PAVHooks.__annotations__}
        originals = {name: value for name, value in vars(trainer).items() if name in names}

        def detach() -> None:
            if "completions_table" in vars(trainer):
                trainer.completions_table.remove()
            if trainer.recorder is not None:
                trainer.remove_callback(trainer.recorder)
            trainer.__class__ = original_class
            for name in names:
                vars(trainer).pop(name, None)
            vars(trainer).update(originals)

        trainer.__class__ = type(original_class.__name__, (PAVHooks, original_class), {})
        try:
            trainer.set_up_steps(self.step_splitter)
            trainer.set_up_process_reward(self.process_reward, self.arguments)
            trainer.process_reward_state.restore(self._checkpoint, trainer.args.output_dir)
            trainer.set_up_recording(self.arguments)
        except Exception:
            detach()
            raise
        return detach

    def _attach_to_completions(self) -> Callable[[], None]:
        trainer = self.trainer
        add_reward_column(trainer, self.reward_func.__name__)
        names = ("reward_funcs", "reward_func_names", "reward_processing_classes", "reward_weights")
        originals = {name: getattr(trainer, name) for name in names}
        trainer.reward_funcs = [*originals["reward_funcs"], self.reward_func]
        trainer.reward_func_names = [*originals["reward_func_names"], self.reward_func.__name__]
        trainer.reward_processing_classes = [*originals["reward_processing_classes"], None]
        weight = originals["reward_weights"].new_tensor([self.arguments.alpha])
        trainer.reward_weights = torch.cat([originals["reward_weights"], weight])

        def detach() -> None:
            remove_reward_column(trainer, self.reward_func.__name__)
            for name, value in originals.items():
                setattr(trainer, name, value)

        return detach
