"""The architecture, as far as a program can check it: who imports whom, and who touches TRL's private names."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from trl import GRPOTrainer, RewardTrainer, RLOOTrainer


PACKAGE = Path(__file__).resolve().parent.parent / "trl_prl"

# From low to high. A module imports only from tiers above it in this list, never from its own.
TIERS: list[tuple[str, set[str]]] = [
    (
        "L0",
        {
            "types",
            "step_tensors",
            "token_pieces",
            "splitters",
            "metrics",
            "verifier_metrics",
            "intervals",
            "resampling",
        },
    ),
    ("L0", {"markdown_splitter", "advantages", "aggregation", "calibration"}),
    ("L0", {"steps", "advantage_baselines"}),
    ("L0", {"prover_diagnostics"}),
    ("L0", {"prover_credit", "prover_states"}),
    ("L0", {"diagnosis"}),
    (
        "L1",
        {
            "answers",
            "sampling",
            "roomy_cache",
            "row_files",
            "run_files",
            "shards",
            "timed_reward",
            "stepwise_data",
            "tasks._tokenizers",
        },
    ),
    ("L1", {"stepwise_batches", "stepwise_formats", "verifier_loading"}),
    ("L1", {"generation", "generation_servers", "verifier", "tasks.arithmetic", "tasks.planted"}),
    ("L1", {"tasks"}),
    ("L2", {"rollouts", "process_scoring", "search_results"}),
    ("L2", {"evaluation", "first_pit", "step_sampler", "search_scoring"}),
    ("L2", {"step_search"}),
    ("L2", {"search", "beams", "rejection"}),
    ("L2", {"branches"}),
    ("L2", {"monte_carlo"}),
    ("L2", {"evaluation_summary"}),
    ("L2", {"model_comparison", "verifier_evaluation"}),
    ("L3", {"prl_config", "pav_config", "pav_reward_config", "process_metrics"}),
    ("L3", {"process_reward_checks", "hacking_radar", "fresh_calibration", "run_recorder", "trainer_setup"}),
    ("L3", {"process_grpo_trainer", "step_reward_func", "stepwise_dataset"}),
    ("L3", {"prl_trainer", "pav_trainer", "pav_reward_trainer"}),
    ("L3", {"callbacks", "evaluation_callback"}),
    ("L4", {"job_config"}),
    ("L4", {"collect_config", "collection_output", "command_options", "search_config"}),
    ("L4", {"collection", "plots", "experiments"}),
    ("L4", {"report_files", "report_runs", "report_page"}),
    ("L4", {"diagnosis_files", "diagnosis_plot"}),
    ("L4", {"planted_experiment", "arithmetic_experiment", "report_solutions", "report_figures"}),
    ("L4", {"report_data"}),
    ("L4", {"report"}),
    ("L4", {"arithmetic_pipeline"}),
    ("L4", {"evaluate_config"}),
    ("L4", {"evaluation_sources", "evaluation_output"}),
    ("L4", {"evaluation_job"}),
    ("L4", {"search_runs", "search_output"}),
    ("L4", {"search_job"}),
    ("L4", {"search_command"}),
    ("L4", {"collect", "diagnose", "evaluate", "evaluate_verifier", "score", "split_report", "quickstart"}),
    ("L4", {"cli"}),
]
TIER_OF = {name: tier for tier, (_, names) in enumerate(TIERS) for name in names}
LAYER_OF = {name: layer for layer, names in TIERS for name in names}

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
    "tensorboard",
    "vllm",
    "wandb",
}
# L0 has no model and no trainer.
TRAINING_PACKAGES = {"accelerate", "datasets", "transformers", "trl"}

MAX_FILES_WITH_PRIVATE_NAMES = 3

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
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
        `list[str]`: Names like `trl_prl.steps`; `trl_prl` itself for an import from the package root.
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


@pytest.mark.parametrize("name", MODULES)
def test_module_has_a_layer(name: str) -> None:
    assert name in TIER_OF, (
        f"trl_prl.{name} has no layer. Add it to TIERS in tests/test_layers.py, above everything it imports from."
    )


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_from_lower_layers(name: str) -> None:
    if name not in TIER_OF:
        pytest.skip("reported by test_module_has_a_layer")
    for imported in imports_of(name):
        if imported.split(".")[0] != "trl_prl":
            continue
        # The command line shows the version, which only the root has.
        if imported == "trl_prl" and name == "cli":
            continue
        assert imported != "trl_prl", f"trl_prl.{name} imports from the package root; import from the module itself"
        other = imported.removeprefix("trl_prl.")
        assert TIER_OF.get(other, -1) < TIER_OF[name], (
            f"trl_prl.{name} ({LAYER_OF[name]}) imports trl_prl.{other} ({LAYER_OF.get(other)}), which is not below "
            "it. Move the shared part down, or the module up in TIERS."
        )


@pytest.mark.parametrize("name", MODULES)
def test_optional_packages_are_imported_where_they_are_used(name: str) -> None:
    found = {imported.split(".")[0] for imported in imports_of(name, top_level(TREES[name]))}
    assert not found & LAZY_PACKAGES, f"trl_prl.{name} imports {found & LAZY_PACKAGES} at module level"


@pytest.mark.parametrize("name", [name for name in MODULES if LAYER_OF.get(name) == "L0"])
def test_lowest_layer_has_no_model_and_no_trainer(name: str) -> None:
    found = {imported.split(".")[0] for imported in imports_of(name)}
    assert not found & TRAINING_PACKAGES, f"trl_prl.{name} imports {found & TRAINING_PACKAGES}"


@pytest.mark.parametrize("name", MODULES)
def test_no_experimental_trl(name: str) -> None:
    found = [imported for imported in imports_of(name) if imported.startswith("trl.experimental")]
    assert not found, f"trl_prl.{name} imports {found}, which comes and goes between releases"


@pytest.mark.parametrize("name", MODULES)
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
    """Map each module to the private TRL names in it. Below L3 nothing knows a trainer, so equal names are chance."""
    private = trl_private_names()
    found = {
        name: private_names_used(tree) & private
        for name, tree in TREES.items()
        if LAYER_OF.get(name, "L3") in ("L3", "L4")
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
        if not any(f"`{name}`" in row and f"`{module}.py`" in row for row in rows)
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
