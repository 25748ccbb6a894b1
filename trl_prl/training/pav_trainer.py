"""PAV: dense rewards from the progress each step makes under a prover."""

from __future__ import annotations

import logging
import math
from textwrap import dedent
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig

from trl_prl.credit.advantages import pav_advantages
from trl_prl.credit.baselines import step_credit
from trl_prl.credit.step_tensors import spread_to_tokens
from trl_prl.prms.load import load_process_reward
from trl_prl.prms.online import ProcessRewardState, update_process_reward
from trl_prl.prompts.format import PromptFormat
from trl_prl.rewards.checks import (
    asks_for,
    check_process_reward,
    describe_range,
    scoring_function,
    takes,
    warn_of_other_prompts,
    warn_of_other_splitter,
    warn_of_second_best_of_k,
)
from trl_prl.rewards.scoring import callable_name, prepare_process_reward, progress_of, score_values
from trl_prl.rewards.transcript import add_transcript, token_transcripts
from trl_prl.steps.split import SplitBatch
from trl_prl.types import ProcessReward, StepSplitter

from .fresh_calibration import FreshCalibration, calibration_metrics, ended_on_their_own, last_values
from .metrics import gather_rows, group_baseline, own_rows
from .pav_config import PAVArguments, PAVConfig
from .process_grpo_trainer import ProcessGRPOTrainer, ProcessRewardHooks
from .setup import promote_config


logger = logging.getLogger(__name__)


class PAVHooks(ProcessRewardHooks):
    """Mixin that adds the progress of every step to the outcome advantage, over any GRPO trainer class.

    Overrides the public `train` and `save_model`, around `super()`, for the state of a process reward that learns.
    """

    process_reward: ProcessReward
    process_args: PAVArguments
    fresh_calibration: FreshCalibration | None
    process_reward_state: ProcessRewardState
    _reported: set[str]

    def set_up_process_reward(self, process_reward: ProcessReward, process_args: PAVArguments) -> None:
        """Prepare scoring.

        Args:
            process_reward (`ProcessReward`):
                What scores the steps, checked by [`check_process_reward`].
            process_args ([`PAVArguments`]):
                How the scores become part of the advantages.
        """
        self.process_reward, self.process_args = process_reward, process_args
        warn_of_other_splitter(self.process_reward, self.step_splitter)
        warn_of_second_best_of_k(self.process_reward, process_args.best_of_k)
        self._reported = set()
        every, name = process_args.calibration_steps, callable_name(process_reward)
        self.sources["process_reward"] = name
        self.process_source = f"the process reward '{name}' at alpha={process_args.alpha}"
        self.fresh_calibration = FreshCalibration(every) if every else None
        prepare_process_reward(self.process_reward, self.accelerator)
        if hasattr(process_reward, "attach"):
            process_reward.attach(self)
        self.process_reward_state = ProcessRewardState(self.process_reward)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self.process_reward_state.restore(resume_from_checkpoint, str(self.args.output_dir))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().save_model(output_dir, *args, **kwargs)
        self.process_reward_state.save(output_dir, self.args.should_save)

    def add_process_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> None:
        settings = self.process_args
        outcome_advantages, step_ids = output["advantages"], output["step_ids"]
        finished = ended_on_their_own(output["completion_ids"], step_ids, self.eos_token_ids)
        columns = self._columns(inputs)
        function = scoring_function(self.process_reward, settings.scoring()["process_reward_type"])
        if asks_for(function, "step_token_ids"):
            columns["step_token_ids"] = split.token_ids(output["completion_ids"])
        add_transcript(function, columns, lambda: token_transcripts(self.token_pieces, output, self.completions))
        end = {"finished": finished} if takes(function, "finished") else {}
        scores, initial_values = self._score(inputs, split, {**columns, **end})
        if self.fresh_calibration is not None and self._mode == "train":
            self._compare_with_outcomes(self.fresh_calibration, scores, split, finished)
        credit = self._step_credit(scores, initial_values).to(step_ids.device)
        if settings.step_advantage_clip is not None:
            credit = credit.clamp(-settings.step_advantage_clip, settings.step_advantage_clip)
        alpha = settings.alpha_at(self.state.global_step, self.state.max_steps)
        token_credit = spread_to_tokens(credit, step_ids, fill=math.nan)
        baseline = None
        if settings.process_baseline == "group":
            baseline = group_baseline(self.accelerator, token_credit, step_ids, self.group_size)
        weights = settings.row_weights(self.outcome_rewards(), self.group_size, self.scale_rewards)  # type: ignore[arg-type]
        weights = alpha * own_rows(self.accelerator, weights).to(step_ids.device)
        advantages = pav_advantages(outcome_advantages, credit, step_ids, weights, baseline)
        if alpha != 0:  # at 0 the tensor of shape (B,) stays, and with it GRPO to the last bit
            output["advantages"] = advantages
        process_advantages = advantages - outcome_advantages.unsqueeze(1)
        metrics = self.log_process_metrics(token_credit, process_advantages, outcome_advantages, step_ids, alpha=alpha)
        self._warn_if_nothing_is_scored(metrics)
        rewards = [row[: len(steps)].tolist() for row, steps in zip(credit, split.steps, strict=True)]
        self.log_steps(output, split, rewards)
        if self._mode == "train" and self.process_reward_state.learns:
            outcomes = own_rows(self.accelerator, self.outcomes)[:, 0].tolist()
            if takes(self.process_reward.update, "finished"):  # type: ignore[attr-defined]
                columns["finished"] = finished
            numbers = update_process_reward(self.process_reward, self.prompts, split.steps, outcomes, columns)
            for name, value in numbers.items():
                self._metrics["train"][f"process/update/{name}"].append(value)

    def _step_credit(self, scores: torch.Tensor, initial_values: torch.Tensor | None) -> torch.Tensor:
        """What each step of this process's completions earns, of shape (B, S)."""
        settings = self.process_args
        if settings.credit == "progress":
            return progress_of(scores, initial_values, settings.best_of_k)
        everyone = gather_rows(self.accelerator, scores.to(self.accelerator.device))
        credit = step_credit(everyone, settings.credit, self.group_size, settings.clip_eta)
        return own_rows(self.accelerator, credit)[:, : scores.shape[1]]

    def _warn_if_nothing_is_scored(self, metrics: dict[str, float]) -> None:
        """Say once that the process reward is silent; `metrics` are those of a rollout of all processes."""
        nothing = metrics.get("process/unscorable_frac") == 1.0
        if nothing and "nothing" not in self._reported and self.accelerator.is_main_process:
            self._reported.add("nothing")
            logger.warning(
                "No step of this rollout could be scored by the process reward '%s': all its scores are None or NaN, "
                "and training goes on with the outcome alone. See `process/unscorable_frac` for how often that is; a "
                "verifier whose weights are NaN does it always.",
                callable_name(self.process_reward),
            )

    def _columns(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """What a process reward is given besides prompts and steps."""
        # TRL keeps these from reward functions, because it passes them in another way.
        kept = (name for name in inputs[0] if name not in ("prompt", "completion", "completion_ids"))
        given: dict[str, Any] = {} if self.environments is None else {"environments": self.environments}
        return {**{name: [row[name] for row in inputs] for name in kept}, "trainer_state": self.state, **given}

    def _score(
        self, inputs: list[dict[str, Any]], split: SplitBatch, columns: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores of this process's steps, of shape (B, S), and values of its prompts, as of [`score_values`]."""
        user_metrics: dict[str, list[float]] = {}
        user_columns: dict[str, list[Any]] = {}
        columns |= {
            "log_metric": lambda name, value: user_metrics.setdefault(name, []).append(value),
            "log_extra": lambda column, values: user_columns.setdefault(column, []).extend(values),
        }
        if "prompts" not in self._reported:
            used = self.sources.get("prompts") or PromptFormat(chat_template_kwargs=self.chat_template_kwargs)
            warn_of_other_prompts(self.process_reward, self.prompts[0], used)
            self._reported.add("prompts")
        scores = score_values(
            self.process_reward,
            self.prompts,
            split.steps,
            columns,
            process_reward_type=self.process_args.scoring()["process_reward_type"],
            initial_value=self.process_args.initial_value,
        )
        for name in sorted(set(gather_object(list(user_metrics)))):
            values = user_metrics.get(name, [])
            self.log_ratio(name, sum(values), len(values))
        for name in sorted(set(gather_object(list(user_columns)))):
            self.completions_table.extend(name, gather_object(user_columns.get(name, [None] * len(inputs))))
        message = None if "range" in self._reported else describe_range(callable_name(self.process_reward), *scores)
        if message:
            logger.warning(message)
            self._reported.add("range")
        return scores

    def _compare_with_outcomes(
        self, calibration: FreshCalibration, values: torch.Tensor, split: SplitBatch, finished: list[bool]
    ) -> None:
        """Log the calibration of last values on finished solutions, once enough optimizer steps are together."""
        num_steps = [len(steps) for steps in split.steps]
        # Of a verifier; the trainer's own transform comes later.
        best_of_k = getattr(getattr(self.process_reward, "settings", None), "best_of_k", 1)
        due = calibration.add(
            self.state.global_step,
            last_values(values, num_steps, best_of_k),
            own_rows(self.accelerator, self.outcomes)[:, 0].tolist(),
            num_steps,
            finished,
        )
        if due:
            for name, value in calibration_metrics(gather_object(calibration.pairs)).items():
                self._metrics["train"][f"process/calibration/{name}"].append(value)
            calibration.start_window(self.state.global_step)


def add_reward_column(trainer: Any, name: str) -> None:
    """Add the column of one more reward function to the completions table, with NaN for the rows that are there."""
    trainer._logs["rewards"][name].extend([math.nan] * len(trainer._logs["prompt"]))


def remove_reward_column(trainer: Any, name: str) -> None:
    """Take the column of a reward function out of the completions table, as nobody goes on filling it."""
    trainer._logs["rewards"].pop(name, None)


class PAVTrainer(PAVHooks, ProcessGRPOTrainer):
    r"""
    Trainer for reinforcement learning with Process Advantage Verifiers (PAV).

    Drop-in for [`~trl.GRPOTrainer`]: the advantage of a token is TRL's outcome advantage plus `alpha` times the
    progress its step makes under a prover. Source: [PAV](https://huggingface.co/papers/2410.08146), eq. 2 and 5.

    Overrides `add_process_advantages`, `process_settings`, `train` and `save_model` of [`ProcessGRPOTrainer`].

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
            `log_metric`, `log_extra` and, where there are any, `environments`, as to TRL's reward functions; to one
            that names a parameter `transcript`, a list of [`TranscriptSegment`] per completion.
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
        args=PAVConfig(output_dir="out", initial_value=0.5),
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
        "citation": dedent("""\
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
        config = promote_config(args, PAVConfig, model, self._name)
        process_reward = load_process_reward(process_reward)
        check_process_reward(process_reward, **config.scoring())
        super().__init__(model, reward_funcs, config, *positional, step_splitter=step_splitter, **kwargs)
        self.set_up_process_reward(process_reward, config)

    def process_settings(self) -> dict[str, Any]:
        own = ["alpha", "alpha_schedule", "progress_scale", "credit", "process_baseline", "best_of_k"]
        settings = {name: getattr(self.args, name) for name in (*own, "equal_outcomes", "unscorable_outcomes")}
        prover = getattr(getattr(self.process_reward, "settings", None), "prover", None)
        return settings | {"prover": prover} | super().process_settings()
