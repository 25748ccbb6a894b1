"""Shared fixtures. The environment is fixed before anything imports torch or a Hugging Face library."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Several test workers share the cores: one thread each is faster, and sums do not depend on the machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


torch.set_num_threads(1)

REPO_ROOT = Path(__file__).resolve().parent.parent

# Enough to find what is broken; `make test-properties` looks for what is rare.
everywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)
settings.register_profile("local", everywhere)
settings.register_profile("ci", everywhere, derandomize=True, print_blob=True)
settings.register_profile("thorough", everywhere, max_examples=1000)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="module", autouse=True)
def objects_of_imports_stay() -> None:
    """Keep what is there out of garbage collections: a trainer makes one, which would take most of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Root of the checkout."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real data sets: `$TRL_PRL_SHARED/data`, or `shared/data` beside or inside the checkout."""
    given = os.environ.get("TRL_PRL_SHARED")
    roots = [Path(given)] if given else [REPO_ROOT.parent / "shared", REPO_ROOT / "shared"]
    for root in roots:
        if (root / "data").is_dir():
            return root / "data"
    looked = ", ".join(str(root / "data") for root in roots)
    pytest.skip(f"no shared data: {looked} not found; set TRL_PRL_SHARED to the folder that holds `data`")


@pytest.fixture(scope="session")
def chat_model_path() -> str:
    """Folder of a small pretrained chat model: `$TRL_PRL_TEST_CHAT_MODEL`."""
    given = os.environ.get("TRL_PRL_TEST_CHAT_MODEL", "")
    if not Path(given, "config.json").is_file():
        pytest.skip(f"no chat model: TRL_PRL_TEST_CHAT_MODEL={given!r} is no folder of a model")
    return given


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with a tiny random Llama and its tokenizer. Shared by the session: treat it as read-only."""
    from tests.tiny_models import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("tiny_model")))


@pytest.fixture
def tiny_tokenizer(tiny_model_path: str) -> PreTrainedTokenizerFast:
    """A fresh copy of the tiny tokenizer, as loaded from the model's folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_path)
