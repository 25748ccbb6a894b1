"""An outcome reward under a hard time limit, in processes of its own that can be killed."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
from typing import Any

from .outcomes import load_reward


logger = logging.getLogger(__name__)

# An idle pool ends at once.
_STOP_SECONDS = 5.0
_MAX_RESTARTS = 3


class TimedReward:
    """Checks completions one at a time in other processes, and kills one when its check takes too long.

    Signal-based limits cannot interrupt a computation inside a C library, such as a power tower in an answer; killing
    a process can. A check that took too long has the reward `None`: not checked, never wrong. So has one that was
    killed for its memory or crashed in a C library, after a warning: one answer must not end a job of many. Whatever
    the reward raises is raised here, `sys.exit`, `os._exit` and exceptions that cannot be pickled as a `RuntimeError`
    with their text.

    The checks run in a [pool](https://pebble.readthedocs.io) that belongs to a small program of its own
    ([`checker`](checker.py)), so that neither the main script nor its libraries are imported for them: a script needs
    no main guard. The reward runs outside the main thread of its process, where TRL's
    [`~trl.rewards.accuracy_reward`] sets no limits of its own: those would turn an answer that took too long into a
    wrong one.

    Args:
        name (`str`):
            Reward, as [`load_reward`] takes it. It must not compare completions with each other.
        timeout (`float`):
            Seconds for one completion.
        num_workers (`int`, *optional*, defaults to `1`):
            Completions checked at a time.
        max_memory (`int`, *optional*, defaults to 4 GiB):
            Bytes of memory at which a check is killed as one that takes too long is.

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
        self._checker: Any = None  # a `subprocess.Popen`

    def __enter__(self) -> TimedReward:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, *, completions: list[Any], **columns: Any) -> list[float | None]:
        """Check completions; what the reward raises is raised here.

        Raises:
            `RuntimeError`: When the program that checks ends by itself again and again.
        """
        columns["completions"] = completions
        # Packed here, as only here everything that rows are made of is known to be importable.
        pending = {
            i: pickle.dumps({name: [values[i]] for name, values in columns.items()}) for i in range(len(completions))
        }
        rewards: list[float | None] = [None] * len(completions)
        num_restarts = 0
        try:
            while pending:
                num_before = len(pending)
                try:
                    self._check(pending, rewards)
                except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
                    num_restarts = num_restarts + 1 if len(pending) == num_before else 0
                    self.close()
                    if num_restarts > _MAX_RESTARTS:
                        raise RuntimeError(
                            f"The process that checks answers with the reward {self.name!r} ended by itself "
                            f"{num_restarts} times, so nothing can be checked. Its message is above; look for what "
                            "the module of the reward does when it is imported."
                        ) from error
        except BaseException:
            # Answers to the checks under way must not be taken for those of the next call.
            self.close()
            raise
        return rewards

    def _check(self, pending: dict[int, bytes], rewards: list[float | None]) -> None:
        """Send the completions that are pending and take their rewards as they come."""
        if self._checker is None:
            self._checker = _start_checker()
            pickle.dump((self.name, self.timeout, self.num_workers, self.max_memory), self._checker.stdin)
        for task in pending.items():
            pickle.dump(task, self._checker.stdin)
        self._checker.stdin.flush()
        while pending:
            index, kind, value = pickle.load(self._checker.stdout)
            if kind == "error":
                raise pickle.loads(value)
            if kind == "lost":
                logger.warning(
                    "A check with the reward %r was ended by %s, for what it computed or for more than %.3g GiB of "
                    "memory. Its completion is not checked, neither right nor wrong.",
                    self.name,
                    value,
                    self.max_memory / (1 << 30),
                )
            rewards[index] = value if kind == "reward" else None
            del pending[index]

    def close(self) -> None:
        """End the processes."""
        checker, self._checker = self._checker, None
        if checker is None:
            return
        with contextlib.suppress(BrokenPipeError):
            checker.stdin.close()
        try:
            checker.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(checker.pid, signal.SIGKILL)
            checker.wait()
        checker.stdout.close()


def _start_checker() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from trl_prl.rewards.checker import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        # Ctrl-C reaches every process of a terminal; this one ends when it is told to.
        start_new_session=True,
    )
