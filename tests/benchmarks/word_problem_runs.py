"""GRPO, PRL and PAV on a small language model and word problems, from a supervised start to search with a verifier.

    python tests/benchmarks/word_problem_runs.py --model SmolLM2-135M-Instruct --out runs/words --preset cpu
    python tests/benchmarks/word_problem_runs.py --out runs/words --stage report

Without `--stage` all is done: the supervised start, step values and a verifier, search, and the training runs,
`--parallel` at a time in processes of their own. What is finished is kept, and not done again; an interrupted training
goes on from its last checkpoint. `--size name=value` changes any of the sizes of `word_problem_lab.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from common import machine_text, spread, table


RUNS = "GRPO:0 PRL:0 PAV:0 GRPO:1 PRL:1 PAV:1"
STAGES = ("sft", "evaluate", "collect", "verifier", "search", "rl", "report", "all")


def make_lab(args: argparse.Namespace) -> Any:
    """The stages' common ground; here, as it brings in everything heavy."""
    import torch
    from word_problem_lab import PRESETS, Lab

    torch.set_num_threads(args.threads)
    sizes = PRESETS[args.preset]
    kinds = {field.name: type(getattr(sizes, field.name)) for field in dataclasses.fields(sizes)}
    given = dict(text.split("=", 1) for text in args.size)
    sizes = dataclasses.replace(sizes, **{name: kinds[name](value) for name, value in given.items()})
    args.out.mkdir(parents=True, exist_ok=True)
    setup = {"sizes": dataclasses.asdict(sizes), "model": Path(args.model).name}
    (args.out / "setup.json").write_text(json.dumps(setup))
    return Lab(args.out, args.model, args.device, sizes)


def run_stage(name: str, args: argparse.Namespace, lab: Any) -> None:
    """Do one stage in this process."""
    import word_problem_training as training
    import word_problem_verifier as verifier

    if name == "rl":
        run = training.Run.parse(args.run)
        lab.once(run.name, lambda: training.train_run(lab, run))
        return
    compute: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
        "sft": ("sft", training.supervised_start),
        "evaluate": ("start", training.evaluate_start),
        "collect": ("collection", verifier.collect_values),
        "verifier": ("verifier", verifier.train_verifier),
        "search": ("search", verifier.search),
    }
    lab.once(compute[name][0], lambda: compute[name][1](lab))


def drive(args: argparse.Namespace) -> None:
    """Do everything."""
    lab = make_lab(args)
    for name in ("sft", "evaluate", "collect", "verifier", "search"):
        run_stage(name, args, lab)

    def train(run: str) -> None:
        command = [sys.executable, __file__, "--stage", "rl", "--run", run, "--size", *args.size]
        for name in ("model", "out", "device", "preset", "threads"):
            command += [f"--{name}", str(getattr(args, name))]
        with (args.out / f"log-{run.replace(':', '-seed').replace(',', '-').replace('=', '-')}.txt").open("ab") as log:
            done = subprocess.run(command, stdout=log, stderr=log)
        print(f"{run}: exit {done.returncode}", flush=True)

    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(train, args.runs.split()))


# ---- the report ----


def gather(folder: Path) -> dict[str, Any]:
    """Results of all stages and runs that are there, by name, without what is only of use beside them."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text())
        if path.stem.startswith("run-"):
            data["curve"] = [round(value, 4) for value in data["curve"]]
            data["length"] = [None if value is None else round(value, 1) for value in data["length"]]
            data["step_seconds"] = [round(value, 2) for value in data["step_seconds"]]
        found[path.stem] = data
    return found


def at_step(run: dict[str, Any], step: int) -> dict[str, float]:
    """Scores of a run at an optimizer step."""
    return run["scores"][str(step)]


def runs_table(found: dict[str, Any]) -> str:
    """Every method at the last optimizer step at which all its runs were evaluated, and at the last one of all."""
    runs = [data for name, data in found.items() if name.startswith("run-")]
    if not runs:
        return ""
    steps = [set(map(int, run["scores"])) for run in runs]
    common = max(set.intersection(*steps), default=None)
    header = ["policy", "seeds", "optimizer steps", "avg", "pass@4", "KL", "s per step", "sampled completions"]
    rows: list[list[Any]] = []
    if "start" in found:
        scores = found["start"]["scores"]
        rows.append(["start", "", 0, f"{scores['avg']:.1f}", f"{scores['pass@4']:.1f}", "0", "", 0])
    for label in dict.fromkeys(run["label"] for run in runs):
        members = [run for run in runs if run["label"] == label]
        own = max(set.intersection(*[set(map(int, run["scores"])) for run in members]), default=None)
        for step in sorted({common, own} - {None}):
            scores = [at_step(run, step) for run in members]
            ended = [run["kl"] for run in members if run["optimizer_steps"] == step]
            kl = spread(ended, 2) if ended else ""
            pace = spread([median(run["step_seconds"]) for run in members])
            found_at = [spread([s[name] for s in scores]) for name in ("avg", "pass@4")]
            rows.append([label, len(members), step, *found_at, kl, pace, step * members[0]["completions_per_step"]])
    return table(header, rows)


def search_table(found: dict[str, Any]) -> str:
    """Accuracy and sampled tokens of every way to search."""
    data = found["search"]["accuracy"]
    rows = [
        [name, point["n"], f"{point['tokens']:.0f}", f"{point['accuracy']:.1f}"]
        for name, points in data.items()
        for point in points
    ]
    return table(["search", "n", "sampled tokens per problem", "right, %"], rows)


def report(args: argparse.Namespace) -> None:
    """Keep the results in one file, and write their tables next to it."""
    found = gather(args.out)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    sizes = found["setup"]["sizes"]
    parts = [
        f"{found['setup']['model']} on {sizes['test_problems']} test problems of two to four calculations, "
        f"{sizes['test_samples']} samples each; mean (lowest to highest) of the seeds, %; KL to the start in nats per "
        f"completion\n\n{runs_table(found)}"
    ]
    if "sft" in found:
        curve = ", ".join(f"{100 * value:.0f} % after {step}" for step, value in found["sft"]["curve"].items())
        parts.append(
            f"Supervised start, avg@4 on tuning problems by optimizer steps of {sizes['sft_batch']}: {curve}.\n"
        )
    if "collection" in found and "verifier" in found:
        spending, verifier = found["collection"]["spending"], found["verifier"]
        lines = verifier["lines"]
        held_out = [verifier["metrics"].get(f"eval_{name}", math.nan) for name in ("auroc", "brier")]
        parts.append(
            f"Verifier: {spending['num_rollouts']:,} rollouts, {spending['num_sampled_tokens']:,} sampled tokens. "
            f"Held-out labels: AUROC {held_out[0]:.2f}, Brier {held_out[1]:.3f} (a constant: "
            f"{verifier['brier_of_constant']:.3f}). Right against wrong lines of {lines['num_lines']}: AUROC "
            f"{lines['auroc']:.2f}, the policy's own log-probability {lines['auroc_of_log_probability']:.2f}.\n"
        )
    if "search" in found:
        parts.append(f"{found['search']['num_problems']} test problems of three and four calculations\n\n")
        parts[-1] += search_table(found)
    stages = ("sft", "start", "collection", "verifier", "search")
    seconds = ", ".join(f"{name} {found[name]['seconds']:.0f}" for name in stages if name in found)
    parts.append(f"Seconds of the stages: {seconds}.\n")
    machines = dict.fromkeys(machine_text(data["machine"]) for data in found.values() if "machine" in data)
    parts.append("\n".join(machines) + "\n")
    text = "\n".join(parts)
    args.output.with_suffix(".md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, default="all")
    parser.add_argument("--run", default="GRPO:0", help="with --stage rl: a method, its settings and a seed")
    parser.add_argument("--runs", default=RUNS, help="training runs, such as 'GRPO:0 PAV,alpha=5:0'")
    parser.add_argument("--model", default="", help="folder or Hub id of the chat model to begin with")
    parser.add_argument("--out", type=Path, default=Path("runs/words"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--preset", choices=("gpu", "cpu", "tiny"), default="gpu")
    parser.add_argument("--size", nargs="*", default=[], help="sizes as name=value")
    parser.add_argument("--parallel", type=int, default=1, help="training runs at a time")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/word_problems.json"))
    args = parser.parse_args()
    if args.stage == "report":
        report(args)
        return
    if args.stage == "all":
        drive(args)
    else:
        run_stage(args.stage, args, make_lab(args))


if __name__ == "__main__":
    main()
