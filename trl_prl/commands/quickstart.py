"""`trl-prl quickstart`: watch a policy learn from process rewards, on a CPU, in a few minutes."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trl_prl.jobs.config import option
from trl_prl.jobs.options import quiet_libraries
from trl_prl.storage.files import write_text

from .report import how_to_open, write_report


# The searches: name in the table, method, what scores, and size. A beam of 4 samples as much as 10 walks.
EXACT = "trl_prl.demo.path_prover:PathProcessReward"
LEARNED = ""  # the shipped verifier, found at run time
SEARCHES: dict[str, tuple[Any, str, int]] = {
    "best of 10, learned verifier": ("best_of_n", LEARNED, 10),
    "beam of 4, learned verifier": ("beam", LEARNED, 4),
    "beam of 4, exact values": ("beam", EXACT, 4),
}
SCORES = {"auroc": "right from wrong steps, AUROC", "spearman": "rank of values, Spearman"}
PLANTED_WORDS = (
    "Base of N: the policy began with N supervised iterations; fewer make success rarer. Effective reward: the "
    "outcome, and the progress of every token by exact values."
)
JUDGED_WORDS = (
    "Steps and prefixes of solutions to held-out problems. The learned verifier ships with the package; it was "
    "trained on rollouts, no exact value among them."
)
SEARCH_WORDS = (
    "Held-out problems. A beam of 4 keeps the best steps; best of 10 judges whole walks at about the same tokens."
)


@dataclass(frozen=True)
class Options:
    """How much to train, and where to write.

    Raises:
        `ValueError`: When a number leaves nothing to run.
    """

    output_dir: str = option("quickstart-out", "folder of plots and results")
    seed: int = option(0, "seed of trainings and searches")
    planted_steps: int = option(100, "optimizer steps of each run of part 1")
    problems: int = option(64, "held-out problems of the verifier's exam and of the searches")

    def kept(self) -> str:
        """What an interruption leaves."""
        return f"What lies in {self.output_dir} is unfinished; the next quickstart begins anew."

    def __post_init__(self) -> None:
        for name in ("planted_steps", "problems"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"--{name} is {number}, which leaves nothing to run. Pass a positive number.")


def run(options: Options) -> int:
    """Run all parts, draw the plots, write the report and print the tables."""
    folder = Path(options.output_dir)
    quiet()
    import torch

    # The models are so small that threads only wait for each other, most of all where something else runs.
    torch.set_num_threads(1)
    console = Console()
    console.print("[bold]trl-prl quickstart[/bold]: process rewards on two small tasks, in about four minutes.")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    for name in ("runs", "searches"):  # of an earlier quickstart
        shutil.rmtree(folder / name, ignore_errors=True)
    with Progress(*columns, console=console) as progress:
        planted = run_planted(progress, options.seed, options.planted_steps, folder / "runs")
        judged = run_judging(progress, options.problems)
        searched = run_searches(progress, options.seed, options.problems, folder / "searches")
    draw(planted, searched, folder)
    results = {"seed": options.seed, "planted": planted, "verifier": judged, "search": searched}
    write_text(folder / "results.json", json.dumps(results, indent=1))
    console.print(planted_table(planted))
    console.print(judged_table(judged))
    console.print(search_table(searched))
    report = folder / "report.html"
    write_report([folder], report, title="trl-prl quickstart")
    console.print(f"Plots and numbers: {folder}/planted.png, search.png, results.json", soft_wrap=True)
    console.print(f"Every sampled step, coloured by its credit. {how_to_open(report)}", soft_wrap=True)
    console.print("\n".join(("", *learned(planted, searched))))
    return 0


def learned(planted: Mapping[str, list[float]], searched: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """What the run has shown, and what it has not, in a sentence each."""
    last = {name: 100 * sum(curve[-5:]) / len(curve[-5:]) for name, curve in planted.items()}
    rare = [share for name, share in last.items() if name.endswith("base of 10")]
    best, beam, exact = (100 * searched[name]["accuracy"]["value"] for name in SEARCHES)
    return (
        f"Learned: where success is rare, credit per step reached {rare[0]:.0f} % right, and the outcome alone "
        f"{rare[1]:.0f} %; on far paths a verifier learned from rollouts finds {beam:.0f} % step by step and "
        f"{best:.0f} % as a judge of whole walks, where exact values find {exact:.0f} %.",
        "Not learned: whether that holds beyond one seed and two toy tasks, what the verifier cost, nor that the "
        "outcome alone must fail, as both have the paper's learning rate: with one tuned for each it needs 2 to 6 "
        "times the steps; docs/experiments has seeds, spread, cost and losses.",
    )


def quiet() -> None:
    """Keep library chatter out of the progress display."""
    warnings.filterwarnings("ignore")
    for name in ("transformers", "trl", "accelerate", "torch", "trl_prl", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet_libraries()


def say(progress: Progress, text: str) -> None:
    """Print a line where progress bars are not shown before they end, as in a log file."""
    if not progress.console.is_terminal:
        progress.console.print(text)


def run_planted(progress: Progress, seed: int, max_steps: int, runs_dir: Path) -> dict[str, list[float]]:
    """Part 1: accuracy per optimizer step with and without progress, from two base policies; the runs are recorded."""
    from trl_prl.demo.planted_training import train_planted

    curves = {}
    for base_iterations in (50, 10):  # the paper's base policy, and one for which success is rarer
        for reward, alpha in (("effective reward", 1.0), ("outcome only", 0.0)):
            name = f"{reward}, base of {base_iterations}"
            task = progress.add_task(f"1 planted: {name}", total=max_steps, note="")

            def on_step(step: int, metrics: Mapping[str, float], task: Any = task) -> None:
                progress.update(task, completed=step, note=f"{100 * metrics['reward']:.0f} % right")

            run = train_planted(
                seed, alpha, max_steps=max_steps, base_iterations=base_iterations, on_step=on_step,
                output_dir=runs_dir / "-".join(reversed(name.split(", "))).replace(" ", "_"),
            )  # fmt: skip
            curves[name] = run.accuracies
            say(
                progress,
                f"1 planted: {name}: {100 * run.accuracies[-1]:.0f} % right after {max_steps} optimizer steps",
            )
    return curves


def run_judging(progress: Progress, num_problems: int) -> dict[str, dict[str, float]]:
    """Part 2: how well the shipped verifier knows steps and prefixes of held-out solutions, beside exact values."""
    from trl_prl.demo.path_prover import PathProcessReward
    from trl_prl.demo.path_values import judge, path_exam, path_generator
    from trl_prl.demo.paths import path_verifier_path
    from trl_prl.verifier.model import ProcessAdvantageVerifier

    task = progress.add_task("2 paths: judge the verifier", total=3, note="")
    exam = path_exam(path_generator(), 4 * num_problems, num_prefixes=2 * num_problems, num_rollouts=64)
    progress.advance(task)
    scorers = {
        "learned verifier": ProcessAdvantageVerifier.from_pretrained(path_verifier_path()),
        "exact values": PathProcessReward(),
    }
    judged = {}
    for name, scorer in scorers.items():
        judged[name] = judge(scorer, exam)
        progress.advance(task)
    return judged


def run_searches(progress: Progress, seed: int, num_problems: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Part 3: accuracy and tokens per problem of each search on far paths, as `trl-prl search` finds them."""
    from trl_prl.demo.paths import FAR, MAX_COMPLETION_LENGTH, path_dataset, path_policy_path, path_verifier_path
    from trl_prl.search.config import SearchConfig
    from trl_prl.search.job import run_search

    problems, found = path_dataset("test", num_problems, seed, FAR), {}
    for name, (method, scorer, size) in SEARCHES.items():
        config = SearchConfig(
            model=path_policy_path(), dataset="trl_prl.demo.paths", reward="trl_prl.demo.paths:path_reward",
            output_dir=str(folder / name.replace(", ", "-").replace(" ", "_")), method=method, n=[size], plot="none",
            process_reward=scorer or path_verifier_path(), max_completion_length=MAX_COMPLETION_LENGTH, seed=seed,
            check_timeout=0, save_trees=0 if method == "best_of_n" else 8, problems_per_unit=16,
        )  # fmt: skip
        task = progress.add_task(f"3 search: {name}", total=num_problems, note="problems")

        def on_progress(state: Any, task: Any = task) -> None:
            progress.update(task, completed=state.num_done)

        path = run_search(config, problems, on_progress=on_progress)
        if path is None:
            raise RuntimeError("The quickstart was started in several processes. Start it in one.")
        (found[name],) = json.loads(path.read_text(encoding="utf-8"))["curve"]
        say(progress, f"3 search: {name}: {num_problems} problems searched")
    return found


def _table(title: str, caption: str, first: str, *numbers: str) -> Table:
    table = Table(first, title=title, caption=caption, caption_justify="left", box=SIMPLE_HEAD)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def planted_table(curves: Mapping[str, list[float]]) -> Table:
    """What part 1 came to."""
    from trl_prl.demo.training import steps_to_accuracy

    title = "1. Planted sub-sequence (PAV paper, App. B)"
    table = _table(title, PLANTED_WORDS, "reward", "optimizer steps to 90 %", "accuracy at the end")
    for name, curve in curves.items():
        reached = steps_to_accuracy(curve, 0.9)
        last = curve[-5:]
        table.add_row(name, str(reached or f"not in {len(curve)}"), f"{100 * sum(last) / len(last):.0f} %")
    return table


def judged_table(judged: Mapping[str, Mapping[str, float]]) -> Table:
    """What the verifier knows."""
    title = "2. Paths in a graph: who knows a good step?"
    table = _table(title, JUDGED_WORDS, "values", *SCORES.values())
    for name, scores in judged.items():
        table.add_row(name, *(f"{scores[score]:.2f}" for score in SCORES))
    return table


def search_table(searched: Mapping[str, Mapping[str, Any]]) -> Table:
    """What searching with it finds."""
    title = "3. Far paths: searching with these values"
    table = _table(title, SEARCH_WORDS, "search", "right", "tokens per problem")
    for name, point in searched.items():
        tokens = f"{point['generated_tokens_per_problem']:.0f}"
        table.add_row(name, f"{100 * point['accuracy']['value']:.0f} %", tokens)
    return table


def draw(planted: Mapping[str, list[float]], searched: Mapping[str, Mapping[str, Any]], output_dir: Path) -> None:
    """Write `planted.png` and `search.png`."""
    from trl_prl.report.plots import STYLES, draw_curves, new_figure, save

    figure, (axis,) = new_figure(1, width=6)
    draw_curves(axis, {name: [[100 * value for value in curve]] for name, curve in planted.items()}, window=5)
    axis.set(title="Planted sub-sequence", xlabel="optimizer step", ylabel="accuracy, %", ylim=(-2, 102))
    save(figure, output_dir / "planted.png")

    figure, (axis,) = new_figure(1, width=6, height=2.4)
    shares = [100 * point["accuracy"]["value"] for point in searched.values()]
    bars = axis.barh(list(searched), shares, color=[style["color"] for style in STYLES[: len(shares)]])
    axis.bar_label(bars, fmt="%.0f", padding=2)
    axis.invert_yaxis()
    axis.set(title="Searching far paths with a learned verifier", xlabel="right, %", xlim=(0, 105))
    axis.grid(axis="y", visible=False)
    save(figure, output_dir / "search.png")
