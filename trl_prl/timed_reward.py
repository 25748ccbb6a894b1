"""An outcome reward under a hard time limit, in a process of its own that can be killed."""

from __future__ import annotations

import multiprocessing
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from trl_prl.types import OutcomeReward


# Importing a reward may bring in TRL, on a busy machine.
_START_TIMEOUT = 600.0


def load_reward(name: str) -> OutcomeReward:
    """Import an outcome reward.

    Args:
        name (`str`):
            `"accuracy"` for [`math_accuracy_reward`](answers.py), or `"module:function"`.

    Returns:
        [`OutcomeReward`]: The function.

    Raises:
        `ValueError`: When there is no such function.
    """
    module, _, function = ("trl_prl.answers:math_accuracy_reward" if name == "accuracy" else name).partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Got the reward {name!r}, which cannot be imported ({error}). Use 'accuracy', or 'module:function' with "
            "a module that Python finds (the current folder may have to be in PYTHONPATH)."
        ) from error


class TimedReward:
    """Checks completions one at a time in another process, and kills it when a check takes too long.

    Signal-based limits cannot interrupt a computation inside a C library, such as a power tower in an answer; killing
    a process can. A check that was killed has the reward `None`, which is counted as failed, never as wrong.

    Args:
        name (`str`):
            Reward, as [`load_reward`] takes it. It must not compare completions with each other.
        timeout (`float`):
            Seconds for one completion.

    Raises:
        `ValueError`: When there is no such reward.
    """

    def __init__(self, name: str, timeout: float) -> None:
        load_reward(name)
        self.name = name
        self.timeout = timeout
        self._worker: tuple[Any, Connection] | None = None

    def __call__(self, *, completions: list[Any], **columns: Any) -> list[float | None]:
        """Check completions; what the reward raises is raised here."""
        return [
            self._check({name: [values[i]] for name, values in {**columns, "completions": completions}.items()})
            for i in range(len(completions))
        ]

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            process, connection = self._worker
            process.kill()
            process.join()
            connection.close()
            self._worker = None

    def _check(self, columns: dict[str, Any]) -> float | None:
        connection = self._start()
        connection.send(columns)
        if not connection.poll(self.timeout):
            self.close()
            return None
        try:
            result = connection.recv()
        except EOFError:
            # The check took its process down, by its memory for instance.
            self.close()
            return None
        if isinstance(result, Exception):
            raise result
        return result

    def _start(self) -> Connection:
        if self._worker is None:
            # A fork of a process whose libraries have threads may hang.
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self.name), daemon=True)
            process.start()
            theirs.close()
            if not ours.poll(_START_TIMEOUT):
                process.kill()
                raise TimeoutError(
                    f"The reward {self.name!r} was not imported within {_START_TIMEOUT:.0f} seconds, so nothing can "
                    "be checked. Import less in its module, or set the time limit to 0 to check without one."
                )
            ours.recv()
            self._worker = process, ours
        return self._worker[1]


def _serve(connection: Connection, name: str) -> None:
    """Check completions until the other end is closed."""
    reward = load_reward(name)
    connection.send("ready")
    while True:
        try:
            columns = connection.recv()
        except EOFError:
            return
        try:
            (result,) = reward(**columns)
        # Whatever the reward raises is raised in the process that asked.
        except Exception as error:
            connection.send(error)
        else:
            connection.send(None if result is None else float(result))
