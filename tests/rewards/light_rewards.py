"""Rewards of tests, in a module that imports nothing."""

from __future__ import annotations

import sys
from typing import Any


def loaded_modules(completions: list[str], **columns: Any) -> list[float]:
    """1.0 for each module that is loaded where the check runs."""
    return [float(completions[0] in sys.modules)]
