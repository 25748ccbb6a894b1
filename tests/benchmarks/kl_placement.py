"""Where the KL goes, at six betas, on the planted task: success and KL against the exact optimum.

    python -m tests.benchmarks.kl_placement --seeds 2 --output docs/figures/kl_placement.json

Real trainers, outcome reward and KL alone, no prover. Finished runs are kept, so it can be interrupted. Writes the
results, `kl_placement.md` and `kl_placement.png` beside them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.benchmarks.common import Results, machine_text, spread, table
from tests.benchmarks.planted_samples import sample_planted_tokens
from trl_prl.commands.quickstart import quiet
from trl_prl.demo.planted import planted_reward
from trl_prl.demo.planted_policy import build_base_policy, build_planted_tokenizer, planted_dataset
from trl_prl.demo.planted_training import PAPER_FIELDS, PlantedRun
from trl_prl.demo.training import OnStep, cpu_fields, train_quietly
from trl_prl.report.plots import STYLES, new_figure, save
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer


BETAS = (0.01, 0.03, 0.1, 0.2, 0.4, 1.0)
# One layer learns the task; a base of this prover succeeds often enough for the outcome alone to teach.
BASE: dict[str, Any] = {"gamma": 12.0, "num_iterations": 150, "num_layers": 1, "hidden_size": 64}
BASE["learning_rate"] = 3e-3
# The learning rate falls to zero, so that policies come to rest where the KL puts them and not where the noise does.
FIELDS: dict[str, Any] = {"learning_rate": 2e-3, "lr_scheduler_type": "linear", "step_length": 2}
FIELDS.update(record_run=False, radar_window=0)
GROUPS = {"scale_rewards": "group", "num_generations": 8}
PLAIN: dict[str, dict[str, Any]] = {
    "loss": {"kl_placement": "loss"},
    "advantage, token": {"step_level": "token"},
    "advantage, step": {"step_level": "step"},
    "advantage, step_end": {"step_level": "step_end"},
    "reward": {"kl_placement": "reward"},
}
SCALED = {f"{name}, scaled": {**PLAIN[name], **GROUPS} for name in ("advantage, token", "reward")}
ARMS = {**PLAIN, **SCALED}
# Repeated with three times the optimizer steps and one seed: is anything still to come?
LONG = {"loss": 0.4, "advantage, token": 0.4, "reward, scaled": 0.01}
# Rollouts are averaged over so many windows of the run, which shows whether it has come to rest.
NUM_WINDOWS = 10
EQUAL_KL = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)


def best_success(p0: float, beta: float) -> float:
    """Success rate of the policy that maximises success − beta · KL, from a reference with success rate `p0`."""
    weight = p0 * math.exp(1 / beta)
    return weight / (1 - p0 + weight)


def best_objective(p0: float, beta: float) -> float:
    """The largest success − beta · KL: beta times the logarithm of the mean of exp(reward / beta)."""
    return beta * math.log1p(p0 * math.expm1(1 / beta))


def least_kl(p: float, p0: float) -> float:
    """Nats from a reference with success rate `p0` to the nearest policy with success rate `p`."""
    return sum(a * math.log(a / b) for a, b in ((p, p0), (1 - p, 1 - p0)) if a > 0)


def per_completion(tokens: Tensor, values: Tensor, eos: int) -> float:
    """Mean over completions of the sum of `values` of shape (N, T), up to and including the end token."""
    ended = (tokens == eos).cumsum(1) - (tokens == eos).long() > 0
    return float(values.masked_fill(ended, 0.0).sum(1).mean())


@torch.no_grad()
def measure(policy: Any, base: Any, num_samples: int, seed: int = 1000) -> dict[str, float]:
    """Success, KL to the base and entropy of a policy, in nats per completion, from samples.

    The terms of KL and entropy are exact at every sampled prefix: only the prefixes are random.
    """
    tokenizer = build_planted_tokenizer()
    tokens = sample_planted_tokens(policy, num_samples, seed)
    eos = tokenizer.eos_token_id
    prefixes = torch.cat([torch.full((num_samples, 1), eos), tokens[:, :-1]], dim=1)
    logps, base_logps = (model(input_ids=prefixes).logits.log_softmax(-1) for model in (policy, base))
    rewards = planted_reward(tokenizer.batch_decode(tokens, skip_special_tokens=True))
    return {
        "success": statistics.fmean(rewards),
        "kl": per_completion(tokens, (logps.exp() * (logps - base_logps)).sum(-1), eos),
        "entropy": per_completion(tokens, -(logps.exp() * logps).sum(-1), eos),
    }


def train_planted_prl(
    seed: int, base: str, max_steps: int = 100, on_step: OnStep | None = None, **fields: Any
) -> PlantedRun:
    """Train with [`PRLTrainer`] on the planted task: outcome rewards and the KL to the base policy, no prover.

    Batch and optimizer are those of [`train_planted`]. Unscaled rewards and the loss's constant divisor put reward and
    KL in the same units wherever the KL is placed, so `beta` means the same everywhere.

    Args:
        seed (`int`):
            Seed of the rollouts.
        base (`str`):
            Folder of the base policy, a saved [`build_base_policy`]; the reference is loaded from it too.
        max_steps (`int`, *optional*, defaults to `100`):
            Optimizer steps.
        on_step (`Callable`, *optional*):
            Called with every optimizer step's number and metrics.
        **fields:
            Fields of [`PRLConfig`], such as `beta` and `kl_placement`.

    Returns:
        [`PlantedRun`]: Accuracy per optimizer step and the trained policy.
    """
    with tempfile.TemporaryDirectory() as output_dir:
        args = PRLConfig(**{**cpu_fields(output_dir), **PAPER_FIELDS, "max_steps": max_steps, "seed": seed, **fields})
        trainer = PRLTrainer(
            base, planted_reward, args, planted_dataset(max(64, max_steps)), processing_class=build_planted_tokenizer()
        )
        logs = train_quietly(trainer, on_step)
    return PlantedRun([entry["reward"] for entry in logs], trainer.model)


def train_and_measure(
    base: str, num_samples: int, fields: dict[str, Any], beta: float, seed: int, num_steps: int
) -> dict[str, Any]:
    """One run: the trained policy measured, and the mean success and KL of the rollouts in windows of the run."""
    logs: list[tuple[float, float]] = []
    started = time.process_time()
    run = train_planted_prl(
        seed,
        base,
        num_steps,
        lambda _, metrics: logs.append((metrics["reward"], metrics["process/kl_completion"])),
        **{**FIELDS, **fields, "beta": beta},
    )
    size = max(1, num_steps // NUM_WINDOWS)
    windows = [
        [round(statistics.fmean(column), 4) for column in zip(*logs[start : start + size], strict=True)]
        for start in range(0, len(logs), size)
    ]
    found = measure(run.model, load(base), num_samples)
    return {**found, "windows": windows, "seconds": round(time.process_time() - started, 1)}


def load(folder: str) -> Any:
    return LlamaForCausalLM.from_pretrained(folder).eval()


def run(results: Results, args: argparse.Namespace) -> dict[str, Any]:
    """All runs, a seed after the other, so that an interrupted script has whole seeds."""
    settings = {"steps": args.steps, "samples": args.samples, "base": BASE, "betas": list(BETAS)}
    if results.get("settings", lambda: settings) != settings:
        raise SystemExit(f"{args.output} holds runs of {results.data['settings']}. Use another --output.")
    with tempfile.TemporaryDirectory() as base:
        build_base_policy(0, **BASE).save_pretrained(base)
        results.get("base", lambda: measure(load(base), load(base), 16 * args.samples))
        every = itertools.product(range(args.seeds), BETAS, ARMS)
        jobs = [(f"{name}|{beta:g}|{seed}", name, beta, seed, args.steps) for seed, beta, name in every]
        jobs += [(f"{name}, long|{beta:g}|0", name, beta, 0, 3 * args.steps) for name, beta in LONG.items()]
        for key, name, *job in jobs:
            results.get(key, partial(train_and_measure, base, args.samples, ARMS[name], *job))
    return results.data


def judged(data: dict[str, Any], name: str, beta: float) -> list[dict[str, float]]:
    """The seeds of an arm at a beta, each compared with the optimum."""
    p0, found = data["base"]["success"], []
    for one in (data[key] for key in data if key.rpartition("|")[0] == f"{name}|{beta:g}"):
        share = (one["success"] - beta * one["kl"]) / best_objective(p0, beta)
        course = [success - beta * kl for success, kl in one["windows"]]
        found.append(
            {
                "success": 100 * one["success"],
                "kl": one["kl"],
                "share": 100 * share,
                "excess": one["kl"] - least_kl(one["success"], p0),
                "entropy": one["entropy"],
                "still": statistics.fmean(course[-2:]) - statistics.fmean(course[-4:-2]),
            }
        )
    return found


def all_judged(data: dict[str, Any]) -> dict[float, dict[str, list[dict[str, float]]]]:
    """By beta and arm; where a script was stopped within a seed, only the seeds that every arm has."""
    found = {}
    for beta in BETAS:
        arms = {name: judged(data, name, beta) for name in ARMS}
        found[beta] = {name: runs[: min(map(len, arms.values()))] for name, runs in arms.items()}
    return found


def markdown(data: dict[str, Any]) -> str:
    """A table for each beta, and one of the success rates at equal KL."""
    p0, arms, blocks = data["base"]["success"], all_judged(data), []

    def row(name: str, runs: list[dict[str, float]]) -> list[str]:
        return [name, *(spread([one[key] for one in runs], count) for key, count in digits.items())]

    digits = {"success": 1, "kl": 2, "share": 1, "excess": 2, "entropy": 1, "still": 3}
    header = ["KL in", "success, %", "KL, nats", "J / J*, %", "excess KL, nats", "entropy, nats", "change of J"]
    for beta in BETAS:
        p, num_seeds = best_success(p0, beta), len(arms[beta]["loss"])
        rows = [["optimum, closed form", f"{100 * p:.1f}", f"{least_kl(p, p0):.2f}", "100", "0.00", "", ""]]
        rows += [row(name, runs) for name, runs in arms[beta].items()]
        title = f"beta = {beta:g}, J* = {best_objective(p0, beta):.3f}, {num_seeds} seeds"
        blocks.append(f"{title}\n\n{table(header, rows)}")
    rows = [row(f"{name}, beta {beta:g}", judged(data, f"{name}, long", beta)) for name, beta in LONG.items()]
    blocks.append(f"Three times the optimizer steps, one seed\n\n{table(header, rows)}")
    rates = np.linspace(p0, 1, 1001)
    rows = [["optimum", *(f"{100 * np.interp(kl, [least_kl(p, p0) for p in rates], rates):.1f}" for kl in EQUAL_KL)]]
    for name in ARMS:
        points = [(0.0, 100 * p0), *sorted(mean_point(arms[beta][name]) for beta in BETAS)]
        kls, successes = zip(*points, strict=True)
        rows.append([name, *(f"{np.interp(kl, kls, successes):.1f}" if kl <= kls[-1] else "" for kl in EQUAL_KL)])
    header = ["KL in", *(f"at {kl:g} nats" for kl in EQUAL_KL)]
    blocks.append(f"Success in % at equal KL, between the means of neighbouring betas\n\n{table(header, rows)}")
    return "\n".join(blocks)


def mean_point(runs: list[dict[str, float]]) -> tuple[float, float]:
    """Mean KL and success of some seeds."""
    return statistics.fmean(one["kl"] for one in runs), statistics.fmean(one["success"] for one in runs)


def draw(data: dict[str, Any], path: Path) -> None:
    """Success against KL, unscaled and with rewards scaled in groups, and J / J* against beta; a dot for every run."""
    p0, arms = data["base"]["success"], all_judged(data)
    figure, axes = new_figure(3, height=4.0)
    rates = np.linspace(p0, 1, 401)
    for axis, names in ((axes[0], PLAIN), (axes[1], SCALED)):
        axis.plot([least_kl(p, p0) for p in rates], 100 * rates, color="0.7", linewidth=4, label="optimum")
        axis.set(xlabel="KL to the base, nats per completion", ylabel="success, %", xlim=(0, 8.5))
        for name in names:
            style = STYLES[list(PLAIN).index(name.removesuffix(", scaled"))]
            runs = [one for beta in BETAS for one in arms[beta][name]]
            axis.plot(*zip(*(mean_point(arms[beta][name]) for beta in BETAS), strict=True), label=name, **style)
            axis.scatter([one["kl"] for one in runs], [one["success"] for one in runs], s=8, color=style["color"])
            shares = [statistics.fmean(one["share"] for one in arms[beta][name]) for beta in BETAS]
            axes[2].plot(BETAS, shares, **style, alpha=0.4 if name in SCALED else 1.0)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set_title("(a) unscaled rewards", fontsize=10)
    axes[1].set_title("(b) rewards scaled in groups of 8", fontsize=10)
    axes[2].set(xscale="log", xlabel="beta", ylabel="J / J*, %", ylim=(-5, 105))
    axes[2].set_title("(c) share of the best objective; pale: scaled", fontsize=10)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of every run")
    parser.add_argument("--samples", type=int, default=4096, help="samples of every trained policy")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/kl_placement.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    results = Results(args.output)
    data = run(results, args)
    base = data["base"]
    text = (
        f"Base policy: success {100 * base['success']:.2f} %, entropy {base['entropy']:.1f} nats. {args.steps} "
        f"optimizer steps of 64 rollouts, {args.samples} samples of every trained policy, mean over seeds "
        "(lowest to highest). J = success − beta · KL, J* its maximum; excess KL: over the least KL at that success; "
        f"change of J: its mean over the last fifth of the run less that over the fifth before.\n\n{markdown(data)}\n"
        f"{machine_text(data['machine'])}\n"
    )
    args.output.with_suffix(".md").write_text(text)
    draw(data, args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
