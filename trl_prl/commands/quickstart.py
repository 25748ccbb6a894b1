"""`trl-prl quickstart`: watch a policy learn from process rewards, on a CPU, in a few minutes."""

from __future__ import annotations

import json
import logging
import os
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
from trl_prl.storage.files import write_text

from .report import how_to_open, write_report


# Method, learning rate and beta or alpha, each row chosen by itself on the tuning split: `arithmetic.py` and
# `pav_pipeline.py` in `tests/benchmarks`.
LEARNED = "PAV, learned"
HYPERPARAMETERS = {
    "GRPO": ("GRPO", 5e-5, 0.0),
    "PRL": ("PRL", 5e-5, 0.005),
    "PAV, exact": ("PAV", 1e-4, 5.0),
    LEARNED: ("PAV", 5e-5, 1.5),
}
# Of the 16 problems of the runs' evaluations, the report shows completions at several checkpoints.
NUM_EVAL_PROBLEMS = 16
# Score: its name in the table and in the figure.
COLUMNS = {
    "main/avg@8": "avg@8, 4 terms",
    "main/pass@8": "pass@8, 4 terms",
    "long/avg@8": "avg@8, 8 terms",
    "long/pass@8": "pass@8, 8 terms",
}


@dataclass(frozen=True)
class Options:
    """How much to train, and where to write.

    Raises:
        `ValueError`: When a number leaves nothing to run.
    """

    output_dir: str = option("quickstart-out", "folder of plots and results")
    seed: int = option(0, "seed of both parts")
    planted_steps: int = option(100, "optimizer steps of each run of part 1")
    arithmetic_steps: int = option(150, "optimizer steps of each run of part 2")
    problems: int = option(128, "held-out problems per length in part 2")

    def __post_init__(self) -> None:
        for name in ("planted_steps", "arithmetic_steps", "problems"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"--{name} is {number}, which leaves nothing to run. Pass a positive number.")


def run(options: Options) -> int:
    """Run both parts, draw the plots, write the report and print the tables."""
    folder = Path(options.output_dir)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
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
    with Progress(*columns, console=console) as progress:
        planted = run_planted(progress, options.seed, options.planted_steps)
        runs_dir = folder / "runs"
        arithmetic = run_arithmetic(progress, options.seed, options.arithmetic_steps, options.problems, runs_dir)
    draw(planted, arithmetic, folder)
    results = {"seed": options.seed, "planted": planted, "arithmetic": arithmetic}
    write_text(folder / "results.json", json.dumps(results, indent=1))
    console.print(planted_table(planted))
    console.print(arithmetic_table(arithmetic))
    console.print("avg@8: share of right answers; pass@8: share of problems with a right one among 8 samples.\n")
    report = folder / "report.html"
    write_report([folder], report, title="trl-prl quickstart")
    console.print(f"Plots and numbers: {folder}/planted.png, arithmetic.png, results.json", soft_wrap=True)
    console.print(f"Every sampled step, coloured by its credit: {how_to_open(report)}", soft_wrap=True)
    console.print("\n".join(("", *learned(planted, arithmetic))), soft_wrap=True)
    return 0


def learned(planted: Mapping[str, list[float]], arithmetic: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """What the run has shown, and what it has not, in a sentence each."""
    last = {name: 100 * sum(curve[-5:]) / len(curve[-5:]) for name, curve in planted.items()}
    rare = [share for name, share in last.items() if name.endswith("base of 10")]
    gain = {name: result["scores"]["main/avg@8"] for name, result in arithmetic.items()}
    return (
        f"Learned: where success is rare, credit per step reached {rare[0]:.0f} % right, and the outcome alone "
        f"{rare[1]:.0f} %; on 4 terms GRPO went from {gain['before']:.1f} to {gain['GRPO']:.1f} %, PAV to "
        f"{gain['PAV, exact']:.1f} %.",
        "Not learned: whether that holds beyond one seed, two toy tasks and exact step values; docs/experiments "
        "has seeds, spread and losses.",
    )


def quiet() -> None:
    """Keep library chatter out of the progress display."""
    warnings.filterwarnings("ignore")
    for name in ("transformers", "trl", "accelerate", "torch", "trl_prl", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def say(progress: Progress, text: str) -> None:
    """Print a line where progress bars are not shown before they end, as in a log file."""
    if not progress.console.is_terminal:
        progress.console.print(text)


def run_planted(progress: Progress, seed: int, max_steps: int) -> dict[str, list[float]]:
    """Part 1: accuracy per optimizer step with and without progress, from two base policies."""
    from trl_prl.demo.planted_training import train_planted

    curves = {}
    for base_iterations in (50, 10):  # the paper's base policy, and one for which success is rarer
        for reward, alpha in (("effective reward", 1.0), ("outcome only", 0.0)):
            name = f"{reward}, base of {base_iterations}"
            task = progress.add_task(f"1 planted: {name}", total=max_steps, note="")

            def on_step(step: int, metrics: Mapping[str, float], task: Any = task) -> None:
                progress.update(task, completed=step, note=f"{100 * metrics['reward']:.0f} % right")

            run = train_planted(seed, alpha, max_steps=max_steps, base_iterations=base_iterations, on_step=on_step)
            curves[name] = run.accuracies
            say(
                progress,
                f"1 planted: {name}: {100 * run.accuracies[-1]:.0f} % right after {max_steps} optimizer steps",
            )
    return curves


def run_arithmetic(
    progress: Progress, seed: int, max_steps: int, num_problems: int, runs_dir: Path
) -> dict[str, dict[str, Any]]:
    """Part 2: avg@8 and pass@8 before and after training with each method, and accuracy per optimizer step.

    The records of the runs go to folders in `runs_dir`; those of an earlier quickstart are removed.
    """
    from trl_prl.demo.arithmetic import arithmetic_verifier_path
    from trl_prl.demo.arithmetic_training import Method, evaluate_arithmetic, load_arithmetic_policy, train_arithmetic

    shutil.rmtree(runs_dir, ignore_errors=True)

    def evaluate(name: str, model: Any) -> dict[str, float]:
        task = progress.add_task(f"2 arithmetic: test {name}", total=2 * 8 * num_problems, note="samples")
        return evaluate_arithmetic(model, "test", num_problems, seed, lambda n: progress.advance(task, n))

    results: dict[str, dict[str, Any]] = {
        "before": {"scores": evaluate("base policy", load_arithmetic_policy()), "curve": []}
    }
    for name, (method_name, learning_rate, coefficient) in HYPERPARAMETERS.items():
        verifier: dict[str, Any] = (
            {"process_reward": arithmetic_verifier_path(), "best_of_k": 4} if name == LEARNED else {}
        )
        method = Method(method_name, learning_rate, coefficient, **verifier)
        task = progress.add_task(f"2 arithmetic: train {name}", total=max_steps, note="")

        def on_step(step: int, metrics: Mapping[str, float], task: Any = task) -> None:
            progress.update(task, completed=step, note=f"{100 * metrics['reward']:.0f} % right")

        folder = runs_dir / name.lower().replace(", ", "-")
        model, logs = train_arithmetic(
            method, seed, max_steps, on_step, output_dir=folder, num_eval_problems=NUM_EVAL_PROBLEMS
        )
        results[name] = {"scores": evaluate(name, model), "curve": [entry["reward"] for entry in logs]}
        say(progress, f"2 arithmetic: {name} trained for {max_steps} optimizer steps and tested")
    return results


def planted_table(curves: Mapping[str, list[float]]) -> Table:
    """What part 1 came to."""
    from trl_prl.demo.training import steps_to_accuracy

    table = Table(title="1. Planted sub-sequence (PAV paper, App. B), exact step values", box=SIMPLE_HEAD)
    table.add_column("reward")
    table.add_column("steps to 90 %", justify="right")
    table.add_column("accuracy, last 5 steps", justify="right")
    for name, curve in curves.items():
        reached = steps_to_accuracy(curve, 0.9)
        last = curve[-5:]
        table.add_row(name, str(reached or f"not in {len(curve)}"), f"{100 * sum(last) / len(last):.0f} %")
    return table


def arithmetic_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """What part 2 came to."""
    table = Table(title="2. Arithmetic in text, held-out problems, %; equal numbers of samples", box=SIMPLE_HEAD)
    table.add_column("policy")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for name, result in results.items():
        table.add_row(name, *(f"{result['scores'][column]:.1f}" for column in COLUMNS))
    return table


def draw(planted: Mapping[str, list[float]], arithmetic: Mapping[str, Mapping[str, Any]], output_dir: Path) -> None:
    """Write `planted.png` and `arithmetic.png`."""
    from trl_prl.report.plots import draw_bars, draw_curves, new_figure, save

    figure, (axis,) = new_figure(1, width=6)
    draw_curves(axis, {name: [[100 * value for value in curve]] for name, curve in planted.items()}, window=5)
    axis.set(title="Planted sub-sequence", xlabel="optimizer step", ylabel="accuracy, %", ylim=(-2, 102))
    save(figure, output_dir / "planted.png")

    figure, (left, right) = new_figure(2, width=6)
    curves = {name: [[100 * v for v in result["curve"]]] for name, result in arithmetic.items() if result["curve"]}
    draw_curves(left, curves, window=20)
    left.set(
        title="Arithmetic: training, half of the problems long",
        xlabel="optimizer step",
        ylabel="accuracy of rollouts, %",
    )
    scores = {name: [result["scores"][column] for column in COLUMNS] for name, result in arithmetic.items()}
    draw_bars(right, list(COLUMNS.values()), scores)
    right.set(title="Held-out problems before and after")
    save(figure, output_dir / "arithmetic.png")
