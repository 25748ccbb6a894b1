"""The experiment on where the KL goes: its closed forms, its measure of a policy, and a run of every placement."""

from __future__ import annotations

import math

import pytest
import torch

from tests.benchmarks.kl_placement import (
    ARMS,
    best_objective,
    best_success,
    least_kl,
    load,
    measure,
    per_completion,
    train_and_measure,
)
from trl_prl.demo.planted_policy import build_base_policy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    # Right half of the time, so that every batch teaches.
    settings = {"gamma": 100.0, "num_iterations": 30, "num_layers": 1, "hidden_size": 16, "learning_rate": 1e-2}
    build_base_policy(0, **settings).save_pretrained(folder)  # type: ignore[arg-type]
    return str(folder)


def test_the_optimum_in_closed_form() -> None:
    # exp(1 / beta) is 4: the weights 0.2 and 0.8 of right and wrong become 0.8 and 0.8.
    beta = 1 / math.log(4)
    assert best_success(0.2, beta) == pytest.approx(0.5)
    # 0.5 ln(0.5 / 0.2) + 0.5 ln(0.5 / 0.8)
    assert least_kl(0.5, 0.2) == pytest.approx(0.22314, abs=1e-5)
    assert best_objective(0.2, beta) == pytest.approx(0.5 - beta * 0.22314, abs=1e-5)
    assert least_kl(1.0, 0.05) == pytest.approx(math.log(20))
    assert least_kl(0.2, 0.2) == pytest.approx(0.0)


def test_sums_end_with_the_end_token() -> None:
    tokens = torch.tensor([[1, 9, 9, 9], [1, 2, 3, 4], [9, 9, 9, 9]])
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0]]).expand(3, 4)
    assert per_completion(tokens, values, eos=9) == pytest.approx((3 + 15 + 1) / 3)


def test_a_policy_has_no_kl_to_itself(base: str) -> None:
    found = measure(load(base), load(base), 64)
    assert found["kl"] == 0.0
    assert 0 < found["entropy"] < 10 * math.log(15)


@pytest.mark.parametrize("name", ARMS)
def test_every_placement_trains(name: str, base: str) -> None:
    found = train_and_measure(base, 32, ARMS[name], beta=0.1, seed=0, num_steps=2)
    assert found["kl"] > 0
    assert len(found["windows"]) == 2
    assert found["windows"][0][1] == pytest.approx(0.0, abs=1e-4)  # the first rollouts are the base's own
