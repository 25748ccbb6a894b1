"""The hooks between TRL's GRPO and process rewards, as a mixin, and the trainer that the others are built on.

Every use of a private name of TRL is here, in `prl_trainer.py` or in `pav_trainer.py`, and has a line in
`docs/trl_compatibility.md`.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig, GRPOTrainer

from trl_prl.credit.step_tensors import action_mask, sequence_ratio_per_token, suffix_sums
from trl_prl.prompts.chat import warn_of_plain_text
from trl_prl.report.run_recorder import RunRecorder, run_manifest
from trl_prl.steps.split import SplitBatch, get_splitter, split_completions
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import StepSplitter

from .hacking_radar import HackingRadar, outcome_metric
from .metrics import CompletionsTable, count_repeated_steps, process_metric_sums, process_metrics
from .setup import (
    check_advantages,
    check_loss_type,
    check_outcomes,
    check_weights,
    promote_config,
    warn_of_too_few_prompts,
    write_card,
)


logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Trainer = GRPOTrainer
else:
    _Trainer = object


class ProcessRewardHooks(_Trainer):
    """Mixin over [`~trl.GRPOTrainer`] or a subclass of it: splits completions into steps and replaces the advantages.

    Overrides `_generate_and_score_completions`, `_calculate_rewards`, `_compute_loss` and
    `_get_per_token_logps_and_entropies`, and of what is public `log` and `save_model`, each only around `super()`;
    everything else is inherited unchanged. Subclasses say what a step earns in
    [`~ProcessRewardHooks.add_process_advantages`] (right after the rollout) or in
    [`~ProcessRewardHooks.on_loss_logps`] (once the loss has the policy's log-probs).
    """

    step_splitter: StepSplitter
    token_pieces: TokenPieces
    # Whether the KL term stays in the loss, as in GRPO.
    kl_in_loss: bool = True
    # Where things come from, for record and card: the process reward; of a script its `dataset` and its `prompts`, a
    # `PromptFormat`.
    sources: dict[str, Any]
    # What the advantages come from, for messages.
    process_source: str = "process rewards"

    recorder: RunRecorder | None = None
    hacking_radar: HackingRadar | None = None
    completions_table: CompletionsTable
    outcomes: torch.Tensor
    # Of the rollout at hand and this process, as reward functions get them: text or messages, those of tools included.
    completions: list[Any]
    prompts: list[Any]
    _loss_inputs: dict[str, Any] | None = None
    _loss_beta: float = 0.0
    _rollout_step_rewards: list[list[float]] | None = None

    def set_up_steps(self, step_splitter: StepSplitter) -> None:
        """Prepare splitting by a splitter.

        Raises:
            `ValueError`: if the loss type is not known to use per-token advantages.
        """
        check_loss_type(self.loss_type)
        warn_of_too_few_prompts(self.args, self.train_dataset)
        self.step_splitter = step_splitter
        self.token_pieces = TokenPieces(self.processing_class)
        self.completions_table = CompletionsTable(self._logs)
        self.sources = {}

    def set_up_recording(self, settings: Any) -> None:
        """Watch the run for reward hacking, and record it next to its checkpoints, if the settings say so.

        Args:
            settings ([`ProcessArguments`] or [`~trl.GRPOConfig`]):
                May have the fields `radar_window`, `record_run` and `record_completions` (by default 16).
        """
        window = getattr(settings, "radar_window", 0)
        self.hacking_radar = self.build_radar(window) if window else None
        if not getattr(settings, "record_run", True):
            return
        # A stock trainer with a callback keeps the name of its own method.
        method = self._name if isinstance(self, ProcessGRPOTrainer) else f"{self._name} + process rewards"
        config = {**self.args.to_dict(), **(dataclasses.asdict(settings) if settings is not self.args else {})}
        model = getattr(self.model.config, "_name_or_path", "")  # type: ignore[union-attr]
        self.recorder = RunRecorder(
            str(self.args.output_dir),
            run_manifest(method, model, config, self.reward_func_names) | {"sources": self.sources},
            getattr(settings, "record_completions", 16),
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.add_callback(self.recorder)

    def add_process_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], split: SplitBatch) -> None:
        """Called after every rollout; may replace `output["advantages"]` of shape (B,) by one of shape (B, T)."""

    def build_radar(self, window: int) -> HackingRadar:
        """The reward-hacking radar of this kind of process reward."""
        return HackingRadar(window, outcome=outcome_metric(self))

    def on_loss_logps(self, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Called in every loss with the policy's log-probs of shape (B, T), detached; may replace `inputs` entries."""
        ref_logps = inputs.get("ref_per_token_logps")
        if ref_logps is not None:
            mask = inputs["step_ids"] >= 0
            to_go = suffix_sums(logps - ref_logps, mask)
            self.log_ratio("process/kl_to_go", to_go.masked_fill(~mask, 0.0).sum(), mask.sum())
            self.log_ratio("process/kl_completion", to_go[:, 0].sum(), mask.any(1).sum())

    # ---- hooks ----

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, *args: Any, **kwargs: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, *args, **kwargs)
        check_outcomes(rewards, self.reward_func_names)
        self.outcomes, self.completions = rewards, completions
        # Those of TRL have what environments say; else they are as in the data set, without placeholders of images.
        self.prompts = prompts if self.environments else [row["prompt"] for row in inputs]
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        warn_of_plain_text(getattr(self.processing_class, "tokenizer", self.processing_class), inputs[0].get("prompt"))
        output = super()._generate_and_score_completions(inputs)
        mask = action_mask(output).bool()
        split = split_completions(self.step_splitter, self.token_pieces, output["completion_ids"], mask)
        output["step_ids"] = split.step_ids.to(output["completion_ids"].device)
        self.log_ratio("process/repeated_steps", count_repeated_steps(split.steps), sum(map(len, split.steps)))
        self._rollout_step_rewards = None
        self.add_process_advantages(inputs, output, split)
        if self.recorder is not None:
            self.recorder.add_rollout(
                self._mode, self.prompts, output, split, self._rollout_step_rewards, self._logs, self.eos_token_ids
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
            check_advantages(self._loss_inputs["advantages"], self.process_source)
            if self.recorder is not None:
                self.recorder.add_loss(self._mode, logps, self._loss_inputs)
            if self._loss_inputs["advantages"].dim() == 2 and self.importance_sampling_level == "sequence":
                self._loss_inputs["old_per_token_logps"] = sequence_ratio_per_token(logps, self._loss_inputs)
                self.importance_sampling_level = "token"
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.hacking_radar is not None:
            # The averages over processes that were logged: every process finds the same, one says it.
            messages = self.hacking_radar.look(self.state.log_history)
            if self.accelerator.is_main_process:
                for message in messages:
                    logger.warning("Reward-hacking radar: %s", message)
                    if self.recorder is not None:
                        self.recorder.writer.write_warning(self.state.global_step, message)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        check_weights(self.model, self.accelerator)
        super().save_model(*args, **kwargs)

    def outcome_rewards(self) -> torch.Tensor:
        """Weighted outcome rewards of the rollout at hand of all processes, of shape (N,), NaN where unscorable."""
        total = (self.outcomes * self.reward_weights.to(self.outcomes.device)).nansum(1)
        return total.masked_fill(self.outcomes.isnan().all(1), torch.nan)

    @property
    def group_size(self) -> int:
        """Completions per prompt of the rollout at hand."""
        in_eval = self._mode == "eval" and self.num_generations_eval
        return int(in_eval or self.num_generations or 1)

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
    ) -> dict[str, float]:
        """Log and return what [`process_metric_sums`] finds over all processes, and `scalars` equal on all."""
        sums = process_metric_sums(step_rewards, process_advantages, outcome_advantages, step_ids)
        totals = self.accelerator.reduce(torch.stack([*sums.values()]), reduction="sum")
        metrics = process_metrics(dict(zip(sums, totals.tolist(), strict=True)))
        metrics.update({f"process/{name}": value for name, value in scalars.items()})
        for name, value in metrics.items():
            self._metrics[self._mode][name].append(value)
        return metrics

    def log_ratio(self, name: str, numerator: torch.Tensor | float, denominator: torch.Tensor | float) -> None:
        """Log the sum of `numerator` over all processes divided by that of `denominator`, nothing where that is 0."""
        device = self.accelerator.device
        # One type on all processes: whole numbers on one and fractions on another would not add up.
        sums = torch.stack([torch.as_tensor(n, dtype=torch.float32, device=device) for n in (numerator, denominator)])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        if count:
            self._metrics[self._mode][name].append(total / count)

    def log_steps(self, output: dict[str, Any], split: SplitBatch, step_rewards: list[list[float]] | None) -> None:
        """Add the steps and their rewards to the completions table, if completions are logged.

        Where `step_rewards` are only known in the loss (`None`), the rollout `output` gets the row numbers under which
        [`~ProcessRewardHooks.fill_step_rewards`] finds the rows again after TRL has shuffled them.
        """
        self._rollout_step_rewards = step_rewards
        if not self.log_completions:
            return
        num_rows = len(split.steps)
        rewards = gather_object(step_rewards or [[] for _ in range(num_rows)])
        self.completions_table.extend_steps(gather_object(split.steps), rewards, None if step_rewards else self._mode)
        if step_rewards is None:
            first_row = self.accelerator.process_index * num_rows
            output["row_ids"] = torch.arange(first_row, first_row + num_rows, device=output["step_ids"].device)

    def fill_step_rewards(self, row_ids: torch.Tensor, step_rewards: list[list[float]]) -> None:
        """Enter step rewards that were not known at the rollout, by the row numbers that `log_steps` gave."""
        rows = gather_object(list(zip(row_ids.tolist(), step_rewards, strict=True)))
        self.completions_table.fill(self._mode, rows)


class ProcessGRPOTrainer(ProcessRewardHooks, GRPOTrainer):
    """[`~trl.GRPOTrainer`] whose completions are split into steps.

    The base of [`PRLTrainer`] and [`PAVTrainer`], and of a trainer of your own: override
    [`~ProcessRewardHooks.add_process_advantages`] or [`~ProcessRewardHooks.on_loss_logps`].

    Args:
        step_splitter (`StepSplitter` or `str`, *optional*):
            Where steps end; by default what `args.step_splitter` says.
        *args, **kwargs:
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
        # Looked up before the model is loaded, which may take minutes.
        named = step_splitter or getattr(args, "step_splitter", None) or "newline"
        splitter = get_splitter(named, step_length=getattr(args, "step_length", 256))
        check_loss_type(args.loss_type)
        super().__init__(model, reward_funcs, args, *positional, **kwargs)
        self.set_up_steps(splitter)
        self.set_up_recording(args)

    def process_settings(self) -> dict[str, Any]:
        """What the model card says of this run's process rewards."""
        return {"step splitter": self.step_splitter, **self.sources}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            write_card(self)
