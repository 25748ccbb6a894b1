"""Records a training run while it runs: scalars at every logging step, and a few completions with their steps."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trl_prl.credit.step_tensors import step_end_mask, suffix_sums
from trl_prl.steps.split import SplitBatch

from .files import as_text
from .run_files import RunWriter


PACKAGES = ("trl-prl", "trl", "transformers", "torch", "accelerate", "datasets", "peft", "vllm")


@dataclass(eq=False)
class RunRecorder(TrainerCallback):
    """Callback that appends what the trainer logs to the record of the run.

    It draws no random number, gathers nothing and changes nothing in the trainer. Of each rollout that is followed by
    a log entry, and of each evaluation, the first `max_completions` completions are kept: whole groups, as the
    completions of a group are neighbours.

    Args:
        output_dir (`str`):
            Folder of the run.
        manifest (`dict`):
            What is known of the run before it begins: method, model, configuration, seed.
        max_completions (`int`):
            Completions of all processes together to keep per logging step; 0 keeps none.
        process_index (`int`, *optional*, defaults to `0`):
            Number of this process.
        num_processes (`int`, *optional*, defaults to `1`):
            Number of processes.
    """

    output_dir: str
    manifest: dict[str, Any]
    max_completions: int
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        self.writer = RunWriter(Path(self.output_dir), self.process_index)
        self._has_started = False
        # Rows of the current rollout by the id the loss finds them under, and whether the loss has seen them.
        self._open: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "eval": {}}
        self._ready: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
        self._num_seen = {"train": 0, "eval": 0}
        self._next_id = 0

    # ---- what the trainer calls ----

    def add_rollout(
        self,
        mode: str,
        prompts: Sequence[Any],
        output: dict[str, Any],
        split: SplitBatch,
        step_rewards: list[list[float]] | None,
        table: Mapping[str, Any],
        eos_token_ids: Sequence[int],
    ) -> None:
        """Keep completions of a rollout until the loss has seen them.

        Args:
            mode (`str`):
                `"train"`, where a rollout replaces the one before, or `"eval"`, where they add up to the next entry.
            prompts (`Sequence`):
                Prompt of each completion of this process.
            output (`dict`):
                What the rollout returned; gets `record_ids` of shape (B,), by which the loss finds the rows after TRL
                has shuffled them.
            split (`SplitBatch`):
                The steps.
            step_rewards (`list[list[float]]`, *optional*):
                Process reward of each step, where it is known already.
            table (`Mapping`):
                TRL's completions table. Its last rows are those of this rollout, in the order of the processes.
            eos_token_ids (`Sequence[int]`):
                Tokens that end a completion.
        """
        num_rows = len(split.steps)
        ids = range(self._next_id, self._next_id + num_rows)
        self._next_id = ids.stop
        output["record_ids"] = torch.arange(ids.start, ids.stop, device=output["step_ids"].device)
        if mode == "train":
            self._open[mode], self._ready[mode], self._num_seen[mode] = {}, [], 0
        first_seen = self._num_seen[mode] + self.process_index * num_rows
        self._num_seen[mode] += num_rows * self.num_processes
        first_in_table = len(table["prompt"]) + num_rows * (self.process_index - self.num_processes)
        for index in range(min(num_rows, self.max_completions - first_seen)):
            place = first_in_table + index
            if place < 0:  # TRL's table is as long as a training batch, and a batch of an evaluation may be longer.
                continue
            row = rollout_row(index, prompts[index], table["completion"][place], output, split, eos_token_ids)
            row["step_rewards"] = None if step_rewards is None else rounded(step_rewards[index])
            row["rewards"] = {name: values[place] for name, values in table["rewards"].items()}
            row["outcome_advantage"] = table["advantages"][place]
            self._open[mode][ids[index]] = row

    def add_loss(self, mode: str, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Add what only the loss knows: the advantages in force and the KL to the reference that is still to come.

        Args:
            mode (`str`):
                `"train"` or `"eval"`.
            logps (`torch.Tensor`):
                Log-probs of the policy of shape (B, T).
            inputs (`dict`):
                The inputs of the loss, with `record_ids` of shape (B,).
        """
        ids = inputs["record_ids"].tolist()
        if not any(i in self._open[mode] for i in ids):
            return
        step_ids, advantages = inputs["step_ids"], inputs["advantages"]
        ends = step_end_mask(step_ids)
        has_process_part = advantages.dim() == 2
        if not has_process_part:
            advantages = advantages.unsqueeze(1).expand(step_ids.shape)
        numbers = {"advantages": advantages}
        if inputs.get("ref_per_token_logps") is not None:
            numbers["kl_to_go"] = suffix_sums(logps - inputs["ref_per_token_logps"], step_ids >= 0)
        for index, i in enumerate(ids):
            row = self._open[mode].pop(i, None)
            if row is not None:
                row.update({name: rounded(values[index][ends[index]].tolist()) for name, values in numbers.items()})
                if row["step_rewards"] is None and has_process_part:
                    outcome = row["outcome_advantage"]
                    row["step_rewards"] = [
                        None if value is None else round(value - outcome, 6) for value in row["advantages"]
                    ]
                self._ready[mode].append(row)

    # ---- events ----

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not `on_train_begin`: that event is over when a callback attaches the recorder in it.
        if not self._has_started:
            self._has_started = True
            self.writer.start(self.manifest, state.global_step, datetime.now(UTC).isoformat(timespec="seconds"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._has_started = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        mode = "eval" if any(name.startswith("eval_") for name in logs or {}) else "train"
        metrics = {name.removeprefix("eval_"): value for name, value in (logs or {}).items()}
        self.writer.write_metrics(mode, state.global_step, metrics)
        rows, self._ready[mode] = self._ready[mode], []
        if mode == "eval":
            self._open[mode], self._num_seen[mode] = {}, 0
        if rows:
            found = {"optimizer_step": state.global_step, "split": mode}
            self.writer.write_completions([found | row for row in rows])


def rollout_row(
    index: int,
    prompt: Any,
    completion: Any,
    output: dict[str, Any],
    split: SplitBatch,
    eos_token_ids: Sequence[int],
) -> dict[str, Any]:
    """What is known of a completion right after the rollout.

    Args:
        index (`int`):
            Row of the completion in `output` and `split`.
        prompt (`Any`):
            Its prompt: text or messages.
        completion (`Any`):
            Its text or messages, for completions without steps.
        output (`dict`):
            What the rollout returned.
        split (`SplitBatch`):
            The steps.
        eos_token_ids (`Sequence[int]`):
            Tokens that end a completion.

    Returns:
        `dict`: The row.
    """
    text = as_text(prompt)
    # Of the policy: what a tool or an environment said ends nothing.
    tokens = output["completion_ids"][index][output["step_ids"][index] >= 0]
    row = {
        "prompt": text,
        "prompt_id": hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12],
        "steps": list(split.steps[index]),
        "num_tokens": len(tokens),
        "finished": len(tokens) > 0 and int(tokens[-1]) in eos_token_ids,
    }
    if not row["steps"]:
        # All masked, as TRL does to truncated completions when asked to.
        row["completion"] = as_text(completion)
    return row


def rounded(values: Sequence[float]) -> list[float | None]:
    """Numbers with six digits, `None` for what is not a number."""
    return [round(value, 6) if math.isfinite(value) else None for value in values]


def run_manifest(method: str, model: str, config: dict[str, Any], reward_funcs: Sequence[str]) -> dict[str, Any]:
    """What the manifest says of a run.

    Args:
        method (`str`):
            Name of the method: `"PRL"`, `"PAV"`.
        model (`str`):
            Name or path of the policy.
        config (`dict`):
            All settings, tokens left out.
        reward_funcs (`Sequence[str]`):
            Names of the outcome rewards.

    Returns:
        `dict`: The manifest, without the starts.
    """
    return {
        "method": method,
        "model": model,
        "seed": config.get("seed"),
        "reward_funcs": list(reward_funcs),
        "config": config,
        "versions": {"python": platform.python_version(), **package_versions()},
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages a run depends on, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
