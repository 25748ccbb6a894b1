"""The hooks between TRL's GRPO and process rewards, as a mixin, and the trainer that the others are built on.

Every use of a private name of TRL is here, in `prl_trainer.py` or in `pav_trainer.py`, and has a line in
`docs/trl_compatibility.md`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig, GRPOTrainer

from .process_metrics import (
    LoggedRewards,
    LoggedSteps,
    count_repeated_steps,
    divide,
    process_metric_sums,
    process_metrics,
)
from .run_recorder import RunRecorder, run_manifest
from .step_tensors import suffix_sums
from .steps import SplitBatch, get_splitter, split_completions
from .token_pieces import TokenPieces
from .trainer_setup import check_loss_type, promote_config
from .types import StepSplitter


if TYPE_CHECKING:
    _Trainer = GRPOTrainer
else:
    _Trainer = object


class ProcessRewardHooks(_Trainer):
    """Mixin over [`~trl.GRPOTrainer`] or a subclass of it: splits completions into steps and replaces the advantages.

    Overrides `_generate_and_score_completions`, `_compute_loss` and `_get_per_token_logps_and_entropies`, each only
    around `super()`; everything else is inherited unchanged. Subclasses say what a step earns in
    [`~ProcessRewardHooks.add_process_advantages`] (right after the rollout) or in
    [`~ProcessRewardHooks.on_loss_logps`] (once the loss has the policy's log-probs).
    """

    step_splitter: StepSplitter
    token_pieces: TokenPieces
    # Whether the KL term stays in the loss, as in GRPO.
    kl_in_loss = True

    _loss_inputs: dict[str, Any] | None = None
    _loss_beta: float = 0.0
    _step_reward_rows: dict[str, list[LoggedRewards]]
    _columns: set[str]
    recorder: RunRecorder | None = None
    _rollout_step_rewards: list[list[float]] | None = None

    def set_up_steps(self, step_splitter: StepSplitter | str, step_length: int) -> None:
        """Prepare splitting.

        Args:
            step_splitter (`StepSplitter` or `str`):
                The splitter, or its name as in [`get_splitter`].
            step_length (`int`):
                Tokens per step of the `"fixed"` splitter.

        Raises:
            `ValueError`: if the loss type is not known to use per-token advantages, or no splitter has that name.
        """
        check_loss_type(self.loss_type)
        self.step_splitter = get_splitter(step_splitter, step_length=step_length)
        self.token_pieces = TokenPieces(self.processing_class)
        self._step_reward_rows = {"train": [], "eval": []}
        self._columns = set()

    def set_up_recording(self, settings: Any) -> None:
        """Record the run next to its checkpoints, if the settings say so.

        Args:
            settings ([`PRLConfig`] or [`PAVArguments`] or [`~trl.GRPOConfig`]):
                May have the fields `record_run` and `record_completions`; by default 16 completions are recorded.
        """
        if not getattr(settings, "record_run", True):
            return
        # A stock trainer with a callback keeps the name of its own method.
        method = self._name if isinstance(self, ProcessGRPOTrainer) else f"{self._name} + process rewards"
        config = {**self.args.to_dict(), **(dataclasses.asdict(settings) if settings is not self.args else {})}
        model = getattr(self.model.config, "_name_or_path", "")  # type: ignore[union-attr]
        self.recorder = RunRecorder(
            str(self.args.output_dir),
            run_manifest(method, model, config, self.reward_func_names),
            getattr(settings, "record_completions", 16),
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.add_callback(self.recorder)

    def add_process_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> None:
        """Called after every rollout; may replace `output["advantages"]` of shape (B,) by one of shape (B, T)."""

    def on_loss_logps(self, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Called in every loss with the policy's log-probs of shape (B, T), detached; may replace `inputs` entries."""
        ref_logps = inputs.get("ref_per_token_logps")
        if ref_logps is not None:
            mask = inputs["step_ids"] >= 0
            self.log_token_mean("process/kl_to_go", suffix_sums(logps - ref_logps, mask), mask)

    # ---- hooks ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        split = split_completions(
            self.step_splitter, self.token_pieces, output["completion_ids"], action_mask(output).bool()
        )
        output["step_ids"] = split.step_ids.to(output["completion_ids"].device)
        self.log_ratio("process/repeated_steps", count_repeated_steps(split.steps), sum(map(len, split.steps)))
        self._rollout_step_rewards = None
        self.add_process_advantages(inputs, output, split)
        if self.recorder is not None:
            prompts = [row.get("prompt") for row in inputs]
            self.recorder.add_rollout(
                self._mode, prompts, output, split, self._rollout_step_rewards, self._logs, self.eos_token_ids
            )
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        # A copy, because with several iterations per rollout TRL passes the same dict again.
        self._loss_inputs = dict(inputs)
        self._loss_beta, level = self.beta, self.importance_sampling_level
        if not self.kl_in_loss:
            self.beta = 0.0
        try:
            return super()._compute_loss(model, self._loss_inputs)
        finally:
            self._loss_inputs = None
            self.beta, self.importance_sampling_level = self._loss_beta, level

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is not None:
            # TRL reads advantages and old log-probs only after this forward of the loss, so they can still be set.
            logps = result[0].detach()
            self.on_loss_logps(logps, self._loss_inputs)
            if self.recorder is not None:
                self.recorder.add_loss(self._mode, logps, self._loss_inputs)
            if self._loss_inputs["advantages"].dim() == 2 and self.importance_sampling_level == "sequence":
                self._use_sequence_ratio_per_token(logps, self._loss_inputs)
        return result

    def _use_sequence_ratio_per_token(self, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Give the sequence-level ratio a gradient per token.

        TRL's sequence level differentiates one ratio per completion, which would spread every token's advantage evenly
        over the completion. GSPO-token (https://huggingface.co/papers/2507.18071, eq. 13) has the same ratio as a
        number and the token's own gradient: `sg[s] * pi / sg[pi]`. With `old = sg[log pi] - log s`, TRL's token level
        computes exactly that.
        """
        mask = action_mask(inputs)
        old_logps = inputs.get("old_per_token_logps")
        log_ratio = torch.zeros_like(logps) if old_logps is None else logps - old_logps
        sequence_log_ratio = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
        inputs["old_per_token_logps"] = logps - sequence_log_ratio
        self.importance_sampling_level = "token"

    # ---- metrics and tables ----

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"  # type: ignore[union-attr]

    def log_process_metrics(
        self,
        step_rewards: torch.Tensor,
        process_advantages: torch.Tensor,
        outcome_advantages: torch.Tensor,
        step_ids: torch.Tensor,
        **scalars: float,
    ) -> None:
        """Log the `process/` metrics over all processes.

        Args:
            step_rewards (`torch.Tensor`):
                Process reward of each token's step of shape (B, T), NaN where unscorable.
            process_advantages (`torch.Tensor`):
                Process part of the token advantages of shape (B, T).
            outcome_advantages (`torch.Tensor`):
                Outcome advantages of shape (B,).
            step_ids (`torch.Tensor`):
                Step of each token of shape (B, T), -1 off the action mask.
            **scalars (`float`):
                Further values that are the same on all processes, logged as `process/<name>`.
        """
        sums = process_metric_sums(step_rewards, process_advantages, outcome_advantages, step_ids)
        metrics = process_metrics(self.accelerator.reduce(sums, reduction="sum"))
        metrics.update({f"process/{name}": value for name, value in scalars.items()})
        for name, value in metrics.items():
            self._metrics[self._mode][name].append(value)

    def log_token_mean(self, name: str, values: torch.Tensor, mask: torch.Tensor) -> None:
        """Log the mean of `values` of shape (B, T) over the tokens of a boolean `mask`, on all processes."""
        self.log_ratio(name, values.masked_fill(~mask, 0.0).sum(), mask.sum())

    def log_ratio(self, name: str, numerator: torch.Tensor | float, denominator: torch.Tensor | float) -> None:
        """Log the sum of `numerator` over all processes divided by that of `denominator`, NaN where that is 0."""
        device = self.accelerator.device
        # One type on all processes: whole numbers on one and fractions on another would not add up.
        sums = torch.stack([torch.as_tensor(n, dtype=torch.float32, device=device) for n in (numerator, denominator)])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics[self._mode][name].append(divide(total, count))

    def log_user_metrics(self, metrics: dict[str, list[float]]) -> None:
        """Log what a process reward passed to `log_metric`, averaged over processes."""
        for name in sorted(set(gather_object(list(metrics)))):
            values = metrics.get(name, [])
            self.log_ratio(name, sum(values), len(values))

    def last_outcomes(self, num_rows: int) -> list[float]:
        """Results of the first reward function for this process's completions of the rollout at hand, NaN for none."""
        table: Any = self._logs["rewards"]
        results = list(table[self.reward_func_names[0]])
        # TRL has just added those of all processes, in their order.
        first = len(results) - num_rows * (self.accelerator.num_processes - self.accelerator.process_index)
        return results[first : first + num_rows]

    def ended_on_their_own(self, output: dict[str, Any]) -> list[bool]:
        """Whether the policy's last token ends a completion; False for one without tokens."""
        ends = set(self.eos_token_ids)
        rows = zip(output["completion_ids"].tolist(), (output["step_ids"] >= 0).tolist(), strict=True)
        tokens = ([token for token, is_action in zip(*row, strict=True) if is_action] for row in rows)
        return [bool(row) and row[-1] in ends for row in tokens]

    def log_columns(self, columns: dict[str, list[Any]], num_rows: int) -> None:
        """Add columns to the completions table, one entry per completion of this process."""
        for name in sorted(set(gather_object(list(columns)))):
            self._extend_column(name, gather_object(columns.get(name, [None] * num_rows)))

    def _extend_column(self, name: str, entries: list[Any]) -> None:
        """Add entries for the rows that TRL has just added to the completions table."""
        table: Any = self._logs["extra"]
        column = table[name]
        # Rows from before there was such a column, such as those of an evaluation before a callback was attached.
        num_missing = len(self._logs["prompt"]) - len(entries) - len(column)
        column.extend([None] * num_missing + entries)
        self._columns.add(name)

    def forget_columns(self) -> None:
        """Take what was added to the completions table out of it, as nobody goes on filling it."""
        table: Any = self._logs["extra"]
        for name in self._columns:
            table.pop(name, None)

    def log_steps(self, output: dict[str, Any], split: SplitBatch, step_rewards: list[list[float]] | None) -> None:
        """Add the steps and their rewards to the completions table, if completions are logged.

        Args:
            output (`dict`):
                What the rollout returned. If the rewards are not known yet, it gets the row numbers under which
                [`~ProcessRewardHooks.fill_step_rewards`] finds the rows again after TRL has shuffled them.
            split (`SplitBatch`):
                The steps.
            step_rewards (`list[list[float]]`, *optional*):
                One number per step, or `None` if they are only known in the loss.
        """
        self._rollout_step_rewards = step_rewards
        if not self.log_completions:
            return
        num_rows = len(split.steps)
        # An evaluation may come between a rollout and its losses, so each mode has rows of its own. The table holds
        # these very lists; where rewards are not known yet, they are filled while the rows pass through the loss.
        steps = gather_object(split.steps)
        rewards = [LoggedRewards(row) for row in gather_object(step_rewards or [[] for _ in range(num_rows)])]
        self._extend_column("steps", [LoggedSteps(*pair) for pair in zip(steps, rewards, strict=True)])
        self._extend_column("step_rewards", rewards)
        if step_rewards is None:
            self._step_reward_rows[self._mode] = rewards
            first_row = self.accelerator.process_index * num_rows
            output["row_ids"] = torch.arange(first_row, first_row + num_rows, device=output["step_ids"].device)

    def fill_step_rewards(self, row_ids: torch.Tensor, step_rewards: list[list[float]]) -> None:
        """Enter step rewards that were not known at the rollout into the completions table.

        Args:
            row_ids (`torch.Tensor`):
                Row numbers of shape (B,).
            step_rewards (`list[list[float]]`):
                One number per step.
        """
        for row, rewards in gather_object(list(zip(row_ids.tolist(), step_rewards, strict=True))):
            self._step_reward_rows[self._mode][row][:] = rewards


def add_reward_column(trainer: Any, name: str) -> None:
    """Add the column of one more reward function to the completions table, with NaN for the rows that are there."""
    trainer._logs["rewards"][name].extend([math.nan] * len(trainer._logs["prompt"]))


def remove_reward_column(trainer: Any, name: str) -> None:
    """Take the column of a reward function out of the completions table, as nobody goes on filling it."""
    trainer._logs["rewards"].pop(name, None)


def action_mask(batch: dict[str, Any]) -> torch.Tensor:
    """Tokens the policy chose, of shape (B, T): `completion_mask` without tool output, as the loss masks them."""
    mask = batch["completion_mask"]
    return mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]


class ProcessGRPOTrainer(ProcessRewardHooks, GRPOTrainer):
    """[`~trl.GRPOTrainer`] whose completions are split into steps.

    The base of [`PRLTrainer`] and [`PAVTrainer`], and of a trainer of your own: override
    [`~ProcessRewardHooks.add_process_advantages`] or [`~ProcessRewardHooks.on_loss_logps`]. The constructor takes what
    `GRPOTrainer` takes, and a splitter.

    Args:
        *args:
            As for [`~trl.GRPOTrainer`].
        step_splitter (`StepSplitter` or `str`, *optional*):
            Where steps end; by default what `args.step_splitter` says.
        **kwargs:
            As for [`~trl.GRPOTrainer`].
    """

    config_class: type[GRPOConfig] = GRPOConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *positional: Any,
        step_splitter: StepSplitter | str | None = None,
        **kwargs: Any,
    ) -> None:
        args = promote_config(args, self.config_class, model, suffix=self._name)
        step_length = getattr(args, "step_length", 256)
        # Looked up before the model is loaded, which may take minutes.
        splitter = get_splitter(
            step_splitter or getattr(args, "step_splitter", None) or "newline", step_length=step_length
        )
        check_loss_type(args.loss_type)
        super().__init__(model, reward_funcs, args, *positional, **kwargs)
        self.set_up_steps(splitter, step_length)
        self.set_up_recording(args)
