"""Sums are as precise as a device allows: in float64, which Apple's GPUs refuse, so one helper asks for it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trl_prl
from tests.tiny_models import build_model, build_tokenizer
from trl_prl.credit.groups import group_normalise, leave_one_out, outcome_scale
from trl_prl.credit.step_tensors import precise, precise_dtype
from trl_prl.generation.sampling import choose_tokens
from trl_prl.prms.implicit import ImplicitProcessReward
from trl_prl.training.metrics import process_metric_sums
from trl_prl.types import SamplingParams


REWARDS = torch.tensor([0.1, 0.7, 0.3, 0.3, 0.7, 0.7])


class NoFloat64(TorchDispatchMode):
    """Refuses tensors of float64, as a device without them does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError(f"{func} made a tensor of float64")
        return result


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device is taken for an Apple GPU."""
    for module in ("credit.step_tensors", "generation.sampling", "training.metrics"):
        monkeypatch.setattr(f"trl_prl.{module}.precise_dtype", lambda device: precise_dtype(torch.device("mps")))


def test_the_type_of_a_device() -> None:
    assert precise_dtype(torch.device("mps")) == precise_dtype(torch.device("mps", 0)) == torch.float32
    assert precise_dtype(torch.device("cpu")) == precise_dtype(torch.device("cuda", 1)) == torch.float64
    assert precise(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float64


@pytest.mark.usefixtures("apple")
def test_nothing_makes_float64_where_there_is_none() -> None:
    tokenizer, step_ids = build_tokenizer(), torch.tensor([[0, 0, 1], [0, 1, -1]])
    implicit = ImplicitProcessReward(build_model(tokenizer, seed=1), tokenizer, reference=build_model(tokenizer))
    with NoFloat64():
        with pytest.raises(TypeError, match="float64"):
            torch.ones(2).double()
        for scale in ("group", "batch", "none"):
            group_normalise(REWARDS, 2, scale)
            outcome_scale(REWARDS, 2, scale)
        leave_one_out(REWARDS.reshape(2, 3), 2)
        process_metric_sums(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2), step_ids)
        choose_tokens(torch.rand(2, 5), torch.tensor([0.2, 0.9]), SamplingParams())
        assert implicit.score_tokenized(implicit._tokenize(["Add."], [["3\n", "4"]])).dtype == torch.float32


@pytest.mark.usefixtures("apple")
def test_equal_rewards_are_no_signal_in_float32() -> None:
    """The mean of three times 0.7 is not 0.7 in float32."""
    for value in (0.7, 0.1, 1e6 + 0.3):
        for size in (3, 7, 8):
            rewards = torch.tensor([value] * size + [float("nan")])
            found = group_normalise(rewards, size + 1, eps=1e-6)
            assert found[:size].tolist() == [0.0] * size
            assert outcome_scale(rewards, size + 1)[1].all()


def test_no_other_place_asks_for_float64() -> None:
    package = Path(trl_prl.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and (node.attr == "double" or ast.unparse(node) == "torch.float64")
    }
    assert found == {"credit/step_tensors.py"}
