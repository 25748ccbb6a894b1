"""PAV: dense rewards from the progress each step makes under a prover."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig

from .advantages import pav_advantages
from .fresh_calibration import FreshCalibration, calibration_metrics, last_values
from .hacking_radar import HackingRadar
from .pav_config import PAVArguments, PAVConfig
from .process_grpo_trainer import ProcessGRPOTrainer, ProcessRewardHooks
from .process_reward_checks import check_process_reward, describe_range, warn_of_other_splitter
from .process_scoring import (
    callable_name,
    prepare_process_reward,
    progress_of,
    resolve_process_reward,
    score_values,
)
from .step_tensors import spread_to_tokens
from .steps import SplitBatch
from .trainer_setup import citation, promote_config
from .types import ProcessReward, StepSplitter


logger = logging.getLogger(__name__)


# Columns TRL keeps from reward functions, because it passes them in another way.
RESERVED_COLUMNS = ("prompt", "completion", "completion_ids")


class PAVHooks(ProcessRewardHooks):
    """Mixin that adds the progress of every step to the outcome advantage, over any GRPO trainer class.

    Besides the hooks of [`ProcessRewardHooks`] it overrides `log`, around `super()`, to look for reward hacking.
    """

    process_reward: ProcessReward
    process_args: PAVArguments
    hacking_radar: HackingRadar | None
    fresh_calibration: FreshCalibration | None
    _range_reported: bool

    def set_up_process_reward(self, process_reward: ProcessReward, process_args: PAVArguments) -> None:
        """Prepare scoring.

        Args:
            process_reward (`ProcessReward`):
                What scores the steps, checked by [`check_process_reward`].
            process_args ([`PAVArguments`]):
                How the scores become part of the advantages.
        """
        self.process_reward = process_reward
        self.process_args = process_args
        warn_of_other_splitter(self.process_reward, self.step_splitter)
        self._range_reported = False
        window, every = process_args.radar_window, process_args.calibration_steps
        self.hacking_radar = HackingRadar(window) if window else None
        self.fresh_calibration = FreshCalibration(every) if every else None
        prepare_process_reward(self.process_reward, self.accelerator)

    def add_process_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> None:
        settings = self.process_args
        outcome_advantages, step_ids = output["advantages"], output["step_ids"]
        scores, initial_values = self._score(inputs, split)
        if self.fresh_calibration is not None and self._mode == "train":
            self._compare_with_outcomes(self.fresh_calibration, scores, output, split)
        progress = progress_of(scores, initial_values, settings.best_of_k).to(step_ids.device)
        if settings.step_advantage_clip is not None:
            progress = progress.clamp(-settings.step_advantage_clip, settings.step_advantage_clip)
        alpha = settings.alpha_at(self.state.global_step, self.state.max_steps)
        advantages = pav_advantages(outcome_advantages, progress, step_ids, alpha)
        if alpha != 0:  # at 0 the tensor of shape (B,) stays, and with it GRPO to the last bit
            output["advantages"] = advantages
        self.log_process_metrics(
            spread_to_tokens(progress, step_ids),
            advantages - outcome_advantages.unsqueeze(1),
            outcome_advantages,
            step_ids,
            alpha=alpha,
        )
        rewards = [row[: len(steps)].tolist() for row, steps in zip(progress, split.steps, strict=True)]
        self.log_steps(output, split, rewards)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.hacking_radar is not None:
            # The averages over processes that were logged: every process finds the same, one says it.
            messages = self.hacking_radar.look(self.state.log_history)
            if self.accelerator.is_main_process:
                for message in messages:
                    logger.warning("Reward-hacking radar: %s", message)

    def _score(self, inputs: list[dict[str, Any]], split: SplitBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores of this process's steps, of shape (B, S), and values of its prompts, as of [`score_values`]."""
        user_metrics: dict[str, list[float]] = defaultdict(list)
        user_columns: dict[str, list[Any]] = defaultdict(list)
        columns: dict[str, Any] = {
            key: [row[key] for row in inputs] for key in inputs[0] if key not in RESERVED_COLUMNS
        }
        columns["trainer_state"] = self.state
        columns["log_metric"] = lambda name, value: user_metrics[name].append(value)
        columns["log_extra"] = lambda column, values: user_columns[column].extend(values)
        if self.environments is not None:
            columns["environments"] = self.environments
        scores = score_values(
            self.process_reward,
            [row.get("prompt") for row in inputs],
            split.steps,
            columns,
            process_reward_type=self.process_args.process_reward_type,
            initial_value=self.process_args.initial_value,
        )
        self.log_user_metrics(user_metrics)
        self.log_columns(user_columns, len(inputs))
        message = None if self._range_reported else describe_range(callable_name(self.process_reward), *scores)
        if message:
            logger.warning(message)
            self._range_reported = True
        return scores

    def _compare_with_outcomes(
        self, calibration: FreshCalibration, values: torch.Tensor, output: dict[str, Any], split: SplitBatch
    ) -> None:
        """Log the calibration of last values on finished solutions, once enough optimizer steps are together."""
        num_steps = [len(steps) for steps in split.steps]
        # Only a verifier says that its values are those of the best of K; the trainer's own transform comes later.
        best_of_k = getattr(getattr(self.process_reward, "settings", None), "best_of_k", 1)
        due = calibration.add(
            self.state.global_step,
            last_values(values, num_steps, best_of_k),
            self.last_outcomes(len(num_steps)),
            num_steps,
            self.ended_on_their_own(output),
        )
        if due:
            for name, value in calibration_metrics(gather_object(calibration.pairs)).items():
                self._metrics["train"][f"process/calibration/{name}"].append(value)
            calibration.start_window(self.state.global_step)


class PAVTrainer(PAVHooks, ProcessGRPOTrainer):
    r"""
    Trainer for reinforcement learning with Process Advantage Verifiers (PAV).

    Drop-in for [`~trl.GRPOTrainer`]: the advantage of a token is TRL's outcome advantage plus `alpha` times the
    progress its step makes under a prover. Source: [PAV](https://huggingface.co/papers/2410.08146), eq. 2 and 5.

    Overrides `add_process_advantages` of [`ProcessGRPOTrainer`]; the rest is inherited unchanged.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or `PeftModel`):
            As for [`~trl.GRPOTrainer`].
        reward_funcs (`RewardFunc` or `list[RewardFunc]`, *optional*):
            As for [`~trl.GRPOTrainer`]: the outcome rewards.
        args ([`PAVConfig`], *optional*):
            Configuration. A plain [`~trl.GRPOConfig`] is accepted: its settings are kept and the new ones have their
            defaults.
        process_reward ([`ProcessReward`] or `str`):
            What scores the steps: a function `(prompts, steps, **columns) -> list[list[float]]`, plain or async, or
            the path or hub id of a verifier. It returns values, probabilities of success after each step, or
            advantages, see `PAVConfig.process_reward_type`; `None` or NaN for a step that cannot be scored, whose
            tokens then get the outcome advantage alone. Also passed to it: every dataset column, `trainer_state`,
            `log_metric`, `log_extra` and, where there are any, `environments`, as to TRL's reward functions.
        step_splitter ([`StepSplitter`] or `str`, *optional*):
            Where steps end; by default what `args.step_splitter` says.
        **kwargs:
            Every other argument of [`~trl.GRPOTrainer`].

    Example:

    ```python
    from trl_prl import PAVConfig, PAVTrainer

    trainer = PAVTrainer(
        model="Qwen/Qwen2.5-Math-1.5B",
        reward_funcs=accuracy_reward,
        process_reward=my_step_values,
        args=PAVConfig(output_dir="out", alpha=5.0, initial_value=0.5),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "trl-prl", "pav"]  # noqa: RUF012
    _name = "PAV"
    _paper = {  # noqa: RUF012
        "title": "Rewarding Progress: Scaling Automated Process Verifiers for LLM Reasoning",
        "id": "2410.08146",
        "citation": citation("""
            @article{setlur2024rewarding,
                title  = {{Rewarding Progress: Scaling Automated Process Verifiers for LLM Reasoning}},
                author = {Amrith Setlur and Chirag Nagpal and Adam Fisch and Xinyang Geng and Jacob Eisenstein and
                          Rishabh Agarwal and Alekh Agarwal and Jonathan Berant and Aviral Kumar},
                year   = 2024,
                eprint = {arXiv:2410.08146},
            }"""),
    }

    config_class = PAVConfig
    args: PAVConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *positional: Any,
        process_reward: ProcessReward | str,
        step_splitter: StepSplitter | str | None = None,
        **kwargs: Any,
    ) -> None:
        # Checked before the model is loaded, which may take minutes.
        config = promote_config(args, PAVConfig, model, self._name)
        process_reward = resolve_process_reward(process_reward)
        check_process_reward(process_reward, config)
        super().__init__(model, reward_funcs, config, *positional, step_splitter=step_splitter, **kwargs)
        self.set_up_process_reward(process_reward, config)
