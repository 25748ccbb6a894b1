"""Outcome rewards under a hard time limit: hostile answers stall no run, crash none and leave the others alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile_answers import HANG, hostile_answers
from trl_prl.rewards.answers import exact_match_reward
from trl_prl.rewards.extraction import final_answer
from trl_prl.rewards.outcomes import load_reward
from trl_prl.rewards.timed import TimedReward


# ---- rewards that tests name ----


def slow_for_nines(completions: list[str], **columns: Any) -> list[float]:
    """Hangs on some completions as a power tower in an answer hangs an answer check."""
    for text in completions:
        if "9" in text:
            while True:
                pass
    return [1.0 for _ in completions]


def failing(completions: list[str], **columns: Any) -> list[float]:
    """A reward with a bug."""
    raise KeyError("no such column")


def dying(completions: list[str], **columns: Any) -> list[float]:
    """Takes its process down for some completions, and the machine's memory for others."""
    if completions[0] == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if completions[0] == "leave":
        os._exit(3)
    if completions[0] == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(64 << 20))
    return [float(completions[0])]


class Unpicklable(Exception):
    """An error that cannot be made from what it holds."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.hook = lambda: code


class Mute(Exception):
    """An error that can neither be packed nor say what it is."""

    def __str__(self) -> str:
        raise RuntimeError

    def __reduce__(self) -> Any:
        raise RuntimeError


def raising(completions: list[str], **columns: Any) -> list[float]:
    """Fails as the completion says."""
    if completions[0] == "mute":
        raise Mute
    if completions[0] == "huge":
        return [10**400]
    if completions[0] == "exit":
        sys.exit(3)
    if completions[0] == "unpicklable":
        raise Unpicklable(5, "the server says no")
    if completions[0] == "number":
        return 1.0  # type: ignore[return-value]
    print("a reward may print")
    os.write(1, b"in any way")
    return [float("nan")] if completions[0] == "nan" else [1.0]


def process_of(completions: list[str], **columns: Any) -> list[float]:
    """The process that checks, after a moment."""
    time.sleep(0.05)
    return [float(os.getpid())]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_check_that_hangs_is_killed_and_counted(num_workers: int) -> None:
    with TimedReward("tests.rewards.test_timed_reward:slow_for_nines", timeout=0.5, num_workers=num_workers) as reward:
        assert reward(completions=["1", "9", "2", "99", "3", "4", "5"]) == [1.0, None, 1.0, None, 1.0, 1.0, 1.0]
        assert reward(completions=["1"]) == [1.0]
        assert reward(completions=[]) == []


def test_an_exception_in_a_check_is_raised_not_reward_zero() -> None:
    with TimedReward("tests.rewards.test_timed_reward:failing", timeout=30) as reward:
        for _ in range(2):
            with pytest.raises(KeyError, match="no such column"):
                reward(completions=["1"])


@pytest.mark.parametrize(
    ("completion", "kind", "words"),
    [
        ("exit", RuntimeError, r"SystemExit\(3\)"),
        ("unpicklable", RuntimeError, "Unpicklable: the server says no"),
        ("mute", RuntimeError, "raised Mute"),
        ("huge", ValueError, "int too large to convert to float"),
        ("number", ValueError, "returned 1.0 for 1 completions"),
    ],
)
def test_whatever_a_reward_raises_is_seen(completion: str, kind: type[Exception], words: str) -> None:
    with TimedReward("tests.rewards.test_timed_reward:raising", timeout=30) as reward:
        with pytest.raises(kind, match=words) as caught:
            reward(completions=["1", completion])
        where = str(caught.value) if kind is RuntimeError else "".join(caught.value.__notes__)
        assert "Traceback" in where
        assert "raised by the reward 'tests.rewards.test_timed_reward:raising'" in where
        assert reward(completions=["1", "nan"]) == [1.0, None]


SCRIPT = """
import threading
print("the script runs as", __name__)
from trl_prl.rewards.timed import TimedReward
with TimedReward("my_reward:right", timeout=30) as reward:
    print(reward(completions=["1", "0"], answer=["1", "1"]))
"""


def test_a_script_without_a_main_guard_runs_once_and_finds_its_reward(tmp_path: Path) -> None:
    """A pool that imports the main module would run the whole script again in each of its processes."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "my_reward.py").write_text(
        "def right(completions, answer, **columns):\n    return [float(c == a) for c, a in zip(completions, answer)]\n"
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["the script runs as __main__", "[1.0, 0.0]"], done.stderr


def test_checking_does_not_load_what_the_asking_process_has_loaded() -> None:
    import torch  # noqa: F401

    with TimedReward("tests.rewards.light_rewards:loaded_modules", timeout=60) as reward:
        assert reward(completions=["trl_prl.rewards.checker", "torch", "trl", "transformers"]) == [1.0, 0.0, 0.0, 0.0]


def test_a_check_that_crashes_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with TimedReward("tests.rewards.test_timed_reward:dying", timeout=20, max_memory=1 << 29) as reward:
        assert reward(completions=["1", "die", "0", "die"]) == [1.0, None, 0.0, None]
        assert caplog.text.count("was ended by SIGSEGV, for what it computed or for more than 0.5 GiB of memory") == 2
        if Path("/proc/self/statm").exists():
            begun = time.monotonic()
            assert reward(completions=["memory", "0"]) == [None, 0.0]
            assert time.monotonic() - begun < 15
            assert "was ended by SIGKILL" in caplog.text


def test_a_reward_that_ends_its_process_is_an_error() -> None:
    """Otherwise a checker that always leaves would let a whole job end with nothing checked."""
    with TimedReward("tests.rewards.test_timed_reward:dying", timeout=20) as reward:
        with pytest.raises(RuntimeError, match=r"test_timed_reward:dying' ended its process, with exit code 3\."):
            reward(completions=["1", "leave"])
        assert reward(completions=["1"]) == [1.0]


def test_workers_share_the_checks() -> None:
    with TimedReward("tests.rewards.test_timed_reward:process_of", timeout=30, num_workers=2) as reward:
        assert len(set(reward(completions=["1"] * 6))) == 2
        processes = [int(value) for value in set(reward(completions=["1"] * 6)) if value is not None]
    # Closed: no checker is left, whoever its parent was.
    time.sleep(0.2)
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_a_module_that_ends_the_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends_at_import.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'ends_at_import:f', whose module ends the program .*SystemExit\(0\)"):
        load_reward("ends_at_import:f")


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers=0"):
        TimedReward("accuracy", timeout=1, num_workers=0)
    with pytest.raises(ValueError, match="cannot be imported"):
        TimedReward("trl_prl.no_such_module:reward", timeout=1)


@pytest.mark.slow
def test_200_hostile_answers_leave_their_neighbours_alone() -> None:
    """Good answers between hostile ones are still right, and none of the hostile ones is."""
    pytest.importorskip("math_verify")
    hostile = [HANG] * 5 + hostile_answers(200)[5:]
    assert len(set(hostile)) == 196
    completions = [text for i, bad in enumerate(hostile) for text in (bad, rf"\boxed{{{i}}}", rf"\boxed{{{i}8}}")]
    answers = [str(i) for i in range(200) for _ in range(3)]
    with TimedReward("tests.hostile_answers:accuracy_that_may_hang", timeout=1, num_workers=2) as reward:
        rewards = reward(completions=completions, answer=answers)
    assert rewards[1::3] == [1.0] * 200
    assert rewards[2::3] == [0.0] * 200
    assert set(rewards[::3]) <= {0.0, None}
    assert rewards[:15:3] == [None] * 5


def test_answer_is_not_a_substring() -> None:
    """`12` is not in `128`."""
    reward = load_reward("tests.benchmarks.arithmetic.task:arithmetic_reward")
    assert reward(prompts=[], completions=["#128", "#12", "12"], completion_ids=[], answer=["12"] * 3) == [0, 1, 0]
    assert exact_match_reward(["#128", "so\n#### 12", r"\boxed{12}", "12"], answer=[12, "12", "12", "12"]) == [
        0,
        1,
        1,
        1,
    ]


def test_a_missing_right_answer_is_not_checked() -> None:
    """Also where the completion says `None` or `nan`."""
    missing = [None, float("nan"), np.float32("nan"), np.array(float("nan")), "", " "]
    for text in ("None", "nan", "12", "no answer here"):
        completions = [rf"\boxed{{{text}}}"] * 6
        assert exact_match_reward(completions, answer=missing) == [None] * 6
    assert exact_match_reward([r"\boxed{nan}", "none"], answer=["nan", "none"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{1}, no: \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed {a{b}c} {}", "a{b}c"),
        ("1+1\n#2", "2"),
        ("# Heading\n## Another\ntext\n#### 1,000 \n", "1,000"),
        ("# Heading\nno answer", None),
        (r"\boxed{}", None),
        ("", None),
        ("}{" * 10, None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_final_answer_is_linear_in_the_text() -> None:
    begun = time.monotonic()
    assert final_answer(r"\boxed{" * 200_000) is None
    assert time.monotonic() - begun < 2
