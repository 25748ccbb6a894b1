"""GRPO, PRL and PAV on arithmetic in text: tune each method on one split, compare on another.

    python tests/benchmarks/arithmetic.py --output docs/figures/arithmetic.json

Every method trains the shipped base policy on the same problems, half of them long, with the same number of samples.
Its learning rate and coefficient are the best of a grid on the tuning split; the comparison uses the test split and
other seeds.
Writes the results, `arithmetic.md` and `arithmetic.png`. Finished runs are kept, so it can be interrupted.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import Results, machine_text, spread, table

from trl_prl.demo.arithmetic_training import Method, evaluate_arithmetic, load_arithmetic_policy, train_arithmetic
from trl_prl.report.plots import draw_bars, draw_curves, new_figure, save


LEARNING_RATES = (5e-5, 1e-4)
COEFFICIENTS = {"GRPO": (0.0,), "PRL": (0.005, 0.02), "PAV": (1.5, 5.0)}
COLUMNS = ("main/avg@8", "main/pass@8", "long/avg@8", "long/pass@8")
TUNING_SEED = 1000


def run(results: Results, key: str, method: Method, seed: int, split: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Train once and evaluate, unless that was done before."""

    def compute() -> dict[str, Any]:
        model, logs = train_arithmetic(method, seed, args.steps)
        scores = evaluate_arithmetic(model, split, args.problems, seed)
        return {"scores": scores, "curve": [entry["reward"] for entry in logs]}

    return results.get(
        f"{key} {method.name} lr {method.learning_rate:g} c {method.coefficient:g} seed {seed}", compute
    )


def tune(results: Results, args: argparse.Namespace) -> tuple[dict[str, Method], str]:
    """Best setting of each method by the mean avg@8 of both lengths on the tuning split."""
    best, rows = {}, []
    for name in args.methods:
        coefficients = COEFFICIENTS[name]
        scored = []
        for learning_rate, coefficient in product(LEARNING_RATES, coefficients):
            method = Method(name, learning_rate, coefficient)
            scores = run(results, "tune", method, TUNING_SEED, "tuning", args)["scores"]
            scored.append((scores["main/avg@8"] + scores["long/avg@8"], method))
            rows.append([name, f"{learning_rate:g}", f"{coefficient:g}", *(f"{scores[c]:.1f}" for c in COLUMNS)])
        best[name] = max(scored, key=lambda pair: pair[0])[1]
    return best, table(["method", "learning rate", "coefficient", *COLUMNS], rows)


def compare(results: Results, best: dict[str, Method], args: argparse.Namespace) -> tuple[str, dict[str, list[Any]]]:
    """Scores of each method on the test split over seeds."""
    base = [
        results.get(
            f"base seed {seed}",
            lambda seed=seed: evaluate_arithmetic(load_arithmetic_policy(), "test", args.problems, seed),
        )
        for seed in range(args.seeds)
    ]
    runs = {
        name: [run(results, "test", method, seed, "test", args) for seed in range(args.seeds)]
        for name, method in best.items()
    }
    scores = {"before": base, **{name: [entry["scores"] for entry in entries] for name, entries in runs.items()}}
    rows = [
        [name, setting(best.get(name)), *(spread([entry[column] for entry in entries]) for column in COLUMNS)]
        for name, entries in scores.items()
    ]
    return table(["policy", "setting", *COLUMNS], rows), {"runs": runs, "scores": scores}  # type: ignore[return-value]


def setting(method: Method | None) -> str:
    if method is None:
        return ""
    coefficient = {"GRPO": "", "PRL": f", beta {method.coefficient:g}", "PAV": f", alpha {method.coefficient:g}"}
    return f"lr {method.learning_rate:g}{coefficient[method.name]}"


def draw(data: dict[str, Any], path: Path) -> None:
    figure, (left, right) = new_figure(2, width=6)
    curves = {name: [[100 * v for v in run["curve"]] for run in runs] for name, runs in data["runs"].items()}
    draw_curves(left, curves, window=20)
    left.set(title="training, half of the problems long", xlabel="optimizer step", ylabel="accuracy of rollouts, %")
    means = {
        name: [sum(entry[column] for entry in entries) / len(entries) for column in COLUMNS]
        for name, entries in data["scores"].items()
    }
    draw_bars(right, COLUMNS, means)
    right.set(title="held-out problems, mean over seeds")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(COEFFICIENTS), default=list(COEFFICIENTS))
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps, 64 samples each")
    parser.add_argument("--problems", type=int, default=256, help="held-out problems per length")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/arithmetic.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.output)
    best, tuning = tune(results, args)
    comparison, data = compare(results, best, args)
    text = (
        f"Tuning split, seed {TUNING_SEED}, %\n\n{tuning}\nTest split, {args.seeds} seeds, mean (lowest to highest), "
    )
    text += f"%; {args.problems} problems per length, {args.steps} optimizer steps of 64 samples\n\n{comparison}\n"
    text += f"{machine_text(results.data['machine'])}\n"
    args.output.with_suffix(".md").write_text(text)
    draw(data, args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
