"""The record of a training run on the disk: what a report reads, next to the checkpoints.

`output_dir/process/` holds a manifest, `run.json`, and two kinds of JSON lines that are only ever appended to:
`metrics.jsonl` and, one per process, `completions-00000.jsonl`. docs/report.md describes every field.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_prl.jobs.masking import mask_secrets
from trl_prl.storage.files import write_text
from trl_prl.storage.row_values import json_value

from .limits import json_lines


logger = logging.getLogger(__name__)

FORMAT = "trl-prl-run"
FORMAT_VERSION = 1
FOLDER = "process"
MANIFEST = "run.json"
METRICS = "metrics.jsonl"
COMPLETIONS = "completions-*.jsonl"


def check_record_completions(record_completions: int) -> None:
    """Refuse a number of completions to record that cannot be.

    Raises:
        `ValueError`: if it is negative.
    """
    if record_completions < 0:
        raise ValueError(
            f"`record_completions` was set to {record_completions}, but there is no negative number of completions. "
            "Set it to 0 to record scalars only, or `record_run` to False to record nothing."
        )


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file of JSON lines, on a line of their own even if a kill cut the last one.

    Args:
        path (`Path`):
            The file; made with its folder if absent.
        rows (`Iterable[Mapping]`):
            What to append.
    """
    lines = [json.dumps(json_value(row), ensure_ascii=False, allow_nan=False, separators=(",", ":")) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    # A link that somebody has put there is not followed.
    with open(path, "ab+", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)) as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines.insert(0, "")
        # Sampled bytes need not be text: lone surrogates are written escaped.
        file.write("".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))


def read_lines(path: Path, is_shortened: bool = False) -> tuple[list[dict[str, Any]], int]:
    """Read a file of JSON lines, passing over lines that a kill cut.

    Args:
        path (`Path`):
            The file.
        is_shortened (`bool`, *optional*, defaults to `False`):
            Whether to cut long texts as they are read, so that they never fill the memory.

    Returns:
        `tuple[list[dict], int]`: The rows, and the number of lines that are no JSON objects.
    """
    found = list(json_lines(path, is_shortened))
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


class RunWriter:
    """Writes the record of a run; each process has one.

    What cannot be written, on a full disk for instance, is missing from the record; that is warned of once, and ends
    no training.

    Args:
        output_dir (`Path`):
            Folder of the run, where its checkpoints are.
        process_index (`int`, *optional*, defaults to `0`):
            Number of the process. Only process 0 writes the manifest and the metrics.
    """

    def __init__(self, output_dir: Path, process_index: int = 0) -> None:
        self.folder = output_dir / FOLDER
        self.process_index = process_index
        self._has_warned = False

    @property
    def completions_path(self) -> Path:
        """File of this process's completions."""
        return self.folder / COMPLETIONS.replace("*", f"{self.process_index:05d}")

    def start(self, manifest: Mapping[str, Any], optimizer_step: int, time: str) -> None:
        """Write that training begins, or goes on, after `optimizer_step` optimizer steps.

        What is in the files about later optimizer steps stays there, but counts no longer.
        """
        start = {"event": "start", "optimizer_step": optimizer_step, "time": time}
        if self.process_index == 0:
            path = self.folder / MANIFEST
            before = read_manifest(path) if path.exists() else {"starts": []}
            if not before:
                logger.warning(unreadable_manifest(path) + " It is written anew.")
            starts = before.get("starts", [])
            whole = {"format": FORMAT, "version": FORMAT_VERSION, **manifest, "starts": [*starts, start]}
            with self._warns():
                # It holds the settings of a training.
                write_text(path, json.dumps(json_value(mask_secrets(whole)), indent=1, allow_nan=False), private=True)
            self._append(self.folder / METRICS, [start])
        self._append(self.completions_path, [start])

    def write_metrics(self, split: str, optimizer_step: int, metrics: Mapping[str, Any]) -> None:
        """Append the scalars of a logging step; on other processes than the first nothing happens."""
        if self.process_index == 0:
            row = {"optimizer_step": optimizer_step, "split": split, "metrics": metrics}
            self._append(self.folder / METRICS, [row])

    def write_warning(self, optimizer_step: int, message: str) -> None:
        """Append a warning of the training; on other processes than the first nothing happens."""
        if self.process_index == 0:
            row = {"event": "warning", "optimizer_step": optimizer_step, "message": message}
            self._append(self.folder / METRICS, [row])

    def write_completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append completions of this process."""
        self._append(self.completions_path, rows)

    def _append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        with self._warns():
            append_lines(path, rows)

    @contextmanager
    def _warns(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                logger.warning(
                    "The record of this run in %s cannot be written (%s), so reports will lack a part of it. The "
                    "training goes on; make room, or see what lies there.",
                    self.folder,
                    error,
                )
            self._has_warned = True


@dataclass
class RecordedRun:
    """What the files say of a run.

    Args:
        folder (`Path`):
            Folder of the run.
        manifest (`dict`):
            The manifest; empty where it cannot be read.
        metrics (`list[dict]`):
            Rows with `optimizer_step`, `split` and `metrics`, in order.
        completions (`list[dict]`):
            One row per completion, in order of optimizer steps.
        warnings (`list[tuple[int, str]]`):
            Optimizer step and text of what the training warned of.
        num_unreadable (`int`):
            Lines that were cut or damaged.
        num_superseded (`int`):
            Rows of optimizer steps that were done again after the run was resumed from an earlier checkpoint.
    """

    folder: Path
    manifest: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    num_unreadable: int = 0
    num_superseded: int = 0


def is_run(folder: Path) -> bool:
    """Whether a folder has the record of a run."""
    return (folder / FOLDER / MANIFEST).is_file() or (folder / FOLDER / METRICS).is_file()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; an unreadable one counts as empty, so that the rest of the record is not lost with it."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(manifest, dict):
        return {}
    kinds = (isinstance(manifest.get("version", FORMAT_VERSION), int), isinstance(manifest.get("starts", []), list))
    return manifest if all(kinds) else {}


def unreadable_manifest(path: Path) -> str:
    """What is said of a manifest that counts as empty."""
    return f"{path} is missing, empty or torn, so method, model and settings of the earlier training are not known."


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads to something in a folder, also where it is a link."""
    return path.resolve().is_relative_to(folder.resolve())


def read_run(folder: Path, is_shortened: bool = False) -> RecordedRun:
    """Read the record of a run, also of one that is still being written.

    Args:
        folder (`Path`):
            Folder of the run: the `output_dir` of the trainer.
        is_shortened (`bool`, *optional*, defaults to `False`):
            Whether to cut long texts and the middle of completions with very many steps, as reports do.

    Returns:
        [`RecordedRun`]: The run. Rows that a resumed run did again are left out.

    Raises:
        `ValueError`: if the folder has no record, or one of a later format.
    """
    if not is_run(folder):
        raise ValueError(
            f"{folder} has no {FOLDER}/{MANIFEST}, so it is not a recorded run. Pass the `output_dir` of a trainer of "
            "this package that ran with `record_run=True`."
        )
    manifest = read_manifest(folder / FOLDER / MANIFEST)
    version = manifest.get("version", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} was recorded in format {version!r}, and this version of the package reads up to "
            f"{FORMAT_VERSION}. Upgrade with `pip install --upgrade trl-prl`."
        )
    run = RecordedRun(folder, manifest)
    metrics = folder / FOLDER / METRICS
    if metrics.exists() and is_inside(metrics, folder):
        for row in _read_current(run, metrics, is_shortened):
            if row.get("event") == "warning":
                run.warnings.append((row["optimizer_step"], str(row.get("message", ""))))
            else:
                run.metrics.append(row)
    for path in sorted((folder / FOLDER).glob(COMPLETIONS)):
        if is_inside(path, folder):
            run.completions += _read_current(run, path, is_shortened)
    run.completions.sort(key=lambda row: row["optimizer_step"])
    return run


def _read_current(run: RecordedRun, path: Path, is_shortened: bool) -> list[dict[str, Any]]:
    """Rows of a file that no later start has superseded."""
    rows, num_unreadable = read_lines(path, is_shortened)
    run.num_unreadable += num_unreadable
    current: list[dict[str, Any]] = []
    for row in rows:
        if not isinstance(row.get("optimizer_step"), int) or not _is_as_written(row):
            run.num_unreadable += 1
        elif row.get("event") == "start":
            kept = [earlier for earlier in current if earlier["optimizer_step"] <= row["optimizer_step"]]
            run.num_superseded += len(current) - len(kept)
            current = kept
        else:
            current.append(row)
    return current


_KINDS: dict[str, type] = {"metrics": dict, "rewards": dict}
_KINDS |= dict.fromkeys(("steps", "step_rewards", "advantages", "kl_to_go"), list)


def _is_as_written(row: Mapping[str, Any]) -> bool:
    """Whether lists and mappings of a row are such: somebody may have edited the file."""
    return all(row.get(name) is None or type(row[name]) is kind for name, kind in _KINDS.items())
