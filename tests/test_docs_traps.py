"""The page of traps names tests that exist, none is left without one, and no page names a file that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "traps.md"
ROWS = [
    line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "| tests" not in line
]


def names_in(path: Path) -> set[str]:
    """Names of the tests of a file, those of a class with the class before them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [(f"{node.name}::", node.body) for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        prefix + node.name
        for prefix, body in [("", tree.body), *classes]
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::([\w:]+)`", PAGE.read_text(encoding="utf-8"))
    files = {path.name: names_in(path) for path in Path(__file__).parent.rglob("test_*.py")}
    missing = [f"{file}::{test}" for file, test in named if test not in files.get(file, ())]
    assert len(named) > 80
    assert not missing, f"docs/traps.md names tests that do not exist: {', '.join(missing)}"


@pytest.mark.parametrize("row", ROWS)
def test_every_trap_has_a_test(row: str) -> None:
    assert re.search(r"`test_\w+\.py::\w+", row.split(" | ")[-1]), f"no test catches: {row}"


def test_named_files_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "trl_prl").rglob("*.md")]
    named = {
        (page.relative_to(ROOT).as_posix(), name)
        for page in pages
        for name in re.findall(
            r"\b(?:tests|examples|trl_prl|docs)/[\w/.-]+\.(?:py|md|yaml|json|png)", page.read_text("utf-8")
        )
    }
    assert len(named) > 100
    assert not {(page, name) for page, name in named if not (ROOT / name).is_file()}
    # Modules may be named from their wing on.
    modules = {
        (page.name, name) for page in pages for name in re.findall(r"`([\w/]+/\w+\.py)`", page.read_text("utf-8"))
    }
    assert not {
        (page, name) for page, name in modules if not any((r / name).is_file() for r in (ROOT, ROOT / "trl_prl"))
    }
