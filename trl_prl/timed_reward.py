"""An outcome reward under a hard time limit, in processes of its own that can be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any

from trl_prl.types import OutcomeReward


# Importing a reward may bring in TRL, on a busy machine.
_START_TIMEOUT = 600.0
# How often the process that holds the imported reward looks after its checker.
_WATCH_SECONDS = 0.05
# Time for a checker to end by itself, which an idle one does at once.
_STOP_SECONDS = 0.5
_MEMORY_FILE = "/proc/{}/statm"  # where there is no such file, only the time is limited

_OWN_REWARDS = {
    "accuracy": "trl_prl.answers:math_accuracy_reward",
    "exact_match": "trl_prl.answers:exact_match_reward",
}


def load_reward(name: str) -> OutcomeReward:
    """Import an outcome reward.

    Args:
        name (`str`):
            `"accuracy"` for [`math_accuracy_reward`](answers.py), `"exact_match"` for
            [`exact_match_reward`](answers.py), or `"module:function"`.

    Returns:
        [`OutcomeReward`]: The function.

    Raises:
        `ValueError`: When there is no such function.
    """
    module, _, function = _OWN_REWARDS.get(name, name).partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Got the reward {name!r}, which cannot be imported ({error}). Use 'accuracy', 'exact_match', or "
            "'module:function' with a module that Python finds (the current folder may have to be in PYTHONPATH)."
        ) from error


class TimedReward:
    """Checks completions one at a time in other processes, and kills one when its check takes too long.

    Signal-based limits cannot interrupt a computation inside a C library, such as a power tower in an answer; killing
    a process can. A check that was killed has the reward `None`, which is counted as failed, never as wrong. The
    reward runs outside the main thread of its process, where TRL's [`~trl.rewards.accuracy_reward`] sets no limits of
    its own: those would turn an answer that took too long into a wrong one.

    Where the system can fork, a killed checker is replaced at once by a copy of a process that has the reward
    imported and has never computed anything.

    Args:
        name (`str`):
            Reward, as [`load_reward`] takes it. It must not compare completions with each other.
        timeout (`float`):
            Seconds for one completion.
        num_workers (`int`, *optional*, defaults to `1`):
            Completions checked at a time.
        max_memory (`int`, *optional*, defaults to 4 GiB):
            Bytes of memory at which a check is killed as one that takes too long is, where the system tells them.

    Raises:
        `ValueError`: When there is no such reward, or a number is not positive.
    """

    def __init__(self, name: str, timeout: float, num_workers: int = 1, max_memory: int = 4 << 30) -> None:
        load_reward(name)
        if timeout <= 0 or num_workers < 1:
            raise ValueError(
                f"Got timeout={timeout} and num_workers={num_workers}, with which nothing can be checked. Use a "
                "positive number of seconds and at least one worker."
            )
        self.name = name
        self.timeout = timeout
        self.num_workers = num_workers
        self.max_memory = max_memory
        self._workers: list[_Worker] = []

    def __enter__(self) -> TimedReward:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, *, completions: list[Any], **columns: Any) -> list[float | None]:
        """Check completions; what the reward raises is raised here."""
        columns["completions"] = completions
        rewards: list[float | None] = [None] * len(completions)
        pending = deque(range(len(completions)))
        busy: dict[int, _Worker] = {}
        try:
            while len(self._workers) < min(self.num_workers, len(completions)):
                self._workers.append(_Worker(self.name, self.timeout, self.max_memory))
            idle = list(self._workers)
            while True:
                while idle and pending:
                    index, worker = pending.popleft(), idle.pop()
                    worker.begin({name: [values[index]] for name, values in columns.items()})
                    busy[index] = worker
                if not busy:
                    return rewards
                first_deadline = min(worker.deadline for worker in busy.values())
                wait([worker.connection for worker in busy.values()], max(0.0, first_deadline - time.monotonic()))
                for index, worker in list(busy.items()):
                    if worker.ended():
                        rewards[index] = worker.result()
                        idle.append(busy.pop(index))
        except BaseException:
            # Answers to the checks under way must not be taken for those of the next call.
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []


class _Worker:
    """One process that checks, and what is known of it here."""

    def __init__(self, name: str, timeout: float, max_memory: int) -> None:
        self.name, self.timeout, self.max_memory = name, timeout, max_memory
        self.deadline = 0.0
        self.connection: Connection
        self._process: Any = None
        # Process id of the checker: the process itself, or the latest copy it made of itself; 0 until it is ready.
        self._checker = 0
        self._start()

    def begin(self, columns: Mapping[str, Any]) -> None:
        """Send one completion to be checked."""
        if self._process is None:
            self._start()
        if not self._checker:
            self._await_start()
        self.connection.send(columns)
        self.deadline = time.monotonic() + self.timeout

    def ended(self) -> bool:
        """Whether there is an answer, or no more time for one."""
        return self.connection.poll() or time.monotonic() >= self.deadline

    def result(self) -> float | None:
        """The reward; `None` if the check took too long or took its process down, by its memory for instance."""
        if not self.connection.poll():
            self._replace()
            return None
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.close()
            return None
        if kind == "ready":
            self._checker = value
            return None
        if isinstance(value, Exception):
            raise value
        return value

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self.connection.close()
        if self._checker:
            self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            # The process before its checker, so that it does not make another one.
            self._process.kill()
            self._process.join()
            if self._checker not in (0, self._process.pid):
                _kill(self._checker)
        self._process = None

    def _start(self) -> None:
        # A fork of a process whose libraries have threads may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.name, self.max_memory), daemon=True)
        self._process.start()
        self._checker = 0
        theirs.close()

    def _await_start(self) -> None:
        if not self.connection.poll(_START_TIMEOUT):
            self.close()
            raise TimeoutError(
                f"The reward {self.name!r} was not imported within {_START_TIMEOUT:.0f} seconds, so nothing can "
                "be checked. Import less in its module, or set the time limit to 0 to check without one."
            )
        try:
            _, self._checker = self.connection.recv()
        except EOFError as error:
            self.close()
            raise RuntimeError(
                f"The process that checks answers with the reward {self.name!r} ended before it began, so nothing can "
                "be checked. Its message is above; a script that starts a job needs `if __name__ == '__main__':`."
            ) from error

    def _replace(self) -> None:
        """Kill the checker; the process that made it makes another one."""
        if self._checker == self._process.pid:
            self.close()
            return
        _kill(self._checker)
        try:
            while True:
                # What it may still have answered came too late.
                kind, value = self.connection.recv()
                if kind == "ready":
                    self._checker = value
                    return
        except (EOFError, OSError):
            self.close()


def _kill(process_id: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGKILL)


def _serve(connection: Connection, name: str, max_memory: int) -> None:
    """Import the reward and check completions, in copies of this process where there are any."""
    # Ctrl-C reaches every process of a terminal; the one that asks ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reward = load_reward(name)
    if not hasattr(os, "fork"):
        _check_all(connection, reward)
        return
    parent = os.getppid()
    while True:
        checker = os.fork()
        if checker == 0:
            # Outside the main thread, so that nothing in the reward can set an alarm of its own.
            thread = threading.Thread(target=_check_all, args=(connection, reward), daemon=True)
            thread.start()
            thread.join()
            os._exit(0)
        while True:
            ended, status = os.waitpid(checker, os.WNOHANG)
            if ended:
                break
            if _memory(checker) > max_memory:
                _kill(checker)
            if os.getppid() != parent:
                # Nobody is left to kill a check that takes too long.
                _kill(checker)
                return
            time.sleep(_WATCH_SECONDS)
        if os.waitstatus_to_exitcode(status) == 0:
            return


def _memory(process_id: int) -> int:
    """Bytes of memory that a process has in use; 0 where that cannot be told."""
    try:
        with open(_MEMORY_FILE.format(process_id)) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _check_all(connection: Connection, reward: OutcomeReward) -> None:
    """Check completions until the other end is closed."""
    connection.send(("ready", os.getpid()))
    while True:
        try:
            columns = connection.recv()
        except EOFError:
            return
        result: Any
        try:
            (result,) = reward(**columns)
            result = None if result is None else float(result)
        # Whatever the reward raises is raised in the process that asked.
        except Exception as error:
            result = error
        connection.send(("result", result))
