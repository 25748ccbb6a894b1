"""PRL: process rewards from the policy's own log-ratios."""

from __future__ import annotations

import logging
from textwrap import dedent
from typing import Any

import torch
from trl import GRPOConfig

from trl_prl.credit.advantages import prl_advantages
from trl_prl.credit.baselines import total_log_ratio
from trl_prl.credit.groups import group_normalise
from trl_prl.credit.kl import kl_to_go
from trl_prl.credit.step_tensors import step_end_mask
from trl_prl.steps.split import SplitBatch
from trl_prl.types import StepSplitter

from .hacking_radar import HackingRadar, outcome_metric
from .metrics import gather_rows, group_baseline, own_rows
from .prl_config import PRLConfig
from .process_grpo_trainer import ProcessGRPOTrainer
from .setup import promote_config


logger = logging.getLogger(__name__)


class PRLTrainer(ProcessGRPOTrainer):
    r"""
    Trainer for Process Reward Learning (PRL, in its second version FRPO).

    Drop-in for [`~trl.GRPOTrainer`]: the KL penalty leaves the loss and becomes a reward for every prefix, so each
    step or token has an advantage of its own and no reward model is needed. Source:
    [PRL](https://huggingface.co/papers/2601.10201), Alg. 1.

    Overrides `add_process_advantages`, `on_loss_logps`, `build_radar` and `process_settings` of
    [`ProcessGRPOTrainer`], and passes TRL's `_get_per_token_logps_and_entropies` through; the rest, the reference
    model and its synchronisation included, is inherited unchanged. By default it needs no forward pass beyond those
    of GRPO with the same `beta`: the policy's log-probs are those of the loss's own forward, detached.

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
        "citation": dedent("""\
            @article{prl2026,
                title  = {{PRL: Process Reward Learning Improves LLMs' Reasoning Ability and Broadens the Reasoning
                           Boundary}},
                year   = 2026,
                eprint = {arXiv:2601.10201},
            }"""),
    }

    config_class = PRLConfig
    args: PRLConfig

    _rollout_forward: tuple[tuple[Any, ...], dict[str, Any]]

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
        fixed = step_splitter is None and config.step_level != "token" and config.step_splitter == "fixed"
        if fixed and length is not None and config.step_length >= length:
            logger.warning(
                "`step_length=%s` is not below `max_completion_length=%s`, so every completion is a single step and "
                "its tokens share one value. Lower `step_length`, or set `step_splitter` or `step_level='token'`.",
                config.step_length,
                length,
            )
        if config.kl_placement == "reward":
            logger.warning(
                "`kl_placement='reward'` puts the KL into the reward before it is normalised within its group: the "
                "normaliser then depends on the drift, all tokens share one number, and the authors' runs with it "
                "collapsed. It is there to be compared with; use 'advantage', or 'loss'."
            )
        self.kl_in_loss = config.kl_placement == "loss"
        self.process_source = f"PRL at beta={config.beta} (log-ratios of the policy to its reference)"
        super().__init__(model, reward_funcs, config, *positional, step_splitter=step_splitter, **kwargs)

    def build_radar(self, window: int) -> HackingRadar:
        remedy = "Read completions (`log_completions=True`), and raise `beta` if the policy has left its reference."
        return HackingRadar(window, remedy, outcome_metric(self), compares_rewards=False)

    def process_settings(self) -> dict[str, Any]:
        own = ["beta", "step_level", "kl_placement", "kl_estimator", "kl_direction", "kl_inclusive", "logps_source"]
        names = [*own, "process_baseline", "unscorable_outcomes"]
        return {**{name: getattr(self.args, name) for name in names}, **super().process_settings()}

    def add_process_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> None:
        # The log-probs are not known before the loss, which turns the advantages of shape (B,) into (B, T).
        self.log_steps(output, split, step_rewards=None)
        if self.beta == 0 or self.kl_in_loss:
            return
        if self.args.unscorable_outcomes == "skip":
            output["is_scored"] = own_rows(self.accelerator, ~self.outcome_rewards().isnan())
        step_ids, ref_logps = output["step_ids"], output["ref_per_token_logps"]
        if self.args.kl_placement == "reward":
            kl = total_log_ratio(self._rollout_logps(output), ref_logps, step_ids >= 0)
            rewards = self.outcome_rewards() - self.beta * gather_rows(self.accelerator, kl)
            scale: Any = self.scale_rewards
            advantages = group_normalise(rewards, self.group_size, scale).nan_to_num(nan=0.0)
            output["advantages"] = own_rows(self.accelerator, advantages)
        elif self.args.process_baseline == "group":
            kl = kl_to_go(self._rollout_logps(output), ref_logps, step_ids, **self._kl_options())
            output["kl_baseline"] = group_baseline(self.accelerator, kl, step_ids, self.group_size)

    def _kl_options(self) -> dict[str, Any]:
        """The arguments of `kl_to_go` that are settings."""
        args = self.args
        names = {"level": args.step_level, "estimator": args.kl_estimator, "direction": args.kl_direction}
        return {**names, "inclusive": args.kl_inclusive}

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        needed = self.args.kl_placement == "reward" or self.args.process_baseline == "group"
        if needed and self._loss_inputs is None:
            self._rollout_forward = (args[1:], kwargs)  # without the model, which may be the reference
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    @torch.no_grad()
    def _rollout_logps(self, output: dict[str, Any]) -> torch.Tensor:
        """Log-probs of the rollout under the policy: TRL's, if it needed them, or those of one more forward pass."""
        if "old_per_token_logps" not in output:
            args, kwargs = self._rollout_forward
            return super()._get_per_token_logps_and_entropies(self.model, *args, **kwargs)[0]
        logps: torch.Tensor = output["old_per_token_logps"]
        return logps

    def on_loss_logps(self, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        super().on_loss_logps(logps, inputs)
        outcome_advantages, step_ids = inputs["advantages"], inputs["step_ids"]
        ref_logps = inputs.get("ref_per_token_logps")
        process_advantages = torch.zeros_like(logps)
        if ref_logps is not None and not self.kl_in_loss:
            # TRL logs this only where the KL is in the loss.
            log_ratio = ref_logps - logps
            estimates, mask = log_ratio.exp() - log_ratio - 1, step_ids >= 0
            self.log_ratio("kl", estimates.masked_fill(~mask, 0.0).sum(), mask.sum())
        if ref_logps is not None and self.args.kl_placement == "advantage":
            if self.args.logps_source == "rollout":
                logps = inputs.get("old_per_token_logps", logps)
            advantages = prl_advantages(
                outcome_advantages,
                logps,
                ref_logps,
                step_ids,
                self._loss_beta,
                baseline=inputs.get("kl_baseline"),
                **self._kl_options(),
            )
            if "is_scored" in inputs:
                advantages.masked_fill_(~inputs["is_scored"].unsqueeze(1), 0.0)
            process_advantages = advantages - outcome_advantages.unsqueeze(1)
            inputs["advantages"] = advantages
        self.log_process_metrics(process_advantages, process_advantages, outcome_advantages, step_ids)
        if "row_ids" in inputs:
            ends = step_end_mask(step_ids)
            rewards = [row[end].tolist() for row, end in zip(process_advantages, ends, strict=True)]
            self.fill_step_rewards(inputs["row_ids"], rewards)
