"""The manifest of a job: everything its rows depend on, the weights of local models included."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from trl_prl.storage.files import replace_file

from .config import JobConfig
from .masking import mask_secrets
from .named_options import split_options
from .shards import SHARDS, find_units


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

# Byte of a manifest that is locked by who opens it; those before are the claims of processes, by their numbers.
_OPENING = 1 << 40

# What is written for readers, and says nothing that a fingerprint does not say better.
_NOT_COMPARED = frozenset({"dataset"})

# Of a model's folder: weights, tokenizer and configuration, and not the state of a training.
_MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".jinja", ".txt", ".gguf")
_STATE_FILES = ("training_args.bin", "trainer_state.json", "optimizer.bin", "scheduler.bin")
# Of each file this much is hashed, in pieces spread evenly over it.
_NUM_PIECES, _PIECE_BYTES = 256, 1 << 16


def job_settings(config: JobConfig, **changes: Any) -> dict[str, Any]:
    """Settings of a job for its manifest: options, and what the files they name hold.

    Args:
        config ([`JobConfig`]):
            The job.
        **changes:
            Settings with another value than the option, such as the model at hand. Those that name several models
            are lists of `"NAME=PATH"`.

    Returns:
        `dict`: The settings. `model_files` stands beside `model`, and so on, where that is a local folder or a module.
    """
    settings = {**config.settings(), **changes}
    for name in config.files_of_rows:
        given = settings[name]
        if isinstance(given, list):
            named = {label: path for label, _, path in (entry.partition("=") for entry in given)}
            files: Any = {label: _fingerprint(path) for label, path in named.items()}
            files = {label: files[label] or path for label, path in named.items()} if any(files.values()) else None
        else:
            files = _fingerprint(given)
        settings |= {f"{name}_files": files} if files else {}
    return settings


def _fingerprint(name: str | None) -> str | None:
    """What a name stands for, and what the options behind it do; `None` where none of it is a local file."""
    if not name:
        return None
    path, options = split_options(name)
    found = {key: weights_fingerprint(text) or module_fingerprint(text) for key, text in {"": path, **options}.items()}
    if not any(found.values()):
        return None
    return ", ".join([found[""] or path, *(f"{key}={found[key] or text}" for key, text in options.items())])


def weights_fingerprint(path: str) -> str | None:
    """Number, size and checksum of the files of a local model or adapter, without reading the whole of large ones.

    Args:
        path (`str`):
            Path, or Hub id, of which nothing is known here.

    Returns:
        `str`, *optional*: The fingerprint; `None` where there is no such folder or file.
    """
    where = Path(path)
    if not where.exists():
        return None
    files = sorted(where.iterdir()) if where.is_dir() else [where]
    files = [
        file for file in files if file.suffix in _MODEL_FILES and file.name not in _STATE_FILES and file.is_file()
    ]
    digest, num_bytes = hashlib.blake2b(digest_size=8), 0
    for file in files:
        size = file.stat().st_size
        num_bytes += size
        digest.update(f"{file.name if where.is_dir() else ''} {size}\n".encode())
        _hash_pieces(file, size, digest)
    return f"{len(files)} files, {num_bytes} bytes, checksum {digest.hexdigest()}"


def _hash_pieces(path: Path, size: int, digest: Any) -> None:
    last = max(0, size - _PIECE_BYTES)
    number = min(_NUM_PIECES, -(-size // _PIECE_BYTES))
    with path.open("rb") as file:
        for place in range(number):
            file.seek(last * place // max(1, number - 1))
            digest.update(file.read(_PIECE_BYTES))


def module_fingerprint(name: str) -> str | None:
    """Checksum of the source of a `"module:function"`; `None` for any other name."""
    module, separator, _ = name.partition(":")
    if not separator or Path(name).exists():
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        # Whoever imports it says what is wrong.
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return f"checksum {hashlib.blake2b(Path(spec.origin).read_bytes(), digest_size=8).hexdigest()}"


def open_manifest(
    folder: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Begin a job in a folder, or make sure that the one begun there is the same.

    Several processes may call this at once: the first one writes the manifest. A job of which no unit is finished, and
    on which nobody works, gives way to one with other settings.

    Args:
        folder (`Path`):
            Folder of the job; made if absent.
        settings (`Mapping[str, Any]`):
            Everything that the rows depend on, as JSON values. Secrets in them are masked. Where there is an entry
            `<name>_files`, it decides, and the path in `<name>` may be another one.
        defaults (`Mapping[str, Any]`, *optional*):
            Defaults of settings. A job begun before one of them existed had its default.

    Returns:
        `dict[str, Any]`: The settings in the manifest.

    Raises:
        `ValueError`: When the folder holds another job, files but no job, or a manifest that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / MANIFEST, json.loads(json.dumps(mask_secrets(dict(settings)), default=str))
    if not path.exists():
        if any((folder / SHARDS).glob("*")):
            raise ValueError(
                f"{folder} holds shards but no {MANIFEST}, so it cannot be told what they were computed with. Use "
                "another folder, or put the manifest back."
            )
        # Where another process was first, what it wrote is compared.
        with suppress(FileExistsError), replace_file(path, private=True, overwrite=False) as file:
            file.write(_encode(wanted))
    with path.open("r+b") as file:
        # Waits for others who open the job, so that each sees what the one before has left there.
        can_lock = _lock(folder, file, fcntl.LOCK_EX, _OPENING)
        begun = _read(path, file)
        known = json.loads(json.dumps({name: default for name, default in (defaults or {}).items() if name in wanted}))
        begun = {**known, **begun}
        different = _different(begun, wanted)
        if different and can_lock and _is_unworked(folder, file):
            # In place, as claims are locks on this file.
            file.seek(0)
            file.write(_encode(wanted).ljust(path.stat().st_size))
            begun, different = wanted, []
    if different:
        changes = ", ".join(f"{name}: {begun.get(name)!r} there, {wanted.get(name)!r} now" for name in different)
        raise ValueError(
            f"{folder} holds a job with other settings ({changes}), and rows of two jobs do not mix. Use the settings "
            "and models of that job to resume it. To begin anew, use another folder, or remove that one."
        )
    (folder / SHARDS).mkdir(exist_ok=True)
    return begun


def _different(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    free = _NOT_COMPARED | {name.removesuffix("_files") for name in {*wanted} & {*begun} if name.endswith("_files")}
    return sorted(name for name in {*begun, *wanted} - free if begun.get(name) != wanted.get(name))


def _encode(settings: Mapping[str, Any]) -> bytes:
    return json.dumps(settings, indent=1, sort_keys=True).encode()


def _read(path: Path, file: BinaryIO) -> dict[str, Any]:
    try:
        begun = json.load(file)
    except (ValueError, RecursionError) as error:
        begun = error
    if not isinstance(begun, dict):
        what = "is empty" if not path.stat().st_size else "is not the JSON object that was written there"
        raise ValueError(
            f"{path} {what}, so it cannot be told what the units beside it were computed with. Put the file back, or "
            "use another folder."
        )
    return begun


def _is_unworked(folder: Path, file: BinaryIO) -> bool:
    """Whether a job has neither a finished unit nor a process at work, so that nothing of it is lost."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _OPENING)
    except OSError:
        return False
    return not find_units(folder)


def _lock(folder: Path, file: BinaryIO, how: int, place: int) -> bool:
    """Lock one byte of a manifest, until the file is closed; say whether files can be locked there."""
    try:
        fcntl.lockf(file, how, 1, place)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError from error
        logger.warning(
            "%s lies where files cannot be locked (%s): two processes of one number would not be noticed.",
            folder,
            error.strerror,
        )
        return False
    return True


@contextmanager
def claim_share(folder: Path, process_index: int, begun: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Keep a second process with the same number away from a job, until the block ends or this process does.

    The claim is a lock on one byte of the manifest, so that nothing is left behind by a kill.

    Args:
        folder (`Path`):
            Folder of the job, with its manifest.
        process_index (`int`):
            Number of this process.
        begun (`Mapping[str, Any]`, *optional*):
            What [`open_manifest`] returned, which must be there still.

    Raises:
        `ValueError`: When another process has it, or has put another job there.
    """
    path = folder / MANIFEST
    with path.open("r+b") as file:
        try:
            _lock(folder, file, fcntl.LOCK_EX | fcntl.LOCK_NB, process_index)
        except BlockingIOError as error:
            raise ValueError(
                f"Another process works as number {process_index} on the job in {folder}, so both would compute "
                "the same. Wait for it, or share the job: --num_processes 2 --process_index 1 (0 for the other)."
            ) from error
        if begun is not None and {**begun, **_read(path, file)} != begun:
            raise ValueError(
                f"Another process has begun a job with other settings in {folder} at this moment, and rows of two "
                "jobs do not mix. Use another folder."
            )
        yield
