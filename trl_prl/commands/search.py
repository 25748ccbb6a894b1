"""`trl-prl search`: answers of a data set of problems by search at test time, and accuracy against compute.

trl-prl search --config search.yaml --method beam --n 4 8 16 --output_dir searched
"""

from __future__ import annotations

import json
import sys
from typing import Any

from trl_prl.jobs.progress import Progress, ProgressBar, token_line, warn_of_unfinished
from trl_prl.jobs.ray_engine import make_engine
from trl_prl.search.config import SearchConfig


Options = SearchConfig


def run(options: SearchConfig) -> int:
    """Search, or go on with what was begun in the folder."""
    from trl_prl.jobs.options import quiet_libraries
    from trl_prl.report.plots import new_figure
    from trl_prl.search.job import run_search
    from trl_prl.storage.row_sources import load_rows

    if options.plot != "none":
        # What is missing for the figure is said before the work, not after it.
        new_figure(1)
    quiet_libraries()
    dataset = load_rows(options.dataset, options.dataset_config, options.dataset_split)
    with ProgressBar(lambda progress: accuracy_line(progress, max(options.n))) as bar:
        path = run_search(options, dataset, engine=make_engine(options), on_progress=bar.update)
    if path is None:
        print(f"This process's share is done. {options.output_dir} is complete once the others are.")
        return 0
    results = json.loads(path.read_text(encoding="utf-8"))
    _print(results)
    for point in results["curve"]:
        warn_of_unfinished(
            point["num_unanswered"],
            point["num_problems"],
            f"problems at n={point['n']} have no finished solution and count as wrong",
            options.max_completion_length,
        )
    scored, unscored = (sum(point[name] for point in results["curve"]) for name in ("num_scored", "num_unscored"))
    if unscored:
        print(
            f"{unscored} of {scored} texts have no usable score (None, NaN, or beyond the longest length) and rank "
            "last. A process reward whose weights are NaN scores none.",
            file=sys.stderr,
        )
    print(f"Results: {path}, with rows per problem next to it")
    return 0


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from trl_prl.search.output import table

    header, lines = table(results)
    shown = Table(
        *header, title=f"{results['method']}, {results['num_problems']} problems; tokens and seconds per problem"
    )
    for line in lines:
        shown.add_row(*line)
    Console().print(shown)


def accuracy_line(progress: Progress, largest_n: int) -> str:
    """Accuracy so far at the largest n, and tokens, of this run."""
    parts = [token_line(progress)]
    if number := progress.counts.get("num_checked"):
        parts.insert(0, f"{100 * progress.counts['num_correct'] / number:.1f} % right at n={largest_n}")
    return ", ".join(filter(None, parts))
