"""What the benchmark scripts share: the machine in words, tables, and results that survive an interruption."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import trl_prl


def machine() -> dict[str, str]:
    """Hardware and versions a number was measured with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    packages = {name: version(name) for name in ("torch", "trl", "transformers")} | {"trl-prl": trl_prl.__version__}
    return {"device": device, "threads": str(torch.get_num_threads()), "python": platform.python_version(), **packages}


def machine_text(described: dict[str, str]) -> str:
    """The machine as one line of text."""
    return ", ".join(f"{name} {value}" for name, value in described.items())


class Results:
    """Results of finished runs in a JSON file, so that an interrupted script goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.data["machine"] = machine()

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """The stored result of a run, or the result of computing it now."""
        if key not in self.data:
            self.data[key] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.data, indent=1))
            print(f"{key}: done", flush=True)
        return self.data[key]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and range of several seeds, or the value of one."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
