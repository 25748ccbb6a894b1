"""Configuration of [`PRLTrainer`]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from .advantages import Direction, Estimator, Level
from .run_files import check_record_completions
from .step_tensors import check_option


LogpsSource = Literal["current", "rollout"]


@dataclass
class PRLConfig(GRPOConfig):
    r"""
    Configuration class for the [`PRLTrainer`].

    All fields of [`~trl.GRPOConfig`] keep their meaning; only those below are new or have another default.

    Args:
        beta (`float`, *optional*, defaults to `0.005`):
            Coefficient of the KL penalty, in nats of reward per nat of log-ratio: `1 / eta`, with `eta = 200` as in
            the release of [PRL](https://huggingface.co/papers/2601.10201). The penalty enters the advantages as a
            process reward instead of the loss. `0.0` is plain GRPO, and no reference model is loaded.
        step_level (`str`, *optional*, defaults to `"step"`):
            `"step"` gives every token of a step the value at the step's last token (PRL); `"token"` gives every token
            its own (FRPO, eq. 5.1).
        step_splitter (`str`, *optional*, defaults to `"fixed"`):
            Where steps end: `"fixed"`, `"newline"`, `"blank_line"`, `"sentence"`, `"markdown"`, `"markdown_newline"`,
            `"delimiter:..."` or `"regex:..."`, see [`get_splitter`].
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of the `"fixed"` splitter.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            Per-token penalty: `"k1"` (log-ratio) or `"k3"` (never negative; eq. 4.6).
        kl_direction (`str`, *optional*, defaults to `"reverse"`):
            `"reverse"` for KL(policy || reference) or `"forward"` for KL(reference || policy).
        kl_inclusive (`bool`, *optional*, defaults to `True`):
            Whether the sum over the future starts at the token itself (Alg. 1) or after it (Thm. 5.3).
        logps_source (`str`, *optional*, defaults to `"current"`):
            Which policy the log-ratio is taken of when rollouts are reused: `"current"`, the policy being optimized
            (Alg. 1), or `"rollout"`, the policy at the time of the rollout. With on-policy rollouts both are the same.
        record_run (`bool`, *optional*, defaults to `True`):
            Whether to record scalars and a few completions in `output_dir/process`, for `trl-prl report`.
        record_completions (`int`, *optional*, defaults to `16`):
            Completions recorded per logging step and evaluation, of all processes together; `0` for none.
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
        metadata={"help": "Granularity of the credit: 'step' (PRL) or 'token' (FRPO)."},
    )
    step_splitter: str = field(
        default="fixed",
        metadata={
            "help": "Where steps end: 'fixed', 'newline', 'blank_line', 'sentence', 'markdown', "
            "'markdown_newline', 'delimiter:...' or 'regex:...'."
        },
    )
    step_length: int = field(default=256, metadata={"help": "Tokens per step of the 'fixed' splitter."})
    kl_estimator: Estimator = field(default="k1", metadata={"help": "Per-token KL estimator: 'k1' or 'k3'."})
    kl_direction: Direction = field(
        default="reverse",
        metadata={"help": "'reverse' for KL(policy || reference), 'forward' for the opposite."},
    )
    kl_inclusive: bool = field(
        default=True, metadata={"help": "Whether the KL-to-go of a token includes the token's own log-ratio."}
    )
    logps_source: LogpsSource = field(
        default="current",
        metadata={"help": "Policy of the log-ratio when rollouts are reused: 'current' or 'rollout'."},
    )
    record_run: bool = field(
        default=True,
        metadata={
            "help": "Whether to record scalars and a few completions in `output_dir/process`, for `trl-prl report`."
        },
    )
    record_completions: int = field(
        default=16, metadata={"help": "Completions recorded per logging step and evaluation; 0 for none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_record_completions(self.record_completions)
        check_option("step_level", self.step_level, Level)
        check_option("kl_estimator", self.kl_estimator, Estimator)
        check_option("kl_direction", self.kl_direction, Direction)
        check_option("logps_source", self.logps_source, LogpsSource)
        if not math.isfinite(self.beta) or self.beta < 0:
            raise ValueError(
                f"`beta` was set to {self.beta}. A negative KL coefficient rewards drifting away from the reference "
                "without bound, and a non-finite one leaves no advantage finite. Set `beta` to 0.0 for plain GRPO or "
                "to a small positive number such as 0.005."
            )
