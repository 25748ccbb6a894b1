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
from concurrent.futures import ThreadPoolExecutor
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


ON_THE_WAY = ("60", "90")
COLUMNS = ("near/avg", "near/pass@8", "far/avg", "far/pass@8", "far/pass@64")


def credit_of(process_reward: str) -> str:
    if process_reward == "exact":
        return ""
    if "family=implicit" in process_reward:
        return f", PRIME at {process_reward.partition('learning_rate=')[2].partition(',')[0]}"
    return ", refreshed verifier" if "refresh_every" in process_reward else ", learned verifier"


def draw(runs: dict[str, Any], path: Path) -> None:
    """Methods with several seeds on the test split: far goals on the way, and at the end against the KL."""
    figure, axes = new_figure(3, 4.4)
    methods: dict[str, list[Any]] = {}
    for result in runs.values():
        if result["split"] == "test":
            run = result["run"]
            label = run["method"] + (f", {run['coefficient']:g}" if run["coefficient"] else "")
            methods.setdefault(label + credit_of(run["process_reward"]), []).append(result)
    several = {label: members for label, members in methods.items() if len(members) > 1}
    for index, (label, members) in enumerate(several.items()):
        steps = sorted(set.intersection(*[set(map(int, m["scores"])) for m in members]))
        curves = [[m["scores"][str(step)]["far/avg"] for m in members] for step in steps]
        band = ([min(values) for values in curves], [max(values) for values in curves])
        draw_line(axes[0], index, label, steps, [fmean(values) for values in curves], band)
        ends = [m["scores"][max(m["scores"], key=int)] for m in members]
        for axis, name in ((axes[1], "far/avg"), (axes[2], "far/pass@64")):
            style = STYLES[index % len(STYLES)] | {"linestyle": "none"}
            axis.plot([end["far/kl"] for end in ends], [end[name] for end in ends], label=label, **style)
    axes[0].set(xlabel="optimizer step", ylabel="far goals reached, %")
    axes[1].set(xlabel="KL to the start, nats", ylabel="far goals reached at the end, %")
    axes[2].set(xlabel="KL to the start, nats", ylabel="far goals, pass@64 at the end, %")
    axes[0].legend(frameon=False, fontsize=7)
    save(figure, path)


def show(args: argparse.Namespace) -> None:
    """Keep the runs of folders in one file, and write their table next to it."""
    runs = json.loads(args.output.read_text()) if args.output.exists() else {}
    for path in sorted(path for folder in args.folders for path in folder.glob("*.json")):
        result = json.loads(path.read_text())
        result["curve"] = [round(value, 4) for value in result["curve"]]
        result["scores"] = {
            step: {name: round(value, 2) for name, value in scores.items()}
            for step, scores in result["scores"].items()
        }
        runs[path.stem] = {name: result[name] for name in ("run", "split", "curve", "scores", "seconds", "machine")}
    args.output.write_text(json.dumps(runs, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for result in runs.values():
        run = result["run"]
        setting = (run["method"], run["learning_rate"], run["coefficient"], run["num_prompts"], run["num_generations"])
        verifier = credit_of(run["process_reward"])
        groups.setdefault((result["split"], *setting, run["wander"], verifier), []).append(result)
    rows = []
    for (split, method, lr, coefficient, prompts, n, wander, verifier), members in sorted(groups.items()):
        ends = [m["scores"][max(m["scores"], key=int)] for m in members]
        on_the_way = [[m["scores"][s]["far/avg"] for m in members if s in m["scores"]] for s in ON_THE_WAY]
        kl = [end["far/kl"] for end in ends]
        steps = sorted(len(m["curve"]) for m in members)
        setting = (
            f"lr {lr:g}" + (f", {coefficient:g}" if coefficient else "") + (f", w {wander:g}" if wander != 0.3 else "")
        )
        setting += verifier
        rows.append(
            [split, method, setting, f"{prompts} x {n}", len(members), f"{steps[0]} to {steps[-1]}"]
            + [spread([end[name] for end in ends]) for name in COLUMNS]
            + [*(spread(far) if far else "" for far in on_the_way), spread(kl)]
        )
    header = [
        "split",
        "method",
        "setting",
        "prompts x samples",
        "seeds",
        "steps",
        *COLUMNS,
        *(f"far/avg at step {step}" for step in ON_THE_WAY),
        "far KL",
    ]
    machines = dict.fromkeys(machine_text(result["machine"]) for result in runs.values())
    draw(runs, args.output.with_suffix(".png"))
    text = "\n".join([table(header, rows), *machines]) + "\n"
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
