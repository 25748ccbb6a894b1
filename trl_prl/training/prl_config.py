"""Configuration of [`PRLTrainer`]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from trl_prl.credit.kl import Direction, Estimator, Level
from trl_prl.credit.step_tensors import check_option
from trl_prl.jobs.config import refuse_unheeded
from trl_prl.steps.splitters import SPLITTER_HELP

from .setup import ProcessArguments


LogpsSource = Literal["current", "rollout"]
KLPlacement = Literal["advantage", "loss", "reward"]


@dataclass
class PRLConfig(ProcessArguments, GRPOConfig):
    r"""
    Configuration class for the [`PRLTrainer`].

    All fields of [`~trl.GRPOConfig`] keep their meaning. New, or with another default, are those of
    [`ProcessArguments`] and these:

    Args:
        beta (`float`, *optional*, defaults to `0.005`):
            Coefficient of the KL penalty, in nats of reward per nat of log-ratio: `1 / eta`, with `eta = 200` as in
            the release of [PRL](https://huggingface.co/papers/2601.10201). The penalty enters the advantages as a
            process reward instead of the loss. `0.0` is plain GRPO, and no reference model is loaded.
        step_level (`str`, *optional*, defaults to `"step"`):
            `"step"` gives every token of a step the KL from the step's first token on; `"token"` gives every token its
            own (FRPO, eq. 5.1). Both have the gradient of the KL penalty. `"step_end"` gives every token of a step the
            KL from the step's *last* token on, as the release of PRL does: it leaves out the KL inside the step, and
            can drift further than no KL at all.
        kl_placement (`str`, *optional*, defaults to `"advantage"`):
            Where the KL penalty enters: after the group normalisation as process reward (`"advantage"`), in the loss
            as in GRPO (`"loss"`), or before the group normalisation in the outcome reward (`"reward"`), which is known
            to go wrong and costs one forward pass of the policy per on-policy rollout.
        step_splitter (`str`, *optional*, defaults to `"fixed"`):
            Where steps end, see [`ProcessArguments`].
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            Penalty of later tokens: `"k1"` (log-ratio) or `"k3"` (never negative; eq. 4.6). Both are unbiased; k3 has
            less variance near the reference and more far from it.
        kl_direction (`str`, *optional*, defaults to `"reverse"`):
            `"reverse"` for KL(policy || reference) or `"forward"` for KL(reference || policy).
        kl_inclusive (`bool`, *optional*, defaults to `True`):
            Whether the token itself (at step levels the step, or its last token) counts (Alg. 1) or only what follows
            (Thm. 5.3). Without it the direct gradient of the KL is missing, and the policy can drift further than
            without any KL.
        logps_source (`str`, *optional*, defaults to `"current"`):
            Which policy the log-ratio is taken of when rollouts are reused: `"current"`, the policy being optimized
            (Alg. 1), or `"rollout"`, the policy at the time of the rollout. With on-policy rollouts both are the same.
    """

    beta: float = field(
        default=0.005,
        metadata={
            "help": "Coefficient of the KL penalty that becomes the process reward (1 / eta of the PRL paper). 0.0 is "
            "plain GRPO."
        },
    )
    step_level: Level = field(
        default="step",
        metadata={
            "help": "Credit per 'step' (exact), per 'token' (FRPO, exact), or 'step_end' (the PRL release; can drift "
            "further than no KL)."
        },
    )
    kl_placement: KLPlacement = field(
        default="advantage",
        metadata={
            "help": "KL as process reward ('advantage'), in the 'loss', or in the 'reward' (known to go wrong)."
        },
    )
    step_splitter: str = field(
        default="fixed",
        metadata={"help": f"Where steps end: {SPLITTER_HELP}."},
    )
    kl_estimator: Estimator = field(default="k1", metadata={"help": "Per-token KL estimator: 'k1' or 'k3'."})
    kl_direction: Direction = field(
        default="reverse",
        metadata={"help": "'reverse' for KL(policy || reference), 'forward' for the opposite."},
    )
    kl_inclusive: bool = field(
        default=True,
        metadata={
            "help": "Whether the KL-to-go of a token includes its own log-ratio. Without it the policy can drift "
            "further than with no KL."
        },
    )
    logps_source: LogpsSource = field(
        default="current",
        metadata={"help": "Policy of the log-ratio when rollouts are reused: 'current' or 'rollout'."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        check_option("kl_placement", self.kl_placement, KLPlacement)
        check_option("step_level", self.step_level, Level)
        check_option("kl_estimator", self.kl_estimator, Estimator)
        check_option("kl_direction", self.kl_direction, Direction)
        check_option("logps_source", self.logps_source, LogpsSource)
        if self.kl_placement != "advantage":
            # In the loss the KL of all completions is trained on, in the reward that of completions with an outcome.
            names = ["step_level", "kl_estimator", "kl_direction", "kl_inclusive", "logps_source", "process_baseline"]
            refuse_unheeded(self, [*names, "unscorable_outcomes"], "kl_placement")
        if not math.isfinite(self.beta) or self.beta < 0:
            raise ValueError(
                f"`beta` was set to {self.beta}. A negative KL coefficient rewards drifting away from the reference "
                "without bound, and a non-finite one leaves no advantage finite. Set `beta` to 0.0 for plain GRPO or "
                "to a small positive number such as 0.005."
            )
        if self.kl_placement == "reward" and self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"`kl_placement='reward'` was set with `multi_objective_aggregation="
                f"{self.multi_objective_aggregation!r}`, where there is no single reward the KL could be part of. Set "
                "`multi_objective_aggregation='sum_then_normalize'`, or another `kl_placement`."
            )
