"""Training runs for the report: their curves, their completions, and which of them differ only in the seed."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from .run_files import RecordedRun, is_run, read_run


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


# What is left of the number of a seed in what the names of several runs have in common.
_SEED_SUFFIX = re.compile(r"(?:(?:^|[-_. ]+)(?:seed|run|s))?[-_. ]*\d*$")


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
        return read_run(folder, is_shortened=True)
    try:
        history = json.loads(state.read_text(encoding="utf-8")).get("log_history", [])
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{state} is no state of a trainer ({error}). Remove the torn checkpoint.") from error
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


def relevant_config(run: RecordedRun) -> dict[str, Any]:
    """Settings that make a run what it is, apart from its seed."""
    config, sources = run.manifest.get("config"), run.manifest.get("sources")
    if not isinstance(config, Mapping):
        return {}
    settings = {**config, **sources} if isinstance(sources, Mapping) else config
    return {name: value for name, value in settings.items() if not name.startswith(IGNORED_SETTINGS)}


def group_runs(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """Put runs together that differ in the seed and in nothing else, and name each group after what sets it apart.

    Two runs of one seed are no sample of seeds: something that no setting says is another, such as a policy without a
    name, or one is the other once more. Each gets a group of its own.

    Args:
        runs (`Sequence[RecordedRun]`):
            The runs.

    Returns:
        `list[dict]`: Groups with `label`, `method`, `settings` (what sets it apart from others of its method),
        `model`, `seeds`, `steps` and `runs`, the positions of its runs.
    """
    members: dict[tuple[str, int], list[int]] = defaultdict(list)
    num_before: Counter[tuple[str, Any]] = Counter()
    for index, run in enumerate(runs):
        manifest = run.manifest
        # Without a configuration nothing says that two runs are the same but for the seed.
        identity = relevant_config(run) or {"folder": str(run.folder)}
        key = [manifest.get("method"), manifest.get("model"), identity]
        same, seed = json.dumps(key, sort_keys=True, default=str), manifest.get("seed")
        members[same, num_before[same, seed]].append(index)
        num_before[same, seed] += 1
    groups = list(members.values())
    labels = group_labels([[runs[i] for i in indices] for indices in groups])
    settings = differing_settings([runs[indices[0]] for indices in groups])
    return [
        {
            "label": label,
            "method": str(runs[indices[0]].manifest.get("method") or "run"),
            "settings": different,
            "model": Path(str(runs[indices[0]].manifest.get("model") or "")).name,
            "seeds": [seed for i in indices if (seed := runs[i].manifest.get("seed")) is not None],
            "steps": max((row["optimizer_step"] for i in indices for row in runs[i].metrics), default=0),
            "runs": indices,
        }
        for label, different, indices in zip(labels, settings, groups, strict=True)
    ]


def run_name(run: RecordedRun) -> str:
    """What a run is called: its `run_name` if it was given one, else its folder."""
    config = run.manifest.get("config")
    name = config.get("run_name") if isinstance(config, Mapping) else None
    # transformers once set it to the output folder.
    return str(name) if name and name != config.get("output_dir") else run.folder.resolve().name  # type: ignore[union-attr]


def group_labels(groups: Sequence[Sequence[RecordedRun]]) -> list[str]:
    """Name of each group: that of its run, or what the names of its runs have in common."""
    labels = []
    for runs in groups:
        names = [run_name(run) for run in runs]
        shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
        common = _SEED_SUFFIX.sub("", "".join(letters[0] for letters in shared))
        labels.append(names[0] if len(names) == 1 else common or str(runs[0].manifest.get("method") or names[0]))
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} ({runs[0].folder.resolve().parent.name}, {number})"
        for number, (label, runs) in enumerate(zip(labels, groups, strict=True), start=1)
    ]


def differing_settings(runs: Sequence[RecordedRun]) -> list[str]:
    """What sets each run apart from the others of the same method, in a few words."""
    found = []
    for run in runs:
        others = [other for other in runs if other.manifest.get("method") == run.manifest.get("method")]
        configs = [relevant_config(other) for other in others]
        own = relevant_config(run)
        names = [name for name in own if any(config.get(name) != own[name] for config in configs)]
        found.append(", ".join(f"{name}={_short(own[name])}" for name in names[:3]))
    return found


def run_labels(groups: Sequence[Mapping[str, Any]], runs: Sequence[RecordedRun]) -> list[str]:
    """Name of every run, each once."""
    labels = {index: run_name(runs[index]) for group in groups for index in group["runs"]}
    counts = Counter(labels.values())
    for group in groups:
        for index in group["runs"]:
            if len(group["runs"]) == 1:
                labels[index] = str(group["label"])
            elif counts[labels[index]] > 1:
                labels[index] = f"{group['label']}, seed {runs[index].manifest.get('seed')} ({index + 1})"
    return [labels[index] for index in range(len(runs))]


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
            "adv": row.get("advantages"),
            "rew": row.get("step_rewards"),
            "kl": row.get("kl_to_go"),
            "rewards": row.get("rewards") or {},
            "outcome": row.get("outcome_advantage"),
            "tokens": row.get("num_tokens"),
            "finished": row.get("finished"),
            "skipped": row.get("skipped"),
        }
        for row in run.completions
    ]


def prompt_numbers(texts: Iterable[str], known: dict[str, int]) -> dict[str, int]:
    """Number the prompts, each text once, going on from those that are known."""
    for text in texts:
        known.setdefault(text, len(known))
    return known
