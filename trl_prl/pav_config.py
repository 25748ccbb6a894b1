"""Configuration of [`PAVTrainer`] and of [`ProcessRewardCallback`]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from .run_files import check_record_completions
from .step_tensors import check_option


Schedule = Literal["constant", "linear", "cosine"]
ProcessRewardType = Literal["values", "advantages"]


@dataclass
class PAVArguments:
    r"""
    How step scores become part of the advantages, apart from any trainer.

    Args:
        alpha (`float`, *optional*, defaults to `5.0`):
            Weight of a step's progress next to the outcome advantage
            ([PAV](https://huggingface.co/papers/2410.08146), eq. 5; the paper uses 5.0 for a 2B and 3.0 for a 9B
            policy and finds anything between 0.5 and 6.0 helpful). `0.0` is plain GRPO.
        alpha_schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, or `"linear"` or `"cosine"` from `alpha` to `alpha_final` over the training run.
        alpha_final (`float`, *optional*, defaults to `0.0`):
            Weight at the end of the run; not used by the constant schedule.
        alpha_warmup_ratio (`float`, *optional*, defaults to `0.0`):
            Share of the optimizer steps over which the weight first rises linearly from 0 to `alpha`.
        process_reward_type (`str`, *optional*):
            What the process reward returns: `"values"`, probabilities of success whose differences are the progress
            (eq. 2), or `"advantages"`, progress itself. By default the `returns` attribute of the process reward, or
            `"values"` where it has none.
        best_of_k (`int`, *optional*, defaults to `1`):
            Turns values of a prover into those of the best of `best_of_k` of its samples (eq. 30).
        initial_value (`float`, *optional*):
            Value of the prompt, in [0, 1], for a process reward that returns values and has no method
            `initial_values(prompts, **columns)`.
        step_advantage_clip (`float`, *optional*):
            Bound on the absolute progress of a single step. Not clipped by default.
        step_splitter (`str`, *optional*, defaults to `"newline"`):
            Where steps end: `"fixed"`, `"newline"`, `"blank_line"`, `"sentence"`, `"markdown"`, `"markdown_newline"`,
            `"delimiter:..."` or `"regex:..."`, see [`get_splitter`].
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of the `"fixed"` splitter.
        record_run (`bool`, *optional*, defaults to `True`):
            Whether to record scalars and a few completions in `output_dir/process`, for `trl-prl report`.
        record_completions (`int`, *optional*, defaults to `16`):
            Completions recorded per logging step and evaluation, of all processes together; `0` for none.
        radar_window (`int`, *optional*, defaults to `10`):
            Log entries at the start and at the end of a run that the reward-hacking radar compares, at least 3;
            `0` switches it off.
        calibration_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps between two comparisons of the values of finished solutions with their outcomes, the
            results of the first reward function, both in [0, 1]. `0` is never.
    """

    alpha: float = field(default=5.0, metadata={"help": "Weight of a step's progress. 0.0 is plain GRPO."})
    alpha_schedule: Schedule = field(
        default="constant",
        metadata={"help": "'constant', or 'linear' or 'cosine' to `alpha_final`."},
    )
    alpha_final: float = field(default=0.0, metadata={"help": "Weight at the end of a linear or cosine schedule."})
    alpha_warmup_ratio: float = field(
        default=0.0, metadata={"help": "Share of the optimizer steps over which the weight rises from 0."}
    )
    process_reward_type: ProcessRewardType | None = field(
        default=None,
        metadata={
            "help": "What the process reward returns: 'values' or 'advantages'. Default: what the object says, else "
            "'values'."
        },
    )
    best_of_k: int = field(default=1, metadata={"help": "Best-of-K transform of the prover's values."})
    initial_value: float | None = field(
        default=None, metadata={"help": "Value of the prompt for process rewards that cannot score it."}
    )
    step_advantage_clip: float | None = field(
        default=None, metadata={"help": "Bound on the absolute progress of a single step."}
    )
    step_splitter: str = field(
        default="newline",
        metadata={
            "help": "Where steps end: 'fixed', 'newline', 'blank_line', 'sentence', 'markdown', "
            "'markdown_newline', 'delimiter:...' or 'regex:...'."
        },
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
    calibration_steps: int = field(
        default=0,
        metadata={"help": "Optimizer steps between two looks at the calibration of the process reward. 0 is never."},
    )

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            `ValueError`: if a setting is out of its range.
        """
        check_record_completions(self.record_completions)
        check_option("alpha_schedule", self.alpha_schedule, Schedule)
        if self.process_reward_type is not None:
            check_option("process_reward_type", self.process_reward_type, ProcessRewardType)
        for name in ("alpha", "alpha_final"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(
                    f"`{name}` was set to {value}. A negative or non-finite weight would punish progress. Set it to "
                    "0.0 for plain GRPO or to a positive number; the PAV paper uses 3.0 to 5.0."
                )
        if not 0.0 <= self.alpha_warmup_ratio <= 1.0:
            raise ValueError(
                f"`alpha_warmup_ratio` was set to {self.alpha_warmup_ratio}, but it is a share of the training run. "
                "Set it to a number between 0.0 and 1.0."
            )
        if self.best_of_k < 1:
            raise ValueError(
                f"`best_of_k` was set to {self.best_of_k}, but a prover needs at least one sample. Set it to 1 to "
                "leave the values as they are, or to a larger integer."
            )
        if self.initial_value is not None and not 0.0 <= self.initial_value <= 1.0:
            raise ValueError(
                f"`initial_value` was set to {self.initial_value}, but it is a probability of success. Set it to a "
                "number between 0.0 and 1.0."
            )
        if self.step_advantage_clip is not None and not self.step_advantage_clip > 0:
            raise ValueError(
                f"`step_advantage_clip` was set to {self.step_advantage_clip}, which leaves nothing of any progress. "
                "Set it to a positive number, or to None for no clipping."
            )
        if self.radar_window != 0 and self.radar_window < 3:
            raise ValueError(
                f"`radar_window` was set to {self.radar_window}, but fewer than three log entries have no spread to "
                "tell a change from noise. Set it to 3 or more, or to 0 to switch the radar off."
            )
        if self.calibration_steps < 0:
            raise ValueError(
                f"`calibration_steps` was set to {self.calibration_steps}, but it is a number of optimizer steps. Set "
                "it to a positive number such as 50, or to 0 to leave calibration out."
            )

    def alpha_at(self, optimizer_step: int, max_steps: int) -> float:
        """Weight of the progress at an optimizer step.

        Args:
            optimizer_step (`int`):
                Optimizer steps done so far.
            max_steps (`int`):
                Optimizer steps of the whole run.

        Returns:
            `float`: The weight, between 0 and the larger of `alpha` and `alpha_final`.
        """
        warmup_steps = math.ceil(self.alpha_warmup_ratio * max_steps)
        if optimizer_step < warmup_steps:
            return self.alpha * optimizer_step / warmup_steps
        if self.alpha_schedule == "constant":
            return self.alpha
        progress = min(1.0, (optimizer_step - warmup_steps) / max(1, max_steps - warmup_steps))
        if self.alpha_schedule == "cosine":
            progress = (1.0 - math.cos(math.pi * progress)) / 2.0
        return self.alpha + (self.alpha_final - self.alpha) * progress


@dataclass
class PAVConfig(PAVArguments, GRPOConfig):
    r"""
    Configuration class for the [`PAVTrainer`].

    All fields of [`~trl.GRPOConfig`] keep their meaning and their defaults; the new fields are those of
    [`PAVArguments`]:

    Args:
        alpha (`float`, *optional*, defaults to `5.0`):
            Weight of a step's progress next to the outcome advantage
            ([PAV](https://huggingface.co/papers/2410.08146), eq. 5). `0.0` is plain GRPO.
        alpha_schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, or `"linear"` or `"cosine"` from `alpha` to `alpha_final`.
        alpha_final (`float`, *optional*, defaults to `0.0`):
            Weight at the end of a linear or cosine schedule.
        alpha_warmup_ratio (`float`, *optional*, defaults to `0.0`):
            Share of the optimizer steps over which the weight first rises from 0.
        process_reward_type (`str`, *optional*):
            `"values"` or `"advantages"`: what the process reward returns.
        best_of_k (`int`, *optional*, defaults to `1`):
            Best-of-K transform of the values (eq. 30).
        initial_value (`float`, *optional*):
            Value of the prompt for process rewards that cannot score it.
        step_advantage_clip (`float`, *optional*):
            Bound on the absolute progress of a single step.
        step_splitter (`str`, *optional*, defaults to `"newline"`):
            Where steps end, see [`get_splitter`].
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of the `"fixed"` splitter.
        record_run (`bool`, *optional*, defaults to `True`):
            Whether to record scalars and a few completions in `output_dir/process`, for `trl-prl report`.
        record_completions (`int`, *optional*, defaults to `16`):
            Completions recorded per logging step and evaluation, of all processes together; `0` for none.
        radar_window (`int`, *optional*, defaults to `10`):
            Log entries at the start and at the end of a run that the reward-hacking radar compares, at least 3;
            `0` switches it off.
        calibration_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps between two comparisons of the values of finished solutions with their outcomes, the
            results of the first reward function, both in [0, 1]. `0` is never.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
