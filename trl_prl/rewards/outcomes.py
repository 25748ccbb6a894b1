"""What every outcome reward shares: it is found by its name, and what it is given and returns is checked."""

from __future__ import annotations

import math
import os
import reprlib
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from trl_prl.types import OutcomeReward


OWN_REWARDS = {
    "accuracy": "trl_prl.rewards.answers:math_accuracy_reward",
    "exact_match": "trl_prl.rewards.answers:exact_match_reward",
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
    return import_object(OWN_REWARDS.get(name, name), "reward", "'accuracy', 'exact_match' or ")


def check_reward(name: str, columns: Iterable[str]) -> None:
    """Refuse, before anything is sampled, an outcome reward that cannot be imported or has nothing to compare with.

    Args:
        name (`str`):
            As for [`load_reward`].
        columns (`Iterable[str]`):
            Columns of the problems. A reward of one's own reads whatever it names.

    Raises:
        `ValueError`: When there is no such reward, or no column that it reads.
        `ImportError`: When it needs a package that is not installed.
    """
    load_reward(name)
    if name == "accuracy" and find_spec("math_verify") is None:
        raise ImportError(
            "The reward 'accuracy' compares formulas with the package 'math-verify', which is not installed. Install "
            "it with `pip install 'trl-prl[math]'`, or use the reward 'exact_match'."
        )
    if name in OWN_REWARDS and "answer" not in (found := sorted(columns)):
        raise ValueError(
            f"The problems have no column 'answer', which the reward {name!r} compares with, only "
            f"{', '.join(map(repr, found))}. Rename the column of right answers, or give a reward of your own as "
            "--reward module:function."
        )


def import_object(name: str, what: str, others: str = "") -> Any:
    """Import what a user names as `"module:name"`; modules in the current folder are found too.

    Args:
        name (`str`):
            The name.
        what (`str`):
            What it stands for, for the message.
        others (`str`, *optional*):
            What else could have been given, for the message.

    Returns:
        `Any`: The object.

    Raises:
        `ValueError`: When there is no such object.
    """
    module, _, attribute = name.partition(":")
    # `python script.py` looks beside the script and a console script nowhere: a user's module lies in the folder where
    # the command is run.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), attribute)
    except SystemExit as error:
        raise ValueError(
            f"Got the {what} {name!r}, whose module ends the program when it is imported ({error!r}). Put what a "
            "script does behind `if __name__ == '__main__':`."
        ) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Got the {what} {name!r}, which cannot be imported ({error}). Use {others}'module:name' with a module in "
            "the current folder or one that is installed."
        ) from error


def check_rewards(rewards: Any, num_completions: int, name: str = "") -> list[float | None]:
    """Check what an outcome reward returned.

    Args:
        rewards (`Any`):
            What it returned.
        num_completions (`int`):
            How many completions it was given.
        name (`str`, *optional*):
            Name of the reward, for messages.

    Returns:
        `list[float | None]`: One reward per completion; `None` for one that could not be checked.

    Raises:
        `ValueError`: When it is not one number, `None` or NaN per completion.
    """
    which = f"The outcome reward {name!r}" if name else "The outcome reward"
    try:
        values = None if isinstance(rewards, str | bytes | dict) else list(rewards)
    except TypeError:  # `None`, a number, a tensor without rows
        values = None
    if values is None:
        raise ValueError(
            f"{which} returned {reprlib.repr(rewards)} for {num_completions} completions, so it is open which of them "
            "is right. Return a list with one number per completion, None for one that cannot be checked."
        )
    if len(values) != num_completions:
        raise ValueError(
            f"{which} returned {len(values)} rewards for {num_completions} completions, so they cannot be told apart. "
            "Return one per completion, None for one that cannot be checked."
        )
    try:
        numbers = [None if value is None else float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{which} returned {reprlib.repr(values)}, in which not every entry is a number ({error}). Return one "
            "number per completion, None for one that cannot be checked."
        ) from error
    return [None if number is None or math.isnan(number) else number for number in numbers]
