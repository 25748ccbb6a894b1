"""Train on paths with one method a run, many runs at a time, and say what came of them.

    python tests/benchmarks/path_runs.py train "method=GRPO learning_rate=3e-4" --split tuning --folder runs/paths
    python tests/benchmarks/path_runs.py grid runs.txt --split tuning --folder runs/paths --parallel 2
    python tests/benchmarks/path_runs.py table runs/paths --output docs/figures/paths.json

A run leaves one JSON file, and is not done again where that exists. A grid is a file with one run a line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import machine, machine_text, spread, table
from path_training import Run, train_paths

from trl_prl.demo.paths import path_policy_path
from trl_prl.report.plots import STYLES, draw_line, new_figure, save


def parse(text: str) -> Run:
    """A run from `name=value` words."""
    given = dict(word.split("=", 1) for word in text.split())
    kinds = {
        "learning_rate": float,
        "coefficient": float,
        "wander": float,
        "method": str,
        "process_reward": str,
        "options": str,
    }
    return Run(**{name: kinds.get(name, int)(value) for name, value in given.items()})


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    run = parse(args.run)
    path = args.folder / f"{args.split}-{run.name}.json"
    if path.exists():
        return
    start = time.perf_counter()
    _, result = train_paths(run, args.policy, args.split, evaluate_every=args.evaluate_every)
    result |= {"seconds": time.perf_counter() - start, "machine": machine()}
    args.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def grid(args: argparse.Namespace) -> None:
    lines = [line.strip() for line in args.file.read_text().splitlines() if line.strip() and line[0] != "#"]
    common = [f"--{name}={getattr(args, name)}" for name in ("split", "folder", "policy", "evaluate_every")]

    def one(line: str) -> None:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, __file__, "train", line, *common], capture_output=True, text=True)
        tail = "" if done.returncode == 0 else done.stderr[-1500:]
        print(f"{time.perf_counter() - start:6.0f} s, exit {done.returncode}: {line} {tail}", flush=True)

    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(one, lines))


COLUMNS = ("near/avg", "near/pass@8", "far/avg", "far/pass@8", "far/pass@64", "far/kl")
# What is compared on the way, and when: runs end at different optimizer steps.
ON_THE_WAY = {"30": ("far/avg",), "60": ("far/avg", "far/pass@8", "near/avg"), "90": ("far/avg",)}


def credit_of(run: dict[str, Any]) -> str:
    """Where the process rewards of a run come from."""
    process_reward = run["process_reward"]
    if run["method"] != "PAV":
        return ""
    if process_reward == "exact":
        return f", exact values of wander {run['wander']:g}"
    if "family=implicit" in process_reward:
        return f", verifier at {process_reward.partition('learning_rate=')[2].partition(',')[0]}"
    return ", refreshed verifier" if "refresh_every" in process_reward else ", learned verifier"


def label_of(run: dict[str, Any]) -> str:
    """Method and settings of a run, without those of [`setting_of`] and its seed."""
    coefficient = f", {run['coefficient']:g}" if run["coefficient"] else ""
    method = "PRIME" if "family=implicit" in run["process_reward"] else run["method"]
    best_of_k = f", best of {run['options'].partition('best_of_k=')[2][0]}" if "best_of_k" in run["options"] else ""
    return method + coefficient + credit_of(run) + best_of_k


def setting_of(result: dict[str, Any]) -> tuple[str, str, str, int]:
    """Split, learning rate, batch and length: runs that agree in these and in the seed see the same problems."""
    run = result["run"]
    batch = f"{run['num_prompts']} x {run['num_generations']}"
    return result["split"], f"{run['learning_rate']:g}", batch, run["max_steps"]


def grouped(runs: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Runs that differ in their seed alone."""
    groups: dict[Any, list[Any]] = {}
    for result in runs:
        groups.setdefault(key(result), []).append(result)
    return dict(sorted(groups.items()))


def last(result: dict[str, Any]) -> dict[str, float]:
    """Scores of a run at its end."""
    return result["scores"][max(result["scores"], key=int)]


def draw(runs: dict[str, Any], path: Path) -> None:
    """Methods with several seeds on the test split: far goals on the way, and at the end against the KL."""
    figure, axes = new_figure(3, 4.4)
    methods = grouped(
        (one for one in runs.values() if one["split"] == "test"),
        lambda one: label_of(one["run"]) + (", short" if one["run"]["max_steps"] < 100 else ""),
    )
    several = {label: members for label, members in methods.items() if len(members) > 1}
    for index, (label, members) in enumerate(several.items()):
        points: dict[int, list[float]] = {}
        for step, scores in (item for one in members for item in one["scores"].items()):
            points.setdefault(int(step), []).append(scores["far/avg"])
        # Runs end at different steps: only those that all seeds have.
        curve = {step: values for step, values in sorted(points.items()) if len(values) == len(members)}
        band = ([min(values) for values in curve.values()], [max(values) for values in curve.values()])
        draw_line(axes[0], index, label, list(curve), [fmean(values) for values in curve.values()], band)
        for axis, name in ((axes[1], "far/avg"), (axes[2], "far/pass@64")):
            style = STYLES[index % len(STYLES)] | {"linestyle": "none"}
            axis.plot([last(one)["far/kl"] for one in members], [last(one)[name] for one in members], **style)
    axes[0].set(xlabel="optimizer step", ylabel="far goals reached, %")
    axes[1].set(xlabel="KL to the start, nats", ylabel="far goals reached at the end, %")
    axes[2].set(xlabel="KL to the start, nats", ylabel="far goals, pass@64 at the end, %")
    axes[0].legend(frameon=False, fontsize=7)
    save(figure, path)


def key_of(result: dict[str, Any]) -> tuple[Any, ...]:
    """What is a row of a table: all but the seed."""
    split, *others = setting_of(result)
    return split, label_of(result["run"]), *others


KEPT = ("run", "split", "curve", "scores", "seconds", "num_tokens", "machine")
ACCURACIES = (10, 20, 40, 60)
COLUMNS_OF_KEY = ("split", "method", "learning rate", "prompts x samples", "longest")


def on_the_way(runs: dict[str, Any]) -> str:
    """Every method at the same optimizer steps, and how far it is ahead of GRPO with the same problems."""
    baselines = {
        (*setting_of(one), one["run"]["seed"]): one["scores"]
        for one in runs.values()
        if label_of(one["run"]) == "GRPO"
    }
    rows = []
    for key, members in grouped(runs.values(), key_of).items():
        cells = []
        for step, names in ON_THE_WAY.items():
            there = [one["scores"][step] for one in members if step in one["scores"]]
            cells += [f"{spread([s[name] for s in there])}; {len(there)}" if there else "" for name in names]
            ahead = [
                one["scores"][step]["far/avg"] - baseline[step]["far/avg"]
                for one in members
                if (baseline := baselines.get((*setting_of(one), one["run"]["seed"]), {})) is not one["scores"]
                and step in one["scores"]
                and step in baseline
            ]
            cells.append(f"{spread(ahead)}; {len(ahead)}" if ahead else "")
        if any(cells):
            rows.append([*key, *cells])
    columns = [f"{name} at {step}" for step, names in ON_THE_WAY.items() for name in (*names, "far/avg - GRPO's")]
    return table([*COLUMNS_OF_KEY, *columns], rows)


def at_the_end(runs: dict[str, Any]) -> str:
    """Every method at the end of its runs."""
    rows = []
    for key, members in grouped(runs.values(), key_of).items():
        steps = sorted(len(one["curve"]) for one in members)
        ends = [spread([last(one)[name] for one in members]) for name in COLUMNS]
        rows.append([*key, len(members), f"{steps[0]} to {steps[-1]}", *ends])
    return table([*COLUMNS_OF_KEY, "seeds", "steps", *COLUMNS], rows)


def steps_to(result: dict[str, Any], accuracy: float) -> float | None:
    """Optimizer steps to an accuracy on far goals, interpolated; `None` where it was not reached."""
    curve = sorted((int(step), scores["far/avg"]) for step, scores in result["scores"].items())
    for (before, low), (after, high) in pairwise(curve):
        if low < accuracy <= high:
            return before + (after - before) * (accuracy - low) / (high - low)
    return None


def to_accuracies(runs: dict[str, Any]) -> str:
    """What each method of several seeds needs for accuracies on far goals: samples, and tokens where counted."""
    rows = []
    for key, members in grouped(runs.values(), key_of).items():
        if len(members) < 2 or key[0] != "test":
            continue
        cells = []
        for accuracy in ACCURACIES:
            steps = [(one, step) for one in members if (step := steps_to(one, accuracy)) is not None]
            per_step = members[0]["run"]["num_prompts"] * members[0]["run"]["num_generations"]
            tokens = [
                one["num_tokens"] * step / len(one["curve"]) / 1e6 for one, step in steps if one.get("num_tokens")
            ]
            needed = [step * per_step / 1000 for _, step in steps]
            cells.append(f"{spread(needed)}; {len(steps)} of {len(members)}" if steps else "not reached")
            cells.append(spread(tokens) if tokens else "")
        rows.append([*key, *cells])
    columns = [name for a in ACCURACIES for name in (f"thousand samples to {a} %", f"M tokens to {a} %")]
    return table([*COLUMNS_OF_KEY, *columns], rows)


def show(args: argparse.Namespace) -> None:
    """Keep the runs of folders in one file, and write their tables and their figure next to it."""
    runs = json.loads(args.output.read_text()) if args.output.exists() else {}
    for path in sorted(path for folder in args.folders for path in folder.glob("*.json")):
        result = json.loads(path.read_text())
        result["curve"] = [round(value, 4) for value in result["curve"]]
        result["scores"] = {
            step: {name: round(value, 2) for name, value in scores.items()}
            for step, scores in result["scores"].items()
        }
        runs[path.stem] = {name: result[name] for name in KEPT if name in result}
    args.output.write_text(json.dumps(runs, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    draw(runs, args.output.with_suffix(".png"))
    machines = "\n".join(dict.fromkeys(machine_text(result["machine"]) for result in runs.values()))
    text = (
        f"At the end, mean (lowest to highest)\n\n{at_the_end(runs)}\n"
        f"At the same optimizer steps; behind the semicolon the number of seeds\n\n{on_the_way(runs)}\n"
        "Policy samples and their tokens to fixed accuracies on far goals (avg), without a verifier's; behind the "
        f"semicolon how many seeds got there\n\n{to_accuracies(runs)}\n{machines}\n"
    )
    args.output.with_suffix(".md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("train", train), ("grid", grid)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--split", default="tuning")
        command.add_argument("--folder", type=Path, default=Path("runs/paths"))
        command.add_argument("--policy", default=path_policy_path())
        command.add_argument("--evaluate_every", type=int, default=50)
    commands.choices["train"].add_argument("run")
    commands.choices["grid"].add_argument("file", type=Path)
    commands.choices["grid"].add_argument("--parallel", type=int, default=1)
    command = commands.add_parser("table")
    command.set_defaults(function=show)
    command.add_argument("folders", type=Path, nargs="*")
    command.add_argument("--output", type=Path, default=Path("docs/figures/paths.json"))
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
