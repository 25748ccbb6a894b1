"""The process in which [`TimedReward`](timed.py) checks answers: started by it, with a pool of its own.

Neither the user's script nor what it imported is in it, nor in the workers. Reads the reward's name and settings, then
numbered completions, from its input; writes numbered results.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .outcomes import OWN_REWARDS, check_rewards, load_reward


# How often the memory of the workers is looked at.
_WATCH_SECONDS = 0.1

_reward = functools.cache(load_reward)


def serve() -> None:
    """Check completions until the other end is closed."""
    import psutil
    from pebble import ProcessExpired, ProcessPool

    # What a reward prints must not get between the results.
    tasks, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    name, timeout, num_workers, max_memory = pickle.load(tasks)
    # A process that has the reward imported and has never computed anything makes a new worker in an instant.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        module = OWN_REWARDS.get(name, name).partition(":")[0]
        context.set_forkserver_preload([module, *(["math_verify"] if name == "accuracy" else [])])
    pending: set[int] = set()

    def watch_memory() -> None:
        this = psutil.Process()
        while True:
            time.sleep(_WATCH_SECONDS)
            for process in this.children(recursive=True) if pending else ():
                with contextlib.suppress(psutil.Error):
                    if process.memory_info().rss > max_memory:
                        process.kill()

    def answer(index: int, future: Any) -> None:
        result: tuple[str, Any]
        try:
            result = future.result()
        except TimeoutError:
            result = ("reward", None)
        except ProcessExpired as error:
            result = _lost(error.exitcode, name)
        except CancelledError:
            return
        except BrokenProcessPool:
            # The one who asked starts another process; workers that are computing must not outlive this one.
            os.killpg(0, signal.SIGKILL)
        # Whatever else there is, the one who asked waits for an answer.
        except Exception as error:
            result = ("error", _portable(error, name))
        pending.discard(index)
        pickle.dump((index, *result), results)
        results.flush()

    threading.Thread(target=watch_memory, daemon=True).start()
    pool = ProcessPool(num_workers, initializer=_begin, initargs=(name,), context=context)
    with contextlib.suppress(EOFError):
        while True:
            index, columns = pickle.load(tasks)
            pending.add(index)
            pool.schedule(_check, (name, columns), timeout=timeout).add_done_callback(functools.partial(answer, index))
    pool.stop()
    pool.join()


def _begin(name: str) -> None:
    """Make a worker ready."""
    # The pool's own handler would wait for a computation in C to end before the process does.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ValueError):  # raised again, and reported, when something is checked
        _reward(name)


def _check(name: str, columns: bytes) -> tuple[str, Any]:
    """The reward of one completion, or what the reward raised."""
    found: list[tuple[str, Any]] = []

    def check() -> None:
        try:
            found.append(("reward", check_rewards(_reward(name)(**pickle.loads(columns)), 1, name)[0]))
        except MemoryError as error:
            found.append(("lost", repr(error)))
        # Whatever the reward raises is raised in the process that asked.
        except BaseException as error:
            found.append(("error", _portable(error, name)))

    # Outside the main thread, so that nothing in the reward can set an alarm of its own.
    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join()
    return found[0]


def _lost(exit_code: int, name: str) -> tuple[str, Any]:
    """What a check is whose process has ended: an answer's doing when a signal ended it, the reward's when not."""
    if exit_code < 0:
        return "lost", signal.Signals(-exit_code).name
    said = f"The reward {name!r} ended its process, with exit code {exit_code}. "
    return "error", pickle.dumps(RuntimeError(said + "Raise an exception instead, or return None"))


def _portable(error: BaseException, name: str) -> bytes:
    """An exception as bytes, with where it came from; one that cannot be sent as what it says."""
    where = f"raised by the reward {name!r} in a process of its own:\n{traceback.format_exc()}"
    if isinstance(error, Exception):
        error.add_note(where)
        with contextlib.suppress(Exception):  # what classes of the user's own raise when they are packed or unpacked
            str(error)
            data = pickle.dumps(error)
            if type(pickle.loads(data)) is type(error):
                return data
        said = type(error).__name__
        with contextlib.suppress(Exception):  # a text of the user's own too
            said = f"{said}: {error}"
    else:
        said = f"{error!r}, which would have ended the whole program. Raise an exception instead, or return None"
    return pickle.dumps(RuntimeError(f"The reward {name!r} raised {said}. It was {where}"))
