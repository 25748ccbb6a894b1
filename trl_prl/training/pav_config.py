"""Configuration of [`PAVTrainer`] and of [`ProcessRewardCallback`]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from trl import GRPOConfig

from trl_prl.credit.baselines import CreditForm
from trl_prl.credit.groups import outcome_scale
from trl_prl.credit.step_tensors import check_option
from trl_prl.jobs.config import refuse_unheeded

from .setup import ProcessArguments, WithoutOutcome


ProgressScale = Literal["none", "outcome"]
Schedule = Literal["constant", "linear", "cosine"]
ProcessRewardType = Literal["values", "advantages"]


@dataclass
class PAVArguments(ProcessArguments):
    r"""
    How step scores become part of the advantages, apart from any trainer: the fields of [`ProcessArguments`], and

    Args:
        alpha (`float`, *optional*, defaults to `0.5`):
            Weight of a step's progress next to the outcome advantage
            ([PAV](https://huggingface.co/papers/2410.08146), eq. 5), in units of the outcome reward with
            `progress_scale="outcome"`. The paper finds anything between 0.5 and 6.0 helpful with its verifiers and
            uses 5.0 for a 2B and 3.0 for a 9B policy. The default is the smallest of these; with a small
            verifier and a fast learner start at a tenth of it, and compare with `0.0`, which is plain GRPO
            (`docs/experiments/learned_verifier.md`).
        progress_scale (`str`, *optional*, defaults to `"outcome"`):
            `"outcome"` divides the progress by what TRL divides the outcome advantage by (`scale_rewards`; by default
            the standard deviation of the group), so that `alpha` is the paper's. With `"none"` the same `alpha` weighs
            more: `alpha * std` is the paper's, 1.8 for 5.0 at a success rate of 1/8 and 2.7 at 1/2. Groups of equal
            outcomes are not divided.
        equal_outcomes (`str`, *optional*, defaults to `"process"`):
            Groups whose outcome rewards are all equal have no outcome advantage: train on their progress alone
            (`"process"`, as in the paper) or on nothing of them (`"skip"`, as GRPO in effect does).
        credit (`str`, *optional*, defaults to `"progress"`):
            What a step earns: its `"progress"`; or a return over its own and later scores as they are, for process
            rewards that are no values of a prover: `"min_form"`
            ([PURE](https://huggingface.co/papers/2504.15275), temperature 0.1: the worst step counts),
            `"return_to_go"` ([DeepSeekMath](https://huggingface.co/papers/2402.03300), 4.1.3: scores normalised in
            their group, which is never divided again), or `"clip_delta"`
            ([2410.15115](https://huggingface.co/papers/2410.15115): a bounded sum).
        clip_eta (`float`, *optional*):
            Bound of a score for `credit="clip_delta"`; by default the mean score of the steps of the group.
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
        calibration_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps between two comparisons of the values of finished solutions with their outcomes, the
            results of the first reward function, both in [0, 1]. `0` is never.
    """

    alpha: float = field(default=0.5, metadata={"help": "Weight of a step's progress. 0.0 is plain GRPO."})
    progress_scale: ProgressScale = field(
        default="outcome",
        metadata={"help": "'outcome' divides the progress as TRL divides the outcome (the paper's alpha), or 'none'."},
    )
    equal_outcomes: WithoutOutcome = field(
        default="process",
        metadata={"help": "Groups of equal outcomes: train on their 'process' part alone, or 'skip' them."},
    )
    credit: CreditForm = field(
        default="progress",
        metadata={"help": "What a step earns: 'progress', 'min_form', 'return_to_go' or 'clip_delta'."},
    )
    clip_eta: float | None = field(
        default=None, metadata={"help": "Bound of a score for credit='clip_delta'. Default: mean score of the group."}
    )
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
    calibration_steps: int = field(
        default=0,
        metadata={"help": "Optimizer steps between two looks at the calibration of the process reward. 0 is never."},
    )

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            `ValueError`: if a setting is out of its range.
        """
        super().check()
        check_option("progress_scale", self.progress_scale, ProgressScale)
        check_option("equal_outcomes", self.equal_outcomes, WithoutOutcome)
        check_option("credit", self.credit, CreditForm)
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
        if self.calibration_steps < 0:
            raise ValueError(
                f"`calibration_steps` was set to {self.calibration_steps}, but it is a number of optimizer steps. Set "
                "it to a positive number such as 50, or to 0 to leave calibration out."
            )
        self._check_together()

    def _check_together(self) -> None:
        """Refuse settings that do not go with others."""
        if self.alpha_schedule == "constant":
            refuse_unheeded(self, ["alpha_final"], "alpha_schedule")
        if self.credit != "clip_delta":
            refuse_unheeded(self, ["clip_eta"], "credit")
        elif self.clip_eta is not None and not math.isfinite(self.clip_eta):
            raise ValueError(
                f"`clip_eta` was set to {self.clip_eta}, which leaves no score finite. Set it to a number that most "
                "scores are above, or to None for the mean score of the group."
            )
        of_values = {"best_of_k": self.best_of_k != 1, "calibration_steps": self.calibration_steps != 0}
        if self.credit != "progress" and any(of_values.values()):
            name = next(name for name, is_set in of_values.items() if is_set)
            raise ValueError(
                f"`{name}` was set to {getattr(self, name)} with `credit={self.credit!r}`, which takes scores as they "
                f"are and not as values of a prover. Leave `{name}` out, or set `credit='progress'`."
            )

    def scoring(self) -> dict[str, Any]:
        """The settings that say how scores are read, as arguments of `check_process_reward`."""
        names = ("process_reward_type", "best_of_k", "initial_value", "calibration_steps", "credit")
        settings = {name: getattr(self, name) for name in names}
        # Scores that are taken as they are need no value of the prompt.
        return settings if self.credit == "progress" else {**settings, "process_reward_type": "advantages"}

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

    def row_weights(self, rewards: torch.Tensor, group_size: int, scale_rewards: str) -> torch.Tensor:
        """What `alpha` is multiplied with for each completion.

        Args:
            rewards (`torch.Tensor`):
                Outcome rewards of all processes, of shape (N,), NaN where unscorable.
            group_size (`int`):
                Completions per prompt, which are neighbours.
            scale_rewards (`str`):
                What TRL divides outcome advantages by.

        Returns:
            `torch.Tensor`: Weights of shape (N,).
        """
        divisors, is_equal = outcome_scale(rewards, group_size, scale_rewards)  # type: ignore[arg-type]
        is_scaled = self.progress_scale == "outcome" and self.credit != "return_to_go"
        weights = 1 / divisors if is_scaled else torch.ones_like(divisors)
        if self.equal_outcomes == "skip":
            weights = weights.masked_fill(is_equal & ~rewards.isnan(), 0.0)
        if self.unscorable_outcomes == "skip":
            weights = weights.masked_fill(rewards.isnan(), 0.0)
        return weights

    def check_units(self, multi_objective_aggregation: str) -> None:
        """Refuse to scale progress as the outcome where the outcome has no one scale.

        Args:
            multi_objective_aggregation (`str`):
                That of the [`~trl.GRPOConfig`].

        Raises:
            `ValueError`: if every outcome reward is divided by a number of its own.
        """
        if self.progress_scale == "outcome" and multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "`progress_scale='outcome'` was set with `multi_objective_aggregation="
                f"{multi_objective_aggregation!r}`, which divides every outcome reward by another number. Set "
                "`progress_scale='none'`, or `multi_objective_aggregation='sum_then_normalize'`."
            )


@dataclass
class PAVConfig(PAVArguments, GRPOConfig):
    r"""
    Configuration class for the [`PAVTrainer`].

    All fields of [`~trl.GRPOConfig`] keep their meaning and their defaults; the new fields are those of
    [`PAVArguments`].
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()

    def check(self) -> None:
        super().check()
        self.check_units(self.multi_objective_aggregation)
