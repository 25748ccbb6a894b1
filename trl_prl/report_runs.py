"""Training runs for the report: their curves, their completions, and which of them differ only in the seed."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .run_files import RecordedRun, is_run, read_run


# Title and meaning of the metrics that are shown first, in this order. The others follow under their own names.
METRIC_INFO: dict[str, tuple[str, str]] = {
    "reward": ("Outcome reward", "mean over completions"),
    "process/reward/mean": ("Process reward per step", "progress for PAV, process part of the advantage for PRL"),
    "process/reward/std": ("Spread of the process reward", "well above 0, else steps are not told apart"),
    "process/advantage_share": ("Process share of the advantages", "0.05 to 0.7; near 1 the outcome is drowned"),
    "process/outcome_correlation": ("Process reward against outcome", "correlation; a fall is a sign of gaming"),
    "process/kl_to_go": ("KL-to-go", "nats to the reference, grows slowly"),
    "kl": ("KL to the reference", "k3 estimate, grows slowly"),
    "process/steps_per_completion": ("Steps per completion", "above 1, else there is nothing to credit"),
    "process/tokens_per_step": ("Tokens per step", "tens to hundreds for text"),
    "process/reward/frac_zero": ("Steps with a process reward of 0", "below 0.9"),
    "process/unscorable_frac": ("Steps without a score", "near 0"),
    "process/repeated_steps": ("Steps that repeat an earlier one", "share; a rise is a sign of gaming"),
    "process/calibration/brier": (
        "Brier score on fresh rollouts",
        "of the process reward; a rise is a sign of gaming",
    ),
    "process/alpha": ("Weight of the progress", "alpha in force"),
    "completions/mean_length": ("Tokens per completion", "mean"),
    "completions/clipped_ratio": ("Completions cut at the limit", "share"),
    "frac_reward_zero_std": ("Groups without a spread in reward", "share; they teach nothing about the outcome"),
    "entropy": ("Entropy", "nats per token"),
    "loss": ("Loss", ""),
    "grad_norm": ("Gradient norm", ""),
    "learning_rate": ("Learning rate", ""),
}
# Settings that say where and how often things are written, or how fast: runs that differ in them only are the same.
IGNORED_SETTINGS: tuple[str, ...] = (
    "seed",
    "data_seed",
    "output_dir",
    "run_name",
    "report_to",
    "project",
    "trackio",
    "push_to_hub",
)
IGNORED_SETTINGS += ("resume", "disable_tqdm", "logging", "save", "load", "hub", "dataloader", "ddp", "local_rank")
IGNORED_SETTINGS += ("record", "log_", "overwrite", "num_completions_to")
NOT_CURVES = {"epoch", "step"}


def find_runs(folder: Path, depth: int = 4) -> list[Path]:
    """Find the recorded runs in a folder, itself included; checkpoints are not looked into."""
    if is_run(folder) or _trainer_state(folder) is not None:
        return [folder]
    if depth == 0:
        return []
    children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    return [run for child in children for run in find_runs(child, depth - 1)]


def load_run(folder: Path) -> RecordedRun:
    """Read a run; of one that was not recorded, what transformers wrote into its last checkpoint.

    Args:
        folder (`Path`):
            Folder of the run.

    Returns:
        [`RecordedRun`]: The run.

    Raises:
        `ValueError`: if there is neither a record nor a checkpoint with a log.
    """
    state = None if is_run(folder) else _trainer_state(folder)
    if state is None:
        return read_run(folder)
    history = json.loads(state.read_text(encoding="utf-8")).get("log_history", [])
    metrics = []
    for entry in history:
        split = "eval" if any(name.startswith("eval_") for name in entry) else "train"
        values = {name.removeprefix("eval_"): value for name, value in entry.items()}
        metrics.append({"optimizer_step": int(entry.get("step", 0)), "split": split, "metrics": values})
    return RecordedRun(folder, {"method": folder.name, "model": "", "seed": None, "config": {}}, metrics)


def _trainer_state(folder: Path) -> Path | None:
    """State that the trainer saved last."""
    found = [*folder.glob("checkpoint-*/trainer_state.json"), *folder.glob("trainer_state.json")]
    numbers = {path: path.parent.name.rpartition("-")[2] for path in found}
    return max(found, key=lambda path: int(numbers[path]) if numbers[path].isdigit() else math.inf, default=None)


def curves(run: RecordedRun) -> dict[str, dict[str, list[list[float]]]]:
    """Curves of a run by split and metric, each as optimizer steps and values, without what is not finite."""
    found: dict[str, dict[str, dict[int, float]]] = {"train": defaultdict(dict), "eval": defaultdict(dict)}
    for row in run.metrics:
        values = row.get("metrics")
        if not isinstance(values, Mapping) or row.get("split") not in found:
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value) and name not in NOT_CURVES:
                found[row["split"]][name][row["optimizer_step"]] = value
    return {
        split: {
            name: [sorted(points), [points[step] for step in sorted(points)]]
            for name, points in metrics.items()
            if not name.startswith(("train_", "total_flos"))
        }
        for split, metrics in found.items()
    }


def relevant_config(run: RecordedRun) -> dict[str, Any]:
    """Settings that make a run what it is, apart from its seed."""
    config = run.manifest.get("config")
    if not isinstance(config, Mapping):
        return {}
    return {name: value for name, value in config.items() if not name.startswith(IGNORED_SETTINGS)}


def group_runs(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """Put runs together that differ only in the seed, and name each group after what sets it apart.

    Args:
        runs (`Sequence[RecordedRun]`):
            The runs.

    Returns:
        `list[dict]`: Groups with `label`, `method`, `model`, `seeds`, `steps` and `runs`, the positions of its runs.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        manifest = run.manifest
        # Without a configuration nothing says that two runs are the same but for the seed.
        identity = relevant_config(run) or {"folder": str(run.folder)}
        key = [manifest.get("method"), manifest.get("model"), identity]
        members[json.dumps(key, sort_keys=True, default=str)].append(index)
    groups = list(members.values())
    labels = group_labels([runs[indices[0]] for indices in groups])
    return [
        {
            "label": label,
            "method": str(runs[indices[0]].manifest.get("method") or "run"),
            "model": Path(str(runs[indices[0]].manifest.get("model") or "")).name,
            "seeds": [seed for i in indices if (seed := runs[i].manifest.get("seed")) is not None],
            "steps": max((row["optimizer_step"] for i in indices for row in runs[i].metrics), default=0),
            "runs": indices,
        }
        for label, indices in zip(labels, groups, strict=True)
    ]


def group_labels(runs: Sequence[RecordedRun]) -> list[str]:
    """Name of each run: its method, and what differs from the others of the same method."""
    labels = []
    for run in runs:
        method = str(run.manifest.get("method") or run.folder.name)
        others = [other for other in runs if other.manifest.get("method") == run.manifest.get("method")]
        configs = [relevant_config(other) for other in others]
        own = relevant_config(run)
        names = [name for name in own if any(config.get(name) != own[name] for config in configs)]
        parts = [f"{name}={_short(own[name])}" for name in names[:3]]
        if len({str(other.manifest.get("model")) for other in others}) > 1:
            parts.insert(0, Path(str(run.manifest.get("model"))).name)
        labels.append(" ".join([method, *parts]))
    return [
        label if labels.count(label) == 1 else f"{label} ({runs[i].folder.name})" for i, label in enumerate(labels)
    ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def run_completions(
    run: RecordedRun, run_index: int, source: int, prompt_of: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Completions of a run as the page wants them."""
    return [
        {
            "run": run_index,
            "source": source,
            "step": row["optimizer_step"],
            "split": row.get("split", "train"),
            "prompt": prompt_of[str(row.get("prompt", ""))],
            "steps": [str(text) for text in row.get("steps") or []],
            "text": row.get("completion"),
            "adv": row.get("step_advantages"),
            "rew": row.get("step_rewards"),
            "kl": row.get("kl_to_go"),
            "rewards": row.get("rewards") or {},
            "outcome": row.get("outcome_advantage"),
            "tokens": row.get("num_tokens"),
            "finished": row.get("finished"),
        }
        for row in run.completions
    ]


def evenly(rows: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` rows, evenly spaced, the first and the last among them."""
    if len(rows) <= limit:
        return list(rows)
    if limit == 1:
        return [rows[-1]]
    return [rows[round(i * (len(rows) - 1) / (limit - 1))] for i in range(limit)]


def evenly_by_rollout(rows: Sequence[Mapping[str, Any]], limit: int) -> list[Any]:
    """At most `limit` rows, in whole rollouts where possible; up to half of evaluations, whose prompts recur."""
    if len(rows) <= limit:
        return list(rows)
    rollouts: dict[str, dict[int, list[Mapping[str, Any]]]] = {"eval": defaultdict(list), "train": defaultdict(list)}
    for row in rows:
        rollouts["eval" if row.get("split") == "eval" else "train"][row["optimizer_step"]].append(row)
    kept: list[Mapping[str, Any]] = []
    for split, share in (("eval", limit // 2), ("train", limit)):
        blocks, room = list(rollouts[split].values()), share - len(kept)
        if not blocks or room < 1:
            continue
        count = room // max(map(len, blocks))
        chosen = evenly(blocks, count) if count else blocks
        kept += evenly([row for block in chosen for row in block], room)
    return sorted(kept, key=lambda row: row["optimizer_step"])


def prompt_numbers(texts: Iterable[str], known: dict[str, int]) -> dict[str, int]:
    """Number the prompts, each text once, going on from those that are known."""
    for text in texts:
        known.setdefault(text, len(known))
    return known
