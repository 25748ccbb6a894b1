"""Files appear whole or not at all, leave nothing behind, and cannot be aimed at other files."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trl_prl.storage import files
from trl_prl.storage.files import replace_file, write_text


def start_writer(path: Path) -> subprocess.Popen[str]:
    """A process that writes half a file and waits."""
    code = (
        "import sys, time; from pathlib import Path; from trl_prl.storage.files import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('begun', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a[1].json"
    write_text(path, "old")
    with replace_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(TypeError), replace_file(path) as file:
        file.write("no bytes")  # type: ignore[arg-type]
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a[1].json"]


def test_what_a_kill_leaves_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    process = start_writer(path)
    write_text(path, "mine")
    assert len(os.listdir(tmp_path)) == 2
    with pytest.raises(ValueError, match="Another process is writing"), replace_file(path, alone=True):
        pass
    process.kill()
    process.wait()
    assert len(os.listdir(tmp_path)) == 2
    write_text(path, "again")
    assert os.listdir(tmp_path) == ["a.json"]
    assert path.read_text() == "again"


def test_of_two_that_begin_at_the_same_instant_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_late(*args: Any) -> Any:
        time.sleep(0.2)
        return begin(*args)

    begin = files._begin
    monkeypatch.setattr(files, "_begin", begin_late)
    barrier = threading.Barrier(4)

    def write(number: int) -> int | None:
        barrier.wait()
        try:
            with replace_file(tmp_path / "a.txt", alone=True) as file:
                file.write(b"%d" % number)
                time.sleep(1.5)
            return number
        except ValueError:
            return None

    with ThreadPoolExecutor(4) as pool:
        found = [number for number in pool.map(write, range(4)) if number is not None]
    assert [(tmp_path / "a.txt").read_bytes()] == [b"%d" % number for number in found]


def test_files_appear_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*args: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", no_lock)
    (tmp_path / ".tmp-0123-a.txt").write_text("of a process that was killed, or not")
    for text in (b"1", b"2"):
        with replace_file(tmp_path / "a.txt", alone=True) as file:
            file.write(text)
    assert (tmp_path / "a.txt").read_bytes() == b"2"


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "out" / "a.json"
    path.parent.mkdir()
    path.symlink_to(victim)
    # A name that looks like one of a killed process.
    (path.parent / ".tmp-0123456789abcdef-a.json").symlink_to(victim)
    write_text(path, "new")
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_text() == "new"


def test_only_the_user_reads_what_is_private_and_a_file_that_is_there_may_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "a", private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError), replace_file(path, overwrite=False) as file:
        file.write(b"b")
    assert path.read_text() == "a"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.slow
def test_many_processes_publish_one_file(tmp_path: Path) -> None:
    """Each tidies up while the others write, and none loses its file to it."""
    code = (
        "import sys; from pathlib import Path; from trl_prl.storage.files import write_text\n"
        "for k in range(300): write_text(Path(sys.argv[1]), sys.argv[2] * 5000)"
    )
    path = tmp_path / "a.txt"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)]) for k in range(4)]
    while any(process.poll() is None for process in processes):
        text = path.read_text() if path.exists() else "0" * 5000
        assert len(text) == 5000
        assert len(set(text)) == 1
        time.sleep(0.002)
    assert [process.returncode for process in processes] == [0] * 4
    assert os.listdir(tmp_path) == ["a.txt"]
