"""`trl-prl evaluate`: how often models are right, with intervals, side by side.

trl-prl evaluate --models base=my-org/base trained=out/checkpoint-100 --dataset test.jsonl --n 16 --output_dir results
"""

from __future__ import annotations

import json
from typing import Any

from trl_prl.evaluation.config import EvaluateConfig
from trl_prl.jobs.progress import Progress, ProgressBar, token_line, warn_of_unfinished
from trl_prl.jobs.ray_engine import make_engine


Options = EvaluateConfig

_UNFINISHED = {"wrong": "count as wrong", "exclude": "are left out", "check": "are checked as they are"}


def run(options: EvaluateConfig) -> int:
    """Evaluate, or go on with what was begun in the folder."""
    from trl_prl.evaluation.job import evaluate
    from trl_prl.jobs.options import quiet_libraries
    from trl_prl.report.plots import new_figure

    if options.plot != "none":
        # What is missing for the figure is said before the work, not after it.
        new_figure(1)
    quiet_libraries()
    with ProgressBar(accuracy_line) as bar:
        path = evaluate(options, engine=make_engine(options), on_progress=bar.update)
    if path is None:
        print(f"This process's share is done. {options.output_dir} is complete once the others are.")
        return 0
    results = json.loads(path.read_text(encoding="utf-8"))
    _print(results)
    for model in results["models"]:
        warn_of_unfinished(
            model["num_unfinished"],
            model["num_samples"],
            f"samples of {model['name']} reached the limit and {_UNFINISHED[options.unfinished]}",
            None if options.samples else options.max_completion_length,
        )
    print(f"Results: {path}, with rows per problem next to it")
    return 0


def _print(results: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from trl_prl.evaluation.output import tables

    console = Console()
    for table in tables(results):
        shown = Table(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in table.header:
            shown.add_column(escape(name), overflow="fold")
        for line in table.lines:
            shown.add_row(*map(escape, line))
        console.print(shown)


def accuracy_line(progress: Progress) -> str:
    """Accuracy so far, tokens, and samples that do not count, of this run."""
    parts, counts = [token_line(progress)], progress.counts
    if number := counts.get("num_correct", 0) + counts.get("num_wrong", 0):
        parts.insert(0, f"{100 * counts['num_correct'] / number:.1f} % right")
    if left_out := counts.get("num_left_out"):
        parts.append(f"{left_out} samples not counted")
    return ", ".join(filter(None, parts))
