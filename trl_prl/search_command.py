"""`trl-prl search`: answers of a data set of problems by search at test time, and accuracy against compute.

trl-prl search --config search.yaml --method beam --n 4 8 16 --output-dir searched
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from trl_prl.command_options import (
    add_config_arguments,
    load_rows,
    make_config,
    make_generator,
    open_reward,
    quiet_libraries,
)
from trl_prl.search_config import SearchConfig
from trl_prl.search_job import SearchProgress, run_search
from trl_prl.search_output import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one option per field of [`SearchConfig`]."""
    add_config_arguments(parser, SearchConfig)


def run(args: argparse.Namespace) -> int:
    """Search, or go on with what was begun in the folder."""
    config = make_config(args, SearchConfig)
    if config.plot != "none":
        # What is missing for the figure is said before the work, not after it.
        from trl_prl.plots import new_figure

        new_figure(1)
    quiet_libraries()
    from transformers import AutoTokenizer

    dataset = load_rows(config.dataset, config.dataset_config, config.dataset_split)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or config.model)
    with open_reward(config) as reward, _Bar(max(config.n)) as bar:
        path = run_search(
            config, dataset, tokenizer, lambda: make_generator(config, tokenizer), reward, on_progress=bar.update
        )
    if path is None:
        print(f"This process's share is done. {config.output_dir} is complete once the others are.")
        return 0
    _print(json.loads(path.read_text(encoding="utf-8")))
    print(f"Results: {path}, with rows per problem next to it")
    return 0


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    header, lines = table(results)
    shown = Table(
        *header, title=f"{results['method']}, {results['num_problems']} problems; tokens and seconds per problem"
    )
    for line in lines:
        shown.add_row(*line)
    Console().print(shown)


class _Bar:
    """Progress on the terminal: problems, and the accuracy of this run so far."""

    def __init__(self, largest_n: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.largest_n = largest_n
        self.bar = Progress(
            BarColumn(12), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("problems, {task.fields[note]}")
        )
        self.task = self.bar.add_task("problems", total=None, note="")

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, progress: SearchProgress) -> None:
        """Show where the job stands."""
        note = progress_note(progress, self.largest_n)
        self.bar.update(self.task, completed=progress.num_done, total=progress.num_total, note=note)


def progress_note(progress: SearchProgress, largest_n: int) -> str:
    """What is shown next to the bar.

    Args:
        progress ([`SearchProgress`]):
            Where the job stands.
        largest_n (`int`):
            The n that the accuracy is of.

    Returns:
        `str`: Accuracy so far and tokens, of this run.
    """
    if not progress.num_checked:
        return "starting" if progress.num_done < progress.num_total else "done earlier"
    share = 100 * progress.num_correct / progress.num_checked
    return f"{share:.1f} % right at n={largest_n}, {progress.num_tokens / 1e6:.2f} M tokens"
