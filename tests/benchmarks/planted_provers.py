"""Do weak and strong provers help less once `alpha` is tuned for each? The planted task, by prover and base policy.

    python tests/benchmarks/planted_provers.py --seeds 5 --output docs/figures/planted_provers.json

Each prover takes, for each base policy, the `alpha` of the grid that needs the fewest optimizer steps to 90 % on
tuning seeds; the seeds of the table are others. Writes the results and `planted_provers.md`. Finished runs are kept,
so it can be interrupted. Source: https://huggingface.co/papers/2410.08146, App. B, Figure 3 b.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from common import Results, machine_text, table
from planted_samples import THRESHOLD, steps_needed, steps_text


TUNING_SEEDS = range(100, 102)
LIMIT = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--gammas", type=float, nargs="+", default=[1.0, 10.0, 100.0, 1000.0])
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.3, 1.0, 3.0])
    parser.add_argument("--base-iterations", type=int, nargs="+", default=[50, 10])
    parser.add_argument("--output", type=Path, default=Path("docs/figures/planted_provers.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(args.output)

    def steps_of(seeds: range, gamma: float, alpha: float, iterations: int) -> list[int | None]:
        return [
            results.get(
                f"{iterations} gamma {gamma:g} alpha {alpha:g} seed {seed}",
                partial(steps_needed, seed, alpha, LIMIT, gamma=gamma, base_iterations=iterations),
            )
            for seed in seeds
        ]

    rows = []
    for iterations in args.base_iterations:
        for gamma in args.gammas:
            grid = {alpha: steps_of(TUNING_SEEDS, gamma, alpha, iterations) for alpha in args.alphas}
            best = min(grid, key=lambda alpha: sum(step or LIMIT for step in grid[alpha]))
            found = steps_text(steps_of(range(args.seeds), gamma, best, iterations), LIMIT)
            rows.append([iterations, f"{gamma:g}", *(steps_text(some, LIMIT) for some in grid.values()), best, found])
    header = ["base policy iterations", "gamma", *(f"alpha {alpha:g}" for alpha in args.alphas)]
    text = (
        f"Optimizer steps to {100 * THRESHOLD:.0f} %, mean (lowest to highest): {len(TUNING_SEEDS)} tuning seeds by "
        f"`alpha`, and {args.seeds} others at the best\n\n{table([*header, 'best alpha', 'at the best'], rows)}\n"
        f"{machine_text(results.data['machine'])}\n"
    )
    args.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
