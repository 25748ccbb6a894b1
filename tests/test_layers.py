"""The architecture, as far as a program can check it: who imports whom, and who touches TRL's private names."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from trl import GRPOTrainer, RewardTrainer, RLOOTrainer


PACKAGE = Path(__file__).resolve().parent.parent / "trl_prl"

# The house, from the ground up. A wing imports only from wings on lower floors; wings of one floor do not know each
# other.
FLOORS: list[set[str]] = [
    {"types"},
    {"steps", "credit", "metrics", "storage", "prompts"},
    {"rewards"},
    {"generation"},
    {"jobs"},
    {"verifier"},
    {"prms"},
    {"report"},
    {"collection", "diagnosis"},
    {"search", "evaluation"},
    {"training"},
    {"demo"},
    {"commands"},
    {"__main__"},
]
# Modules beside the wings.
ALONE = {"types", "__main__"}
FLOOR_OF = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
MAX_MODULES_PER_WING = 12
MAX_LINES_PER_MODULE = 300
MAX_LINES_PER_FUNCTION = 60

# Imported inside the function that needs them, so that nobody else needs them.
LAZY_PACKAGES = {
    "bitsandbytes",
    "deepspeed",
    "httpx",
    "math_verify",
    "matplotlib",
    "openai",
    "pandas",
    "peft",
    "pebble",
    "requests",
    "scipy",
    "sklearn",
    "tenacity",
    "tensorboard",
    "uvicorn",
    "vllm",
    "wandb",
}
# The ground floors have no model and no trainer.
PURE_WINGS = {"types", "steps", "credit", "metrics"}
TRAINING_PACKAGES = {"accelerate", "datasets", "transformers", "trl"}

MAX_FILES_WITH_PRIVATE_NAMES = 3

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
WING_OF = {name: name.partition(".")[0] for name in MODULES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(tree: ast.AST, name: str, is_package: bool) -> list[str]:
    """List the absolute names of the modules that an import statement below `tree` names.

    Args:
        tree (`ast.AST`):
            Module or part of one.
        name (`str`):
            Module's name relative to the package, to resolve relative imports.
        is_package (`bool`):
            Whether the module is the `__init__` of a package.

    Returns:
        `list[str]`: Names like `trl_prl.steps.split`; `trl_prl` itself for an import from the package root.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["trl_prl", *name.split(".")]
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            # `from . import steps` names a module, `from .steps import split_text` does not.
            for alias in node.names:
                is_module = f"{base}.{alias.name}".removeprefix("trl_prl.") in MODULES
                found.append(f"{base}.{alias.name}" if base.startswith("trl_prl") and is_module else base)
    return found


def imports_of(name: str, tree: ast.AST | None = None) -> list[str]:
    """List the modules that one of our modules imports, anywhere in it or in one part of it."""
    return imports(TREES[name] if tree is None else tree, name, MODULES[name].name == "__init__.py")


def top_level(tree: ast.Module) -> ast.Module:
    """Keep the statements that run when the module is imported: no functions, no `if TYPE_CHECKING`."""

    class Pruner(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                return None
            return self.generic_visit(node)

    return Pruner().visit(ast.parse(ast.unparse(tree)))


def relative_imports(tree: ast.AST) -> list[ast.ImportFrom]:
    """List the imports that begin with a dot."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def for_each_module(check: Callable[[str], None]) -> Callable[[], None]:
    """Make one test of a check of every module. A test for each takes far longer to report than to run."""

    def test() -> None:
        wrong = []
        for name in MODULES:
            try:
                check(name)
            except AssertionError as error:
                wrong.append(str(error))
        assert not wrong, "\n\n".join(wrong)

    return test


@for_each_module
def test_module_is_in_a_wing(name: str) -> None:
    assert WING_OF[name] in FLOOR_OF, (
        f"trl_prl.{name} is in no wing of FLOORS in tests/test_layers.py. Find its room (CONTRIBUTING.md), or give a "
        "new wing its floor, above everything it imports from."
    )


@for_each_module
def test_imports_only_from_wings_below(name: str) -> None:
    wing = WING_OF[name]
    if wing not in FLOOR_OF:
        return  # reported by test_module_is_in_a_wing
    for imported in imports_of(name):
        if imported.split(".")[0] != "trl_prl":
            continue
        # The command line shows the version, which only the root has.
        if imported == "trl_prl" and name == "__main__":
            continue
        assert imported != "trl_prl", f"trl_prl.{name} imports from the package root; import from the module itself"
        other = imported.split(".")[1]
        assert other == wing or FLOOR_OF[other] < FLOOR_OF[wing], (
            f"trl_prl.{name} imports {imported}, but the wing {other!r} does not lie below {wing!r}. Move the "
            "shared part down."
        )


@pytest.mark.parametrize("wing", sorted({wing for wing in WING_OF.values() if wing not in ALONE}))
def test_modules_of_a_wing_import_each_other_in_one_direction(wing: str) -> None:
    known = [name for name in MODULES if WING_OF[name] == wing]
    graph = {name: {i.removeprefix("trl_prl.") for i in imports_of(name)} & set(known) for name in known}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@for_each_module
def test_imports_are_relative_inside_a_wing_and_absolute_across(name: str) -> None:
    assert all(node.level == 1 for node in relative_imports(TREES[name])), f"trl_prl.{name} climbs out with `..`"
    written = [node.module for node in ast.walk(TREES[name]) if isinstance(node, ast.ImportFrom) and not node.level]
    inside = [module for module in written if (module or "").startswith(f"trl_prl.{WING_OF[name]}.")]
    assert not inside, f"trl_prl.{name} imports {inside} absolutely; inside a wing write `from .module import name`"


@pytest.mark.parametrize("wing", sorted({wing for wing in WING_OF.values() if wing not in ALONE}))
def test_wing_says_what_it_is_for_and_stays_small(wing: str) -> None:
    modules = [name for name in MODULES if WING_OF[name] == wing and name != wing]
    assert 1 < len(modules) <= MAX_MODULES_PER_WING
    doc = ast.get_docstring(TREES[wing]) or ""
    assert all(word in doc for word in ("Imports from", "Start with")), f"trl_prl/{wing}/__init__.py says too little"
    assert len(TREES[wing].body) == 1, f"trl_prl/{wing}/__init__.py hands names on; only the root does"


@for_each_module
def test_modules_and_functions_stay_readable(name: str) -> None:
    num_lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES_PER_MODULE, f"trl_prl.{name} has {num_lines} lines, at most {MAX_LINES_PER_MODULE}"
    long = {
        node.name: length
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_LINES_PER_FUNCTION
    }
    assert not long, f"trl_prl.{name} has functions of more than {MAX_LINES_PER_FUNCTION} lines: {long}"


@for_each_module
def test_optional_packages_are_imported_where_they_are_used(name: str) -> None:
    found = {imported.split(".")[0] for imported in imports_of(name, top_level(TREES[name]))}
    assert not found & LAZY_PACKAGES, f"trl_prl.{name} imports {found & LAZY_PACKAGES} at module level"


@for_each_module
def test_lowest_wings_have_no_model_and_no_trainer(name: str) -> None:
    found = {imported.split(".")[0] for imported in imports_of(name)} & TRAINING_PACKAGES
    assert WING_OF[name] not in PURE_WINGS or not found, f"trl_prl.{name} imports {found}"


@for_each_module
def test_no_experimental_trl(name: str) -> None:
    found = [imported for imported in imports_of(name) if imported.startswith("trl.experimental")]
    assert not found, f"trl_prl.{name} imports {found}, which comes and goes between releases"


@for_each_module
def test_no_assert_statements(name: str) -> None:
    lines = [node.lineno for node in ast.walk(TREES[name]) if isinstance(node, ast.Assert)]
    assert not lines, f"trl_prl.{name} asserts in lines {lines}; raise an exception that says what to do"


# ---- private names of TRL ----


def trl_private_names() -> set[str]:
    """Collect the private attributes of TRL's trainers and their bases: methods, class attributes, instance ones."""
    names: set[str] = set()
    for trainer in (GRPOTrainer, RLOOTrainer, RewardTrainer):
        for cls in trainer.__mro__[:-1]:
            source = inspect.getsource(cls)
            names |= set(vars(cls)) | set(re.findall(r"\bself\.(_\w+)", source))
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_names_used(tree: ast.AST) -> set[str]:
    """Collect the private names a module reads, sets, calls or defines."""
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                    used.add(item.name)
                elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    used.add(item.target.id)
                elif isinstance(item, ast.Assign):
                    used |= {target.id for target in item.targets if isinstance(target, ast.Name)}
    return {name for name in used if name.startswith("_") and not name.startswith("__")}


def trl_names_by_module() -> dict[str, set[str]]:
    """Map each module to the private TRL names in it. Below `training` only the verifier's trainer is one."""
    private = trl_private_names()
    found = {
        name: private_names_used(tree) & private
        for name, tree in TREES.items()
        if FLOOR_OF[WING_OF[name]] >= FLOOR_OF["training"] or name == "verifier.trainer"
    }
    return {name: names for name, names in found.items() if names}


def test_the_search_finds_the_hooks() -> None:
    hooks = {"_generate_and_score_completions", "_compute_loss", "_metrics", "_logs"}
    assert hooks <= trl_private_names()
    assert hooks <= set().union(*trl_names_by_module().values())


def test_private_trl_names_stay_in_few_files() -> None:
    found = trl_names_by_module()
    assert len(found) <= MAX_FILES_WITH_PRIVATE_NAMES, (
        f"private names of TRL are used in {len(found)} files, at most {MAX_FILES_WITH_PRIVATE_NAMES} may: {found}"
    )


def test_private_trl_names_are_documented() -> None:
    table = (PACKAGE.parent / "docs" / "trl_compatibility.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| `_")]
    missing = [
        f"{name} in {module}.py"
        for module, names in trl_names_by_module().items()
        for name in sorted(names)
        if not any(f"`{name}`" in row and f"`{module.rpartition('.')[2]}.py`" in row for row in rows)
    ]
    assert not missing, f"docs/trl_compatibility.md has no row that names: {', '.join(missing)}"


def test_documented_names_are_used() -> None:
    table = (PACKAGE.parent / "docs" / "trl_compatibility.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(_\w+)`", table, re.MULTILINE))
    used = set().union(*trl_names_by_module().values())
    assert documented <= used, f"docs/trl_compatibility.md lists names nobody uses: {sorted(documented - used)}"


# Lines of code, normalised, that a method of ours may share with the TRL method it overrides: signature and `super()`.
MAX_SHARED_LINES = 3


def test_no_trl_method_body_is_copied() -> None:
    bodies: dict[str, list[set[str]]] = {}
    for trainer in (GRPOTrainer, RLOOTrainer, RewardTrainer):
        for cls in trainer.__mro__[:-1]:
            for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(cls)))):
                if isinstance(node, ast.FunctionDef):
                    bodies.setdefault(node.name, []).append(code_lines(node))
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                for body in bodies.get(node.name, []):
                    shared = code_lines(node) & body
                    assert len(shared) <= MAX_SHARED_LINES, (
                        f"trl_prl.{module}.{node.name} shares {len(shared)} lines with TRL's method of that name; "
                        f"call `super()` instead of copying: {sorted(shared)}"
                    )


def code_lines(function: ast.FunctionDef) -> set[str]:
    """Return the distinct lines of a function without comments, docstring and layout."""
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    lines = {line.strip() for statement in statements for line in ast.unparse(statement).splitlines()}
    return {line for line in lines if len(line) > 8}
