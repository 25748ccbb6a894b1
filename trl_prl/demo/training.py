"""What the small experiments of `trl-prl quickstart` and of the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback


OnStep = Callable[[int, dict[str, float]], None]

# Optimizer steps over which accuracies are averaged before they are compared with a threshold.
WINDOW = 5


class OnLog(TrainerCallback):
    """Hands the metrics of every log entry that has a certain one to a function `(optimizer_step, metrics)`."""

    def __init__(self, on_step: OnStep, metric: str) -> None:
        self.on_step, self.metric = on_step, metric

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and self.metric in logs:
            self.on_step(state.global_step, logs)


def cpu_fields(output_dir: str) -> dict[str, Any]:
    """Arguments of a small quiet run: on a GPU if there is one, else on the CPU."""
    return {
        "output_dir": output_dir,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def train_quietly(trainer: Any, on_step: OnStep | None, metric: str = "reward") -> list[dict[str, float]]:
    """Train without printing every log entry, and return those that have a metric."""
    trainer.remove_callback(PrinterCallback)
    if on_step is not None:
        trainer.add_callback(OnLog(on_step, metric))
    trainer.train()
    return [entry for entry in trainer.state.log_history if metric in entry]


def steps_to_accuracy(accuracies: Sequence[float], threshold: float, window: int = WINDOW) -> int | None:
    """Optimizer steps until the accuracy, averaged over the last `window` of them, reaches a threshold.

    Returns:
        `int`, *optional*: The number of optimizer steps, `None` if it is never reached.
    """
    for end in range(window, len(accuracies) + 1):
        if sum(accuracies[end - window : end]) / window >= threshold:
            return end
    return None
