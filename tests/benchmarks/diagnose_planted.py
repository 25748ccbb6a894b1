"""The diagnosis of provers against measured training on the planted task, and its estimates against exact terms.

    python -m tests.benchmarks.diagnose_planted --output docs/figures/diagnosis.json

Needs `docs/figures/planted.json`, which `planted_figure3.py` writes: optimizer steps to 90 % accuracy over prover
strength, for two base policies and five seeds. Writes the results, `diagnosis.md` and `diagnosis.png`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tests.benchmarks.common import Results, machine_text, table
from tests.planted_policies import (
    constant_policy,
    fitted_policy,
    planted_terms,
    policy_values,
    sampled_planted_states,
)
from trl_prl.demo.planted_policy import build_base_policy
from trl_prl.demo.training import steps_to_accuracy
from trl_prl.diagnosis.credit import credit
from trl_prl.diagnosis.moments import Candidate, problem_sums
from trl_prl.diagnosis.terms import Terms, bootstrap_terms
from trl_prl.report.plots import STYLES, new_figure, save


GAMMAS = (1.0, 3.0, 5.0, 8.0, 10.0, 15.0, 30.0, 100.0, 1000.0)
BASES = (50, 10)
SEEDS = 5
LIMIT = 200
STRATA = (1, 2, 3, 4, 5, 10)
SAMPLED_GAMMAS = (5.0, 30.0, 100.0)


def measured_steps(planted: dict[str, Any], iterations: int) -> np.ndarray:
    """Optimizer steps to 90 %, of shape (seeds, gammas); a run that never got there counts with its length."""
    runs = [[planted[f"b {iterations} gamma {gamma:g} seed {seed}"] for gamma in GAMMAS] for seed in range(SEEDS)]
    return np.array([[steps_to_accuracy(run, 0.9) or LIMIT for run in row] for row in runs], dtype=float)


def scores(policy: np.ndarray) -> dict[str, list[float]]:
    """Everything that provers could be ranked by, at the states of a policy."""
    found = {f"credit, {n} strata": credit(planted_terms(policy, GAMMAS, n), 1.0, 0.0) for n in STRATA}
    terms: Terms = planted_terms(policy, GAMMAS)
    found["sum of the terms"] = terms.total
    found["distinguishability"] = terms.pooled("distinguishability")
    found["alignment"] = terms.pooled("alignment")
    found["correlation of the advantages"] = terms.correlation
    return {name: [float(value) for value in values] for name, values in found.items()}


def agreement(steps: np.ndarray, found: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Rank correlation of mean scores with fewer steps; its spread over seeds; how often chance does as well."""
    rng = np.random.default_rng(seed)
    value = spearmanr(found.mean(0), -steps.mean(0)).statistic
    draws = []
    for _ in range(2000):
        seeds = rng.integers(SEEDS, size=SEEDS)
        draws.append(spearmanr(found[seeds].mean(0), -steps[seeds].mean(0)).statistic)
    shuffled = [spearmanr(rng.permutation(found.mean(0)), -steps.mean(0)).statistic for _ in range(5000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    chosen = int(found.mean(0).argmax())
    return {
        "rank_correlation": value,
        "low": float(low),
        "high": float(high),
        "chance": float(np.mean(np.array(shuffled) >= value - 1e-12)),
        "chosen": GAMMAS[chosen],
        "steps_of_chosen": float(steps.mean(0)[chosen]),
        "fewest_steps": float(steps.mean(0).min()),
    }


def recovery(gamma: float, num_problems: int, num_rollouts: int, num_sets: int) -> dict[str, Any]:
    """How often 95 % intervals of sampled data sets contain the exact terms, and mean estimates over exact ones."""
    policy = constant_policy(gamma)
    exact = planted_terms(policy, [gamma, *SAMPLED_GAMMAS])
    candidates = [Candidate(number) for number in range(1 + len(SAMPLED_GAMMAS))]
    covered, ratios = [], []
    for seed in range(num_sets):
        states = sampled_planted_states(policy, SAMPLED_GAMMAS, num_problems, num_rollouts, seed)
        _, sums = problem_sums(states, candidates)
        resampled = bootstrap_terms(sums, 400, seed)
        row, ratio = [], []
        for name in ("distinguishability", "alignment"):
            draws, true = resampled.pooled(name), exact.pooled(name)
            low, high = np.quantile(draws, [0.025, 0.975], axis=0)
            row.append((low <= true) & (true <= high))
            ratio.append(draws.mean(0) / true)
        covered.append(row)
        ratios.append(ratio)
    means = np.mean(ratios, axis=0)
    return {
        "success": float(policy_values(policy)[0, -1]),
        "coverage": np.mean(covered, axis=0).tolist(),
        "ratio": means.tolist(),
        "ratio_error": (np.std(ratios, axis=0) / np.sqrt(num_sets)).tolist(),
    }


def draw(found: dict[int, dict[str, np.ndarray]], steps: dict[int, np.ndarray], path: Path) -> None:
    figure, (training, diagnosis, terms) = new_figure(3)
    panels = (
        (training, steps, "(a) measured", "optimizer steps to 90 %"),
        (diagnosis, {b: found[b]["credit, 4 strata"] for b in BASES}, "(b) credit at alpha = 1", "correlation"),
        (terms, {b: found[b]["sum of the terms"] for b in BASES}, "(c) sum of the two terms", "variance"),
    )
    for axis, curves, title, label in panels:
        for (iterations, runs), style in zip(curves.items(), STYLES, strict=False):
            axis.plot(GAMMAS, runs.mean(0), label=f"base of {iterations}", markersize=5, **style)
            axis.fill_between(GAMMAS, runs.min(0), runs.max(0), color=style["color"], alpha=0.15)
        axis.set(title=title, xlabel="gamma of the prover", ylabel=label, xscale="log")
        axis.legend(frameon=False, fontsize=8)
    terms.set_yscale("log")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", type=Path, default=Path("docs/figures/planted.json"))
    parser.add_argument("--sets", type=int, default=100, help="sampled data sets per row of the last table")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/diagnosis.json"))
    args = parser.parse_args()
    planted, results = json.loads(args.planted.read_text()), Results(args.output)
    found: dict[int, dict[str, np.ndarray]] = {}
    steps = {iterations: measured_steps(planted, iterations) for iterations in BASES}
    for iterations in BASES:
        runs = [
            results.get(
                f"scores {iterations} seed {seed}",
                lambda seed=seed, iterations=iterations: scores(
                    fitted_policy(build_base_policy(seed, num_iterations=iterations))
                ),
            )
            for seed in range(SEEDS)
        ]
        found[iterations] = {name: np.array([run[name] for run in runs]) for name in runs[0]}

    header = ["ranked by", *(f"base of {b}" for b in BASES), *(f"chosen gamma, base of {b}" for b in BASES)]
    rows = []
    for name in found[BASES[0]]:
        entries = [agreement(steps[b], found[b][name]) for b in BASES]
        results.data[f"agreement {name}"] = dict(zip(map(str, BASES), entries, strict=True))
        rows.append(
            [name]
            + [f"{e['rank_correlation']:.2f} ({e['low']:.2f} to {e['high']:.2f}), {e['chance']:.3f}" for e in entries]
            + [f"{e['chosen']:g}: {e['steps_of_chosen']:.0f} of {e['fewest_steps']:.0f}" for e in entries]
        )
    text = "Rank correlation with fewer optimizer steps (resampled seeds), and how often a random order does as well; "
    text += f"optimizer steps of the chosen prover, and of the best one\n\n{table(header, rows)}\n"
    curves = [
        [f"{gamma:g}"]
        + [f"{steps[b].mean(0)[i]:.0f}" for b in BASES]
        + [f"{found[b]['credit, 4 strata'].mean(0)[i]:.2f}" for b in BASES]
        + [f"{found[b]['sum of the terms'].mean(0)[i]:.5f}" for b in BASES]
        for i, gamma in enumerate(GAMMAS)
    ]
    header = ["gamma", *(f"{what}, base of {b}" for what in ("optimizer steps", "credit", "sum") for b in BASES)]
    text += f"Means of {SEEDS} seeds\n\n{table(header, curves)}\n"

    rows = []
    for gamma, problems, rollouts in ((15.0, 100, 8), (15.0, 100, 4), (5.0, 100, 8), (5.0, 400, 8)):
        entry = results.get(
            f"recovery {gamma:g} {problems} {rollouts} {args.sets}",
            lambda g=gamma, p=problems, r=rollouts: recovery(g, p, r, args.sets),
        )
        rows.append(
            [f"{100 * entry['success']:.1f} %", problems, rollouts]
            + [
                f"{min(values[k]):.{digits}f} to {max(values[k]):.{digits}f}"
                for values, digits in ((entry["coverage"], 2), (entry["ratio"], 2))
                for k in (0, 1)
            ]
        )
    header = ["base policy's success", "problems", "rollouts", "coverage, distinguishability", "coverage, alignment",
              "estimate / exact, distinguishability", "estimate / exact, alignment"]  # fmt: skip
    text += f"{args.sets} sampled data sets per row, lowest to highest over four provers\n\n{table(header, rows)}\n"
    text += f"\n{machine_text(results.data['machine'])}\n"
    args.output.write_text(json.dumps(results.data, indent=1))
    args.output.with_suffix(".md").write_text(text)
    draw(found, steps, args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
