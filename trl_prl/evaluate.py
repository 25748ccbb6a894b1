"""`trl-prl evaluate`: how often models are right, with intervals, side by side.

trl-prl evaluate --models base=my-org/base trained=out/checkpoint-100 --dataset test.jsonl --n 16 --output-dir results
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from trl_prl.command_options import add_config_arguments, make_config, open_reward, quiet_libraries
from trl_prl.evaluate_config import EvaluateConfig
from trl_prl.evaluation_job import EvaluationProgress, evaluate
from trl_prl.evaluation_output import comparison_table, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one option per field of [`EvaluateConfig`]."""
    add_config_arguments(parser, EvaluateConfig)


def run(args: argparse.Namespace) -> int:
    """Evaluate, or go on with what was begun in the folder."""
    config = make_config(args, EvaluateConfig)
    if config.plot != "none":
        # What is missing for the figure is said before the work, not after it.
        from trl_prl.plots import new_figure

        new_figure(1)
    quiet_libraries()
    with open_reward(config, config.num_checkers) as reward, _Bar() as bar:
        path = evaluate(config, reward, on_progress=bar.update)
    if path is None:
        print(f"This process's share is done. {config.output_dir} is complete once the others are.")
        return 0
    _print(json.loads(path.read_text(encoding="utf-8")))
    print(f"Results: {path}, with rows per problem next to it")
    return 0


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for header, lines in (table(results), comparison_table(results)):
        if lines:
            shown = Table(*header)
            for line in lines:
                shown.add_row(*(cell.replace("[", r"\[") for cell in line))
            console.print(shown)


class _Bar:
    """Progress on the terminal: problems of the model at hand, and its accuracy so far."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        note = TextColumn("{task.fields[note]}")
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeRemainingColumn(), note
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, progress: EvaluationProgress) -> None:
        """Show where the job stands."""
        if progress.name not in self.tasks:
            self.tasks[progress.name] = self.bar.add_task(progress.name, total=progress.num_total, note="")
        note = "" if not progress.num_counted else f"{100 * progress.num_correct / progress.num_counted:.1f} % right"
        if progress.num_left_out:
            note += f", {progress.num_left_out} samples not counted"
        self.bar.update(self.tasks[progress.name], completed=progress.num_done, note=note)
