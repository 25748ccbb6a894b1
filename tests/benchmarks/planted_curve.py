"""How much faster progress is the rarer success: the planted task over base policies, learning rate tuned per arm.

    python tests/benchmarks/planted_curve.py --seeds 10 --output docs/figures/planted_curve.json

Each arm takes, for each base policy, the learning rate of the grid that needs the fewest optimizer steps to 90 % on
tuning seeds; the seeds of the curve are others. Writes the results, `planted_curve.md` and `planted_curve.png`.
Finished runs are kept, so it can be interrupted. Source: https://huggingface.co/papers/2410.08146, App. B, whose
Figure 3 is a point on the curve.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from common import Results, machine_text, table
from planted_samples import REWARDS, THRESHOLD, base_accuracy, steps_needed, steps_text

from trl_prl.report.plots import draw_line, new_figure, save


TUNING_SEEDS = range(100, 102)
TUNING_LIMIT = 250


def tune(results: Results, rates: list[float], bases: list[int]) -> tuple[dict[int, dict[str, float]], str]:
    """The learning rate of the fewest optimizer steps for each base policy and arm, and the grid as a table.

    All rates are tried for the first base policy; for the others the best of the first and its neighbours.
    """
    best: dict[int, dict[str, float]] = {}
    rows = []
    for iterations in bases:
        best[iterations] = {}
        for name, alpha in REWARDS.items():
            place = rates.index(best[bases[0]].get(name, rates[0]))
            tried = rates[max(0, place - 1) : place + 2] if iterations != bases[0] else rates
            grid = {
                rate: [
                    results.get(
                        f"tune {iterations} {name} {rate:g} seed {seed}",
                        partial(
                            steps_needed, seed, alpha, TUNING_LIMIT, base_iterations=iterations, learning_rate=rate
                        ),
                    )
                    for seed in TUNING_SEEDS
                ]
                for rate in tried
            }
            cells = [steps_text(grid[rate], TUNING_LIMIT) if rate in grid else "" for rate in rates]
            rows.append([iterations, name, *cells])
            best[iterations][name] = min(grid, key=lambda rate: sum(step or TUNING_LIMIT for step in grid[rate]))
    return best, table(
        ["base policy iterations", "optimizer steps to 90 % at", *(f"{rate:g}" for rate in rates)], rows
    )


def run(
    results: Results, bases: dict[int, int], best: dict[int, dict[str, float]], limit: int
) -> tuple[str, list[tuple[float, list[float]]]]:
    """The curve as a table, and success and ratios of every base policy, which has seeds of its own number."""
    rows, points = [], []
    for iterations, num_seeds in bases.items():
        seeds = range(num_seeds)
        # Rarer successes than were tuned for take the rates of the rarest of them.
        tuned = best.get(iterations, best[min(best)])
        shares = [
            results.get(f"base {iterations} seed {seed}", partial(base_accuracy, seed, iterations, 8192))
            for seed in seeds
        ]
        steps = {
            name: [
                results.get(
                    f"{iterations} {name} {tuned[name]:g} seed {seed}",
                    partial(steps_needed, seed, alpha, limit, base_iterations=iterations, learning_rate=tuned[name]),
                )
                for seed in seeds
            ]
            for name, alpha in REWARDS.items()
        }
        fast, slow = steps["effective reward"], steps["outcome only"]
        success = f"{100 * statistics.fmean(shares):.3f} %"
        ratios = [(a or limit) / (b or limit) for a, b in zip(slow, fast, strict=True)]
        points.append((100 * statistics.fmean(shares), ratios))
        cells = [f"{steps_text(some, limit)} at {tuned[name]:g}" for name, some in steps.items()]
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append([iterations, success, num_seeds, *cells, ratio])
    header = ["base policy iterations", "its accuracy", "seeds", "effective reward", "outcome only", "ratio, median"]
    return table(header, rows), points


def draw(points: list[tuple[float, list[float]]], path: Path) -> None:
    figure, (axis,) = new_figure(1)
    success, ratios = zip(*sorted(points), strict=True)
    band = [min(some) for some in ratios], [max(some) for some in ratios]
    draw_line(axis, 0, "outcome only / effective reward", success, [statistics.median(some) for some in ratios], band)
    axis.axhline(10, color="#999999", linestyle=":", label="the paper's")
    axis.legend(frameon=False, fontsize=8)
    axis.set(xlabel="success of the base policy, %", ylabel="ratio of optimizer steps to 90 %", yscale="log")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10], help="of each base policy, or of all")
    parser.add_argument("--base-iterations", type=int, nargs="+", default=[60, 50, 40, 30, 20, 10])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--tuned-at", type=int, nargs="+", default=[30, 60, 50, 40], help="base policies of the grid")
    parser.add_argument("--limit", type=int, default=500, help="longest run, in optimizer steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/planted_curve.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.output)
    best, grid = tune(results, args.learning_rates, args.tuned_at)
    seeds = args.seeds * (len(args.base_iterations) if len(args.seeds) == 1 else 1)
    bases = dict(zip(args.base_iterations, seeds, strict=True))
    text, points = run(results, bases, best, args.limit)
    text = (
        f"Learning rates, {len(TUNING_SEEDS)} tuning seeds\n\n{grid}\n"
        f"Optimizer steps to {100 * THRESHOLD:.0f} %, at the tuned learning rate\n\n{text}\n"
        f"Mean (lowest to highest) of the seeds that got there; in the ratio the others count with {args.limit}. "
        f"{machine_text(results.data['machine'])}\n"
    )
    args.output.with_suffix(".md").write_text(text)
    draw(points, args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
