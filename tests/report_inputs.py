"""Results to report on, written in the formats that the package's commands and trainers write."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from trl_prl.report.run_files import RunWriter


# Texts that end scripts, begin comments, break lines where JSON allows it, or are no text at all.
HOSTILE = (
    "<script>window.broken = 1</script>",
    "</script><script>window.broken = 2</script>",
    "<!-- <script> -->",
    "<img src=x onerror='window.broken = 3'>",
    "line\u2028separator\u2029and ]]> &amp; &lt;b&gt;",
    "\ud83d half a character",
    "{{ 7 * 7 }} ${7 * 7}",
)


def write_run(
    folder: Path, method: str = "PAV", seed: int = 0, num_rows: int = 8, num_steps: int = 5, **config: Any
) -> Path:
    """Write the record of a run whose completions have prompts that recur.

    Args:
        folder (`Path`):
            Folder of the run.
        method (`str`, *optional*, defaults to `"PAV"`):
            Its method.
        seed (`int`, *optional*, defaults to `0`):
            Its seed.
        num_rows (`int`, *optional*, defaults to `8`):
            Completions per optimizer step, four to a prompt.
        num_steps (`int`, *optional*, defaults to `5`):
            Optimizer steps.
        **config:
            Settings.

    Returns:
        `Path`: The folder.
    """
    draw = random.Random(seed)
    writer = RunWriter(folder)
    settings = {"learning_rate": 1e-5, "seed": seed, "output_dir": str(folder), **config}
    writer.start({"method": method, "model": "models/tiny", "seed": seed, "config": settings}, 0, "now")
    for step in range(1, num_steps + 1):
        metrics = {
            "reward": step / num_steps + 0.01 * seed,
            "process/reward/mean": 0.1,
            "loss": math.nan,
            "epoch": 1.0,
        }
        writer.write_metrics("train", step, metrics)
        writer.write_completions([completion_row(draw, step, row) for row in range(num_rows)])
    writer.write_metrics("eval", num_steps, {"reward": 0.75})
    return folder


def completion_row(draw: random.Random, step: int, row: int) -> dict[str, Any]:
    """One completion; the first ones of an optimizer step have hostile texts."""
    steps = [f"step {i} of row {row}: {draw.randint(0, 99)}\n" for i in range(draw.randint(2, 7))]
    if step == 1 and row < len(HOSTILE):
        steps[0] = HOSTILE[row] + "\n"
    rewards = [round(draw.uniform(-0.5, 0.5), 4) for _ in steps]
    outcome = 1.0 if row % 4 == 0 else -0.33
    return {
        "optimizer_step": step,
        "split": "train",
        "prompt": f"problem {row // 4} <b>&</b>",
        "prompt_id": str(row // 4),
        "steps": steps,
        "step_rewards": rewards,
        "advantages": [round(outcome + reward, 4) for reward in rewards],
        "kl_to_go": [round(0.1 * (len(steps) - i), 4) for i in range(len(steps))],
        "rewards": {"accuracy": 1.0 if row % 4 == 0 else 0.0},
        "outcome_advantage": outcome,
        "num_tokens": 10 * len(steps),
        "finished": row % 4 != 3,
    }


def write_search(folder: Path, num_problems: int = 3) -> Path:
    """Write searched problems with their trees, and the curve of the search."""
    rows = []
    for problem in range(num_problems):
        nodes: list[dict[str, Any]] = [{"id": 0, "parent": None, "text": "", "value": 0.4, "status": "root"}]
        for child, status in ((1, "kept"), (2, "pruned"), (3, "finished")):
            nodes.append(
                {
                    "id": child,
                    "parent": 1 if child == 3 else 0,
                    "text": f"node {child}\n",
                    "value": 0.2 * child,
                    "advantage": 0.1,
                    "score": 0.25 * child,
                    "status": status,
                    "reason": "not among the best 1" if status == "pruned" else "",
                }
            )
        answer = {"text": "node 1\nnode 3\n", "score": 0.75, "value": 0.6, "finished": True, "end_reason": "eos"}
        rows.append(
            {"row": problem, "n": 4, "prompt": f"search {problem}", "correct": problem != 1, "chosen": 0}
            | {"candidates": [answer], "cost": {"num_generated_tokens": 40, "seconds": 0.1}, "tree": nodes}
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    curve = [
        {"n": n, "generated_tokens_per_problem": 40.0 * n, "accuracy": {"value": 0.1 * n, "low": 0.0, "high": 0.9}}
        | {"pass_at_n": {"value": 0.2 * n, "low": 0.1, "high": 1.0} if n > 1 else None}
        | {"pass_at_n_tokens_per_problem": 10.0 * n}
        for n in (1, 2, 4)
    ]
    data = {"kind": "search", "method": "beam", "curve": curve, "problems_file": "problems.jsonl"}
    (folder / "search.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def write_results(folder: Path) -> Path:
    """Write one result of every other kind."""
    folder.mkdir(parents=True, exist_ok=True)

    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    bins = [
        {"low": i / 5, "high": (i + 1) / 5, "num": 10 * i + 10}
        | {"mean_value": (i + 0.5) / 5, "mean_label": (i + 0.4) / 5}
        for i in range(5)
    ]
    candidates = [
        {"label": f"Best-of-{k}", "prover": "base", "k": k, "alpha_range_rl": [0.5, 4.0]}
        | {name: interval(0.1 * k) for name in ("gain", "distinguishability", "alignment")}
        for k in (1, 2, 4)
    ]
    metrics = {"avg@4": {"value": 0.3, "interval": [0.2, 0.4]}, "pass@1": interval(0.3), "pass@4": interval(0.6)}
    models = [{"name": name, "metrics": metrics} for name in ("base", "tuned")]
    results = {
        "verifier": {"kind": "verifier_evaluation", "verifier": "my-verifier", "metrics": {"brier": 0.1}}
        | {"bins": bins, "positions": [{"position": "1", "brier": 0.2}]},
        "diagnosis": {
            "kind": "diagnosis",
            "base": "policy",
            "candidates": candidates,
            "warnings": ["few problems"],
            "words": ["It is highest with Bo4."],
        }
        | {"recommendation": {"prover": "base", "k": 4, "alpha": [0.5, 4.0]}, "by_difficulty": []},
        "evaluation": {"kind": "evaluation", "models": models}
        | {"comparisons": [{"metric": "avg@4", "before": "base", "after": "tuned", "difference": 0.0}]},
        "unknown": {"kind": "something else", "numbers": [1, 2]},
        "not_a_result": {"model_type": "llama"},
    }
    for name, data in results.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder
