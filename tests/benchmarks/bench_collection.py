"""Rollouts per label and label error of each way to spend rollouts, where the values are known exactly.

    python -m tests.benchmarks.bench_collection
    python -m tests.benchmarks.bench_collection --problems 300 --num_terms 8 --error_rate 0.2

The prover of the arithmetic task continues any prefix, and its values are exact (`ArithmeticProcessReward`). Seeds are
the same for all ways. A label is a distinct measured prefix; its error is the fraction correct minus the exact value.
`rollouts per label` counts everything but the seeds: probes too. `of fixed` is that number as a share of what a fixed
n_mc needs for the same root-mean-square error on the same labels, computed from their exact values: a fixed n has the
mean square error mean(Q (1 - Q)) / n. `best possible` is that share for rollouts dealt out by an oracle that knows all
values: mean(sqrt(Q (1 - Q)))^2 / mean(Q (1 - Q)); no rule with independent rollouts per label can be below it.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from tests.benchmarks.arithmetic.prover import ArithmeticProcessReward
from tests.benchmarks.arithmetic.task import arithmetic_reward
from tests.benchmarks.common import machine, table
from tests.provers import ArithmeticProver, arithmetic_problems, root_mean_square
from trl_prl.collection.monte_carlo import MonteCarloParams, estimate_step_values
from trl_prl.generation.tallies import Spending
from trl_prl.metrics.intervals import SequentialRule
from trl_prl.steps.splitters import DelimiterSplitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import SamplingParams


def labels(rows: list[dict[str, Any]], error_rate: float) -> list[tuple[float, float]]:
    """Measured and exact value of every distinct measured prefix, prompts included."""
    exact = ArithmeticProcessReward(error_rate)
    found: dict[tuple[int, str], tuple[float, float]] = {}
    for row in rows:
        values = exact([row["prompt"]], [row["completions"]], finished=[False])[0]
        found[row["row"], ""] = row["initial_value"], exact.initial_values([row["prompt"]])[0]
        for k, (value, label, n) in enumerate(zip(values, row["labels"], row["num_rollouts"], strict=True)):
            if n and value is not None:
                found[row["row"], "".join(row["completions"][: k + 1])] = label, value
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--num_terms", type=int, default=6)
    parser.add_argument("--error_rate", type=float, default=0.15, help="of the prover, per line")
    parser.add_argument("--n_cov", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2, help="repetitions; errors are pooled")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    args = parser.parse_args()

    prover = ArithmeticProver(args.error_rate)
    problems = arithmetic_problems(prover.tokenizer, args.problems, args.num_terms)
    ways: dict[str, tuple[str, int | SequentialRule]] = {}
    for n in (4, 8, 16, 32):
        ways[f"iid, n_mc {n}"] = "iid", n
    for tolerance in (0.06, 0.04, 0.02, 0.01):
        ways[f"iid, adaptive, tolerance {tolerance}"] = "iid", SequentialRule(tolerance, max_rollouts=256)
    for n in (8, 16):
        ways[f"first pit, n_mc {n}"] = "first_pit", n
    for tolerance in (0.04, 0.02):
        ways[f"first pit, adaptive, tolerance {tolerance}"] = "first_pit", SequentialRule(tolerance, max_rollouts=256)

    results: dict[str, dict[str, float]] = {}
    for name, (strategy, rule) in ways.items():
        pairs: list[tuple[float, float]] = []
        num_rollouts = num_wrong_seeds = 0
        for seed in range(args.seeds):
            spending = Spending()
            rows = estimate_step_values(
                problems,
                prover,
                arithmetic_reward,
                DelimiterSplitter("\n"),
                TokenPieces(prover.tokenizer),
                MonteCarloParams(args.n_cov, rule, strategy),  # type: ignore[arg-type]
                SamplingParams(max_tokens=128, seed=seed),
                spending=spending,
            )
            prover.prompts.clear()
            pairs += labels(rows, args.error_rate)
            num_rollouts += spending.num_rollouts - args.n_cov * args.problems
            num_wrong_seeds += sum(row["outcome"] == 0.0 for row in rows)
        rmse = root_mean_square([label - value for label, value in pairs])
        variance = math.fsum(value * (1 - value) for _, value in pairs) / len(pairs)
        deviation = math.fsum(math.sqrt(value * (1 - value)) for _, value in pairs) / len(pairs)
        per_label = num_rollouts / len(pairs)
        results[name] = {
            "labels": len(pairs),
            "wrong_solutions": num_wrong_seeds,
            "rollouts_per_label": per_label,
            "rmse": rmse,
            "bias": math.fsum(label - value for label, value in pairs) / len(pairs),
            "of_fixed": per_label / (variance / rmse**2),
            "best_possible": deviation**2 / variance,
        }
    if args.output == "json":
        print(json.dumps({"machine": machine(), "arguments": vars(args), "ways": results}, indent=1))
        return
    print(f"{args.problems} problems of {args.num_terms} terms, {args.n_cov} seeds each, {args.seeds} repetitions\n")
    cells = [
        (
            name,
            row["labels"],
            row["wrong_solutions"],
            f"{row['rollouts_per_label']:.1f}",
            f"{row['rmse']:.4f}",
            f"{row['bias']:+.4f}",
            f"{row['of_fixed']:.2f}",
            f"{row['best_possible']:.2f}",
        )
        for name, row in results.items()
    ]
    header = ("", "labels", "wrong solutions", "rollouts per label", "RMSE", "bias", "of fixed", "best possible")
    print(table(header, cells))


if __name__ == "__main__":
    main()
