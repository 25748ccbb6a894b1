"""PRL: process rewards from the policy's own log-ratios."""

from __future__ import annotations

import logging
from typing import Any

import torch
from trl import GRPOConfig

from .advantages import prl_advantages
from .prl_config import PRLConfig
from .process_grpo_trainer import ProcessGRPOTrainer
from .process_metrics import step_end_mask
from .steps import SplitBatch
from .trainer_setup import citation, promote_config
from .types import StepSplitter


logger = logging.getLogger(__name__)


class PRLTrainer(ProcessGRPOTrainer):
    r"""
    Trainer for Process Reward Learning (PRL, in its second version FRPO).

    Drop-in for [`~trl.GRPOTrainer`]: the KL penalty leaves the loss and becomes a reward for every prefix, so each
    step or token has an advantage of its own and no reward model is needed. Source:
    [PRL](https://huggingface.co/papers/2601.10201), Alg. 1.

    Overrides `add_process_advantages` and `on_loss_logps` of [`ProcessGRPOTrainer`]; the rest, the reference model and
    its synchronisation included, is inherited unchanged. It needs no forward pass beyond those of GRPO with the same
    `beta`: the policy's log-probs are those of the loss's own forward, detached.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or `PeftModel`):
            As for [`~trl.GRPOTrainer`].
        reward_funcs (`RewardFunc` or `list[RewardFunc]`, *optional*):
            As for [`~trl.GRPOTrainer`]: the outcome rewards.
        args ([`PRLConfig`], *optional*):
            Configuration. A plain [`~trl.GRPOConfig`] is accepted: its settings are kept and the new ones have their
            defaults; if its `beta` is 0.0, GRPO's default, PRL's default is used, and a warning says so.
        step_splitter ([`StepSplitter`] or `str`, *optional*):
            Where steps end; by default what `args.step_splitter` says.
        **kwargs:
            Every other argument of [`~trl.GRPOTrainer`].

    Raises:
        `TypeError`: if a `process_reward` is given, which is [`PAVTrainer`]'s.

    Example:

    ```python
    from trl_prl import PRLConfig, PRLTrainer

    trainer = PRLTrainer(
        model="Qwen/Qwen2.5-Math-1.5B",
        reward_funcs=accuracy_reward,
        args=PRLConfig(output_dir="out", beta=0.005, step_length=256),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "trl-prl", "prl"]  # noqa: RUF012
    _name = "PRL"
    _paper = {  # noqa: RUF012
        "title": "PRL: Process Reward Learning Improves LLMs' Reasoning Ability and Broadens the Reasoning Boundary",
        "id": "2601.10201",
        "citation": citation("""
            @article{prl2026,
                title  = {{PRL: Process Reward Learning Improves LLMs' Reasoning Ability and Broadens the Reasoning
                           Boundary}},
                year   = 2026,
                eprint = {arXiv:2601.10201},
            }"""),
    }

    config_class = PRLConfig
    kl_in_loss = False
    args: PRLConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *positional: Any,
        step_splitter: StepSplitter | str | None = None,
        **kwargs: Any,
    ) -> None:
        if "process_reward" in kwargs:
            raise TypeError(
                "PRLTrainer was given `process_reward`, but PRL has none: its process rewards come from the policy "
                "and the reference alone. Use PAVTrainer, which takes a `process_reward`, or leave it out."
            )
        config = promote_config(args, PRLConfig, model, self._name)
        if args is not None and config is not args and config.beta == 0.0:
            config.beta = PRLConfig.beta
            logger.warning(
                "`beta` is 0.0 in the GRPOConfig that PRLTrainer was given, which would switch process rewards off. "
                "PRL's default beta=%s is used. Pass a PRLConfig to choose `beta` yourself, 0.0 included.",
                config.beta,
            )
        length = config.max_completion_length
        fixed = step_splitter is None and config.step_level == "step" and config.step_splitter == "fixed"
        if fixed and length is not None and config.step_length >= length:
            logger.warning(
                "`step_length=%s` is not below `max_completion_length=%s`, so every completion is a single step and "
                "its tokens share one value. Lower `step_length`, or set `step_splitter` or `step_level='token'`.",
                config.step_length,
                length,
            )
        super().__init__(model, reward_funcs, config, *positional, step_splitter=step_splitter, **kwargs)

    def add_process_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> None:
        # The log-probs are not known before the loss, which turns the advantages of shape (B,) into (B, T).
        self.log_steps(output, split, step_rewards=None)

    def on_loss_logps(self, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        super().on_loss_logps(logps, inputs)
        outcome_advantages, step_ids = inputs["advantages"], inputs["step_ids"]
        ref_logps = inputs.get("ref_per_token_logps")
        if ref_logps is None:  # beta = 0: plain GRPO
            process_advantages = torch.zeros_like(logps)
        else:
            # TRL logs this only where the KL is in the loss.
            log_ratio = ref_logps - logps
            self.log_token_mean("kl", log_ratio.exp() - log_ratio - 1, step_ids >= 0)
            if self.args.logps_source == "rollout":
                logps = inputs.get("old_per_token_logps", logps)
            advantages = prl_advantages(
                outcome_advantages,
                logps,
                ref_logps,
                step_ids,
                beta=self._loss_beta,
                level=self.args.step_level,
                estimator=self.args.kl_estimator,
                direction=self.args.kl_direction,
                inclusive=self.args.kl_inclusive,
            )
            process_advantages = advantages - outcome_advantages.unsqueeze(1)
            inputs["advantages"] = advantages
        self.log_process_metrics(process_advantages, process_advantages, outcome_advantages, step_ids)
        if "row_ids" in inputs:
            ends = step_end_mask(step_ids)
            rewards = [row[end].tolist() for row, end in zip(process_advantages, ends, strict=True)]
            self.fill_step_rewards(inputs["row_ids"], rewards)
