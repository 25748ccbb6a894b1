"""Pytest plugin of `trl_own_tests.py`: puts a trainer of this package where TRL's tests import `GRPOTrainer`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import trl
from trl import import_utils


def availability(name: str) -> Callable[[], bool]:
    """Stand in for a check `is_PACKAGE_available` that the installed TRL has not, for tests of other releases."""
    if name.startswith("is_") and name.endswith("_available"):
        package = name.removeprefix("is_").removesuffix("_available")
        return lambda: importlib.util.find_spec(package) is not None
    raise AttributeError(name)


def step_lengths(steps: list[list[str]], **kwargs: Any) -> list[list[float]]:
    """Process reward that differs between steps: a hundredth of the length of each in characters."""
    return [[len(step) / 100 for step in of_completion] for of_completion in steps]


step_lengths.returns = "advantages"


def pytest_configure() -> None:
    import_utils.__getattr__ = availability
    arm = os.environ["TRL_PRL_TEST_TRAINER"]
    if arm == "GRPOTrainer":
        return
    import trl_prl

    if arm == "PAVTrainer":

        class Trainer(trl_prl.PAVTrainer):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.setdefault("process_reward", step_lengths)
                super().__init__(*args, **kwargs)

    else:
        Trainer = trl_prl.PRLTrainer
    trl.GRPOTrainer = Trainer
