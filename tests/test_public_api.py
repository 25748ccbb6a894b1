"""The public surface: pinned, documented, and light to import."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import trl_prl


# A name is added or removed here on purpose, together with docs/reference and docs/changelog.md.
PUBLIC_NAMES = [
    "Completion",
    "DelimiterSplitter",
    "EffectiveReward",
    "EvaluationCallback",
    "FixedLengthSplitter",
    "Generator",
    "ImplicitProcessReward",
    "JudgeProcessReward",
    "MarkdownSplitter",
    "MonteCarloProcessReward",
    "OpenAIGenerator",
    "OutcomeReward",
    "PAVConfig",
    "PAVRewardConfig",
    "PAVRewardTrainer",
    "PAVTrainer",
    "PRLConfig",
    "PRLTrainer",
    "ProcessAdvantageVerifier",
    "ProcessGRPOTrainer",
    "ProcessReward",
    "ProcessRewardCallback",
    "Prompt",
    "PromptFormat",
    "RegexSplitter",
    "RemoteProcessReward",
    "SamplingParams",
    "SearchLimits",
    "SearchResult",
    "SentenceSplitter",
    "StepRewardFunc",
    "StepSplitter",
    "TokenPieces",
    "TranscriptSegment",
    "TransformersGenerator",
    "VLLMGenerator",
    "VLLMServerGenerator",
    "aggregate_step_values",
    "beam_search",
    "best_of_k_values",
    "best_of_n",
    "best_of_n_search",
    "dvts",
    "get_splitter",
    "load_process_reward",
    "load_rows",
    "majority_vote",
    "math_accuracy_reward",
    "pav_advantages",
    "prl_advantages",
    "split_completions",
    "split_text",
    "step_advantages",
    "step_ids_from_ends",
    "step_rejection",
    "weighted_vote",
]


def test_all_is_pinned() -> None:
    assert trl_prl.__all__ == PUBLIC_NAMES
    assert sorted(trl_prl._MODULE_OF) == PUBLIC_NAMES
    assert set(PUBLIC_NAMES) <= set(dir(trl_prl))


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_name_resolves_and_has_its_own_docstring(name: str) -> None:
    value = getattr(trl_prl, name)
    # `inspect.getdoc` would accept a parent's docstring.
    assert inspect.cleandoc(value.__doc__ or ""), f"{name} has no docstring"
    assert not (value.__doc__ or "").startswith(f"{name}("), f"{name} has only the docstring dataclasses generate"
    assert value.__module__.startswith("trl_prl.")


def test_every_name_is_in_the_reference(repo_root: Path) -> None:
    pages = (repo_root / "docs" / "reference").glob("*.md")
    entries = [name for page in pages for name in re.findall(r"^::: trl_prl\.(\w+)$", page.read_text("utf-8"), re.M)]
    assert sorted(entries) == PUBLIC_NAMES, "docs/reference lists each public name once, as `::: trl_prl.Name`"


def test_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'PPOTrainer'"):
        _ = trl_prl.PPOTrainer


def test_static_imports_equal_lazy_names() -> None:
    tree = ast.parse(Path(trl_prl.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    static = {node.module: tuple(alias.name for alias in node.names) for node in block.body}
    assert static == trl_prl._MODULES


def test_version_is_the_one_of_the_distribution(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert trl_prl.__version__ == project["version"]


@pytest.mark.parametrize("statement", ["import trl_prl", "import trl_prl.types", "import trl_prl.__main__"])
def test_import_is_light(statement: str) -> None:
    heavy = ["torch", "transformers", "trl", "datasets", "accelerate", "numpy", "matplotlib", "vllm"]
    code = f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_links_between_pages_resolve(repo_root: Path) -> None:
    pages = [*repo_root.glob("*.md"), *(repo_root / "docs").rglob("*.md")]
    targets = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))]
    local = [(page, link) for page, link in targets if "://" not in link and not link.startswith("mailto:")]
    broken = [f"{page.name}: {link}" for page, link in local if not (page.parent / link).exists()]
    assert not broken, f"links to files that do not exist: {broken}"
