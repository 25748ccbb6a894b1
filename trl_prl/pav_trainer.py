"""PAV: dense rewards from the progress each step makes under a prover."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from trl import GRPOConfig

from .advantages import pav_advantages
from .pav_config import PAVArguments, PAVConfig
from .process_grpo_trainer import ProcessGRPOTrainer, ProcessRewardHooks, citation, promote_config
from .process_scoring import check_process_reward, resolve_process_reward, score_progress
from .step_tensors import spread_to_tokens
from .steps import SplitBatch
from .types import ProcessReward, StepSplitter


# Columns TRL keeps from reward functions, because it passes them in another way.
RESERVED_COLUMNS = ("prompt", "completion", "completion_ids")


class PAVHooks(ProcessRewardHooks):
    """Mixin that adds the progress of every step to the outcome advantage, over any GRPO trainer class."""

    process_reward: ProcessReward
    process_args: PAVArguments

    def set_up_process_reward(self, process_reward: ProcessReward | str, process_args: PAVArguments) -> None:
        """Prepare scoring.

        Args:
            process_reward (`ProcessReward` or `str`):
                What scores the steps.
            process_args ([`PAVArguments`]):
                How the scores become part of the advantages.

        Raises:
            `TypeError`: if `process_reward` cannot score steps.
            `ValueError`: if no progress can be computed from what it returns.
        """
        self.process_reward = resolve_process_reward(process_reward)
        self.process_args = process_args
        check_process_reward(
            self.process_reward, process_args.process_reward_type, process_args.initial_value, process_args.best_of_k
        )
        # A verifier moves to this process's device; a function has nothing to prepare.
        prepare = getattr(self.process_reward, "prepare", None)
        if prepare is not None:
            prepare(self.accelerator)

    def add_process_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> None:
        settings = self.process_args
        outcome_advantages, step_ids = output["advantages"], output["step_ids"]
        progress = self._score(inputs, output, split).to(step_ids.device)
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

    def _score(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> torch.Tensor:
        """Progress of every step of this process's completions, of shape (B, S)."""
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
        progress = score_progress(
            self.process_reward,
            [row.get("prompt") for row in inputs],
            split.steps,
            columns,
            process_reward_type=self.process_args.process_reward_type,
            best_of_k=self.process_args.best_of_k,
            initial_value=self.process_args.initial_value,
        )
        self.log_user_metrics(user_metrics)
        self.log_columns(user_columns, len(inputs))
        return progress


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
        check_process_reward(process_reward, config.process_reward_type, config.initial_value, config.best_of_k)
        super().__init__(model, reward_funcs, config, *positional, step_splitter=step_splitter, **kwargs)
        self.set_up_process_reward(process_reward, config)
