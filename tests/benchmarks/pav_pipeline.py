"""The whole PAV pipeline on arithmetic in text: collect step values, train a verifier, train policies with it.

    python tests/benchmarks/pav_pipeline.py --output docs/figures/pav_pipeline.json --work pipeline-out

Steps of the shipped base policy are valued by its own rollouts; a verifier learns the values; `PAVTrainer` uses the
progress that it sees under the Best-of-4 of the base policy. GRPO and PRL draw the same number of samples per
optimizer step; PAV's further cost, the rollouts of the verifier's data, is reported next to it. Settings of GRPO and
PRL are those of `arithmetic.py`; PAV's are the best of a grid on the tuning split. `--temperature` makes the prover
another one: the same weights, sampled more surely than the policy. Writes the results, `pav_pipeline.md` and
`pav_pipeline.png`. Everything that is finished is kept, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import Results, machine_text, spread, table
from transformers import TrainerCallback

from tests.benchmarks.arithmetic_pipeline import (
    VerifierData,
    collect_arithmetic,
    right_lines_auroc,
    train_arithmetic_verifier,
)
from trl_prl.demo.arithmetic_training import Method, evaluate_arithmetic, load_arithmetic_policy, train_arithmetic
from trl_prl.report.plots import draw_curves, new_figure, save


METHODS = {"GRPO": Method("GRPO", 5e-5), "PRL": Method("PRL", 5e-5, 0.005)}
LEARNED = "PAV, learned"
# Learning rate and alpha.
SETTINGS = ((1e-4, 5.0), (1e-4, 1.5), (5e-5, 1.5), (5e-5, 0.5))
TUNING_SEED = 1000
COLUMNS = ("main/avg@8", "main/pass@8", "long/avg@8", "long/pass@8")


class Curve(TrainerCallback):
    """Evaluates the policy on held-out problems every few optimizer steps."""

    def __init__(self, every: int, num_problems: int, seed: int) -> None:
        self.every, self.num_problems, self.seed = every, num_problems, seed
        self.points: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.points.append(
                {
                    "optimizer_step": state.global_step,
                    **evaluate_arithmetic(model, "test", self.num_problems, self.seed),
                }
            )


def make_verifier(results: Results, args: argparse.Namespace) -> str:
    """Collect, train, save; returns the verifier's folder."""
    folder = args.work / "verifier"

    def collect_values() -> VerifierData:
        return collect_arithmetic(args.work / "values", args.collect_problems, args.n_cov, args.n_mc, args.temperature)

    def train_verifier() -> dict[str, Any]:
        rows, prover = collect_values().rows, f"the arithmetic policy at temperature {args.temperature:g}"
        start = time.perf_counter()
        verifier, metrics = train_arithmetic_verifier(rows, folder, prover=prover, epochs=args.epochs)
        seconds = time.perf_counter() - start
        return {"metrics": metrics, "seconds": seconds, "right_lines_auroc": right_lines_auroc(verifier, "test")}

    results.get("collection", lambda: collect_values().spending.as_dict())
    results.get("verifier", train_verifier)
    return str(folder)


def run(results: Results, key: str, name: str, method: Method, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once and evaluate on the way, unless that was done before."""

    def compute() -> dict[str, Any]:
        curve = Curve(args.every, args.problems, seed)
        if key == "tune":
            model, _ = train_arithmetic(method, seed, args.steps)
            return {"scores": evaluate_arithmetic(model, "tuning", args.problems, seed)}
        _, logs = train_arithmetic(method, seed, args.steps, callbacks=[curve])
        return {
            "scores": curve.points[-1],
            "points": curve.points,
            "sampled_tokens": sum(entry["completions/mean_length"] for entry in logs) * 64,
        }

    label = f"{key} {name} lr {method.learning_rate:g} c {method.coefficient:g} seed {seed}"
    return results.get(label, compute)


def tune(results: Results, args: argparse.Namespace) -> tuple[Method, str]:
    """Best setting of PAV with the learned verifier by the mean avg@8 of both lengths on the tuning split."""
    rows, scored = [], []
    verifier = make_verifier(results, args)
    for learning_rate, alpha in SETTINGS:
        method = Method("PAV", learning_rate, alpha, verifier, args.best_of_k)
        scores = run(results, "tune", LEARNED, method, TUNING_SEED, args)["scores"]
        scored.append((scores["main/avg@8"] + scores["long/avg@8"], method))
        rows.append([f"{learning_rate:g}", f"{alpha:g}", *(f"{scores[c]:.1f}" for c in COLUMNS)])
    return max(scored, key=lambda pair: pair[0])[1], table(["learning rate", "alpha", *COLUMNS], rows)


def verifier_text(results: Results, runs: dict[str, list[Any]]) -> str:
    """What the verifier knows, and what its data cost next to one training run."""
    collection, verifier = results.data["collection"], results.data["verifier"]
    lines, sampled = verifier["right_lines_auroc"], collection["num_sampled_tokens"]
    one = next(iter(runs.values()))[0]["sampled_tokens"]
    return (
        f"Verifier: {collection['num_rollouts']:,} rollouts, {sampled:,} sampled tokens, {sampled / one:.1f} times "
        f"those of one training run ({one:,.0f}); trained in {verifier['seconds']:.0f} s. Held-out labels: AUROC "
        f"{verifier['metrics']['eval_auroc']:.2f}; right against wrong lines: AUROC {lines['main']:.2f} on four and "
        f"{lines['long']:.2f} on eight.\n"
    )


def draw(runs: dict[str, list[Any]], base: list[dict[str, float]], path: Path) -> None:
    figure, axes = new_figure(4, width=3.4)
    for axis, column in zip(axes, COLUMNS, strict=True):
        curves = {
            name: [[base[i][column], *(p[column] for p in run["points"])] for i, run in enumerate(entries)]
            for name, entries in runs.items()
        }
        steps = [0, *(p["optimizer_step"] for p in next(iter(runs.values()))[0]["points"])]
        draw_curves(axis, curves, x=steps)
        axis.set(title=column, xlabel="optimizer step", ylabel="%")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, LEARNED], default=[*METHODS, LEARNED])
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps, 64 samples each")
    parser.add_argument("--every", type=int, default=60, help="optimizer steps between evaluations")
    parser.add_argument("--problems", type=int, default=256, help="held-out problems per length")
    parser.add_argument("--collect-problems", type=int, default=8000)
    parser.add_argument("--n-cov", type=int, default=4)
    parser.add_argument("--n-mc", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the prover's rollouts")
    parser.add_argument("--best-of-k", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("pipeline-out"), help="folder of step values and verifier")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/pav_pipeline.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.output)
    best, tuning = tune(results, args)
    methods = {name: method for name, method in {**METHODS, LEARNED: best}.items() if name in args.methods}
    base = [
        results.get(
            f"base seed {seed}",
            lambda seed=seed: evaluate_arithmetic(load_arithmetic_policy(), "test", args.problems, seed),
        )
        for seed in range(args.seeds)
    ]
    runs = {
        name: [run(results, "test", name, method, seed, args) for seed in range(args.seeds)]
        for name, method in methods.items()
    }
    scores = {"before": base, **{name: [entry["scores"] for entry in entries] for name, entries in runs.items()}}
    rows = [
        [name, *(spread([entry[column] for entry in entries]) for column in COLUMNS)]
        for name, entries in scores.items()
    ]
    text = (
        f"{verifier_text(results, runs)}\n"
        f"Tuning split, seed {TUNING_SEED}, %\n\n{tuning}\n"
        f"Test split, {args.seeds} seeds, mean (lowest to highest), %; {args.problems} problems per length, "
        f"{args.steps} optimizer steps of 64 samples\n\n{table(['policy', *COLUMNS], rows)}\n"
        f"{machine_text(results.data['machine'])}\n"
    )
    args.output.with_suffix(".md").write_text(text)
    draw(runs, base, args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
