"""The PAV paper's didactic experiment in full (Figure 3 a, b, c): several seeds, spread, table and plot.

    python tests/benchmarks/planted_figure3.py --seeds 5 --output docs/figures/planted.json

Writes the results, `planted.md` and `planted.png` beside them. Finished runs are kept, so it can be interrupted.
Source: https://huggingface.co/papers/2410.08146, App. B.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Results, machine_text, spread, table
from planted_samples import REWARDS, THRESHOLD, StopAtAccuracy, base_accuracy, sample_planted, steps_text

from trl_prl.demo.planted_training import train_planted
from trl_prl.demo.training import steps_to_accuracy
from trl_prl.metrics.sampling_estimates import pass_at_k
from trl_prl.report.plots import draw_curves, new_figure, save


GAMMAS = (1.0, 3.0, 5.0, 8.0, 10.0, 15.0, 30.0, 100.0, 1000.0)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)
GOOD_ENOUGH = partial(StopAtAccuracy, 0.97)


def ratio_text(slow: list[int | None], fast: list[int | None], limit: int) -> str:
    # A run that never got there counts with the limit, so the ratio is a lower bound.
    ratios = [(a or limit) / b for a, b in zip(slow, fast, strict=True) if b is not None]
    bound = "at least " if None in slow else ""
    return f"{bound}{spread(ratios)}"


def run(results: Results, seeds: range, base_iterations: tuple[int, ...], limit: int) -> tuple[str, dict[str, Any]]:
    curves: dict[str, Any] = {}
    rows = []
    for iterations in base_iterations:
        success = [
            results.get(f"base {iterations} seed {seed}", partial(base_accuracy, seed, iterations, 32768))
            for seed in seeds
        ]
        steps: dict[str, list[int | None]] = {}
        for name, alpha in REWARDS.items():
            runs = [
                results.get(
                    f"a {iterations} {name} seed {seed}",
                    lambda seed=seed, alpha=alpha, iterations=iterations: (
                        train_planted(
                            seed, alpha, max_steps=limit, base_iterations=iterations, callbacks=[GOOD_ENOUGH()]
                        ).accuracies
                    ),
                )
                for seed in seeds
            ]
            steps[name] = [steps_to_accuracy(accuracies, THRESHOLD) for accuracies in runs]
            curves[f"{name}, base of {iterations}"] = runs
        rows.append(
            [
                iterations,
                f"{100 * statistics.fmean(success):.3f} %",
                steps_text(steps["effective reward"], limit),
                steps_text(steps["outcome only"], limit),
                ratio_text(steps["outcome only"], steps["effective reward"], limit),
            ]
        )
    header = ["base policy iterations", "its accuracy", "effective reward", "outcome only", "ratio"]
    text = f"(a) Optimizer steps to {100 * THRESHOLD:.0f} % accuracy, prover gamma = 10\n\n{table(header, rows)}\n"

    strengths: dict[str, Any] = {}
    rows = [[f"{gamma:g}"] for gamma in GAMMAS]
    for iterations in base_iterations:
        columns = []
        for gamma, row in zip(GAMMAS, rows, strict=True):
            runs = [
                results.get(
                    f"b {iterations} gamma {gamma:g} seed {seed}",
                    lambda seed=seed, gamma=gamma, iterations=iterations: (
                        train_planted(
                            seed,
                            1.0,
                            gamma=gamma,
                            max_steps=200,
                            base_iterations=iterations,
                            callbacks=[GOOD_ENOUGH()],
                        ).accuracies
                    ),
                )
                for seed in seeds
            ]
            reached = [steps_to_accuracy(accuracies, THRESHOLD) for accuracies in runs]
            columns.append([step or 200 for step in reached])
            row.append(steps_text(reached, 200))
        strengths[f"base of {iterations}"] = list(map(list, zip(*columns, strict=True)))
    header = ["gamma", *(f"base policy of {iterations} iterations" for iterations in base_iterations)]
    text += f"(b) Optimizer steps to {100 * THRESHOLD:.0f} % accuracy by prover strength\n\n{table(header, rows)}\n"

    passes: dict[str, list[list[float]]] = {}
    for name, alpha in REWARDS.items():
        for seed in seeds:

            def pass_curve(seed: int = seed, alpha: float = alpha) -> list[float]:
                samples = sample_planted(train_planted(seed, alpha, max_steps=20).model, 4096)
                return [pass_at_k(len(samples), sum(samples), n) for n in SAMPLES]

            passes.setdefault(name, []).append(results.get(f"c {name} seed {seed}", pass_curve))
    rows = [[name, *(spread([100 * run[i] for run in runs]) for i in (0, 3, 5, 7))] for name, runs in passes.items()]
    text += "(c) pass@N in % after 20 optimizer steps, 4096 samples, unbiased estimator\n\n"
    text += table(["reward", *(f"N = {SAMPLES[i]}" for i in (0, 3, 5, 7))], rows)
    return text, {"curves": curves, "strengths": strengths, "passes": passes}


def draw(figures: dict[str, Any], path: Path) -> None:
    figure, (a, b, c) = new_figure(3, width=4.5)
    longest = max(len(run) for runs in figures["curves"].values() for run in runs)
    padded = {
        name: [[100 * v for v in run] + [100 * statistics.fmean(run[-5:])] * (longest - len(run)) for run in runs]
        for name, runs in figures["curves"].items()
    }
    draw_curves(a, padded, window=5)
    a.set(title="(a) learning curves", xlabel="optimizer step", ylabel="accuracy, %", xscale="log", xlim=(5, None))
    draw_curves(b, figures["strengths"], x=GAMMAS)
    b.set(title="(b) prover strength", xlabel="gamma", ylabel="optimizer steps to 90 %", xscale="log")
    draw_curves(
        c, {name: [[100 * v for v in run] for run in runs] for name, runs in figures["passes"].items()}, x=SAMPLES
    )
    c.set(title="(c) after 20 optimizer steps", xlabel="N", ylabel="pass@N, %")
    c.set_xscale("log", base=2)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--base-iterations", type=int, nargs="+", default=[50, 10])
    parser.add_argument("--limit", type=int, default=1500, help="longest run of (a), in optimizer steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/planted.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.output)
    text, figures = run(results, range(args.seeds), tuple(args.base_iterations), args.limit)
    text += f"\n{args.seeds} seeds, mean (lowest to highest); {machine_text(results.data['machine'])}\n"
    args.output.with_suffix(".md").write_text(text)
    draw(figures, args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
