"""Files that appear whole: written under a name nobody can foresee, and renamed when they are complete."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO


_PREFIX = ".tmp-"


@contextmanager
def replace_file(
    path: Path, *, private: bool = False, overwrite: bool = True, alone: bool = False
) -> Iterator[BinaryIO]:
    """Open a file that takes the place of another when the block ends without an exception, and not before.

    Whoever reads the path sees the old content or the new one, whole. A link at the path is replaced, not followed.
    What a killed process has left of an earlier try is removed.

    Args:
        path (`Path`):
            The file; its folder is made if absent.
        private (`bool`, *optional*, defaults to `False`):
            Whether only the user may read it, as it may hold settings.
        overwrite (`bool`, *optional*, defaults to `True`):
            Whether it may replace a file that is there.
        alone (`bool`, *optional*, defaults to `False`):
            Whether to refuse while another process writes the same file.

    Yields:
        `BinaryIO`: Where to write. Its `name` ends as that of the path does, for libraries that open files themselves.

    Raises:
        `FileExistsError`: When the file is there and may not be replaced.
        `ValueError`: When another process writes it, if that matters.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent) if alone else nullcontext():
        left = path.parent.glob(f"{_PREFIX}*-{glob.escape(path.name)}")
        busy = [one for one in left if not _remove_abandoned(one)]
        if busy and alone:
            raise ValueError(
                f"Another process is writing '{path}', and two results do not go into one file. Wait for it, or write "
                "to another one."
            )
        file = _begin(path, 0o600 if private else 0o666)
    temporary = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if overwrite:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others who ask out of the folder: between a look at who writes and a file of one's own nobody may begin."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Where folders cannot be locked, as over NFS, processes that start at the same instant do not see each other.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _begin(path: Path, mode: int) -> BinaryIO:
    """Open a temporary file, and lock it, which says that it is being written."""
    opener = partial(os.open, mode=mode)
    while True:
        # Exclusive: neither a file nor a link that is there is opened.
        file = open(path.with_name(f"{_PREFIX}{secrets.token_hex(8)}-{path.name}"), "xb", opener=opener)  # noqa: SIM115
        # Some file systems of clusters have no locks: there, nobody sees who is writing.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):
            return file
        # Another process was tidying up before the lock.
        file.close()


def _remove_abandoned(path: Path) -> bool:
    """Remove a temporary file that nobody is writing; say whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        # Removed by another process, a link, or not ours.
        return True
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # It cannot be known whether somebody writes it.
            return True
        path.unlink(missing_ok=True)
        return True


def write_text(path: Path, text: str | Iterable[str], *, private: bool = False) -> None:
    """Write a text file that appears whole; what is no text in UTF-8, as sampled bytes need not be, is escaped.

    Args:
        path (`Path`):
            The file; its folder is made if absent.
        text (`str` or `Iterable[str]`):
            The text, or its parts in order.
        private (`bool`, *optional*, defaults to `False`):
            As in [`replace_file`].
    """
    with replace_file(path, private=private) as file:
        for part in (text,) if isinstance(text, str) else text:
            file.write(part.encode("utf-8", "backslashreplace"))
