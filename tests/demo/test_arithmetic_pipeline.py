"""The PAV pipeline on arithmetic: collect, train a verifier, use it; and the verifier that ships with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.arithmetic_pipeline import (
    collect_arithmetic,
    is_right_prefix,
    right_lines_auroc,
    train_arithmetic_verifier,
    verifier_problems,
)
from trl_prl import ProcessAdvantageVerifier
from trl_prl.demo.arithmetic import ArithmeticProblem, arithmetic_verifier_path, sample_problems
from trl_prl.demo.arithmetic_training import Method, train_arithmetic


PROBLEM = ArithmeticProblem((9, 3, -7))  # 12, 5, #5


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        (["12\n"], True),
        (["1\n"], False),  # the start of 12 is not 12
        (["12\n", "5\n", "#5"], True),
        (["12\n", "5\n", "#55"], False),
        (["11\n", "5\n", "#5"], False),  # recovered, but not without a mistake
    ],
)
def test_right_prefix(steps: list[str], right: bool) -> None:
    assert is_right_prefix(PROBLEM, steps) is right


def test_problems_are_of_the_train_split() -> None:
    held_out = {problem.prompt for n in range(2, 9) for problem in sample_problems("test", 500, 0, n)}
    prompts = verifier_problems(200, seed=0)["prompt"]
    assert len(prompts) == 200
    assert not held_out & {*prompts}


def test_shipped_verifier_tells_right_lines_from_wrong_ones() -> None:
    folder = Path(arithmetic_verifier_path())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    verifier = ProcessAdvantageVerifier.from_pretrained(folder)
    assert right_lines_auroc(verifier, "tuning", 128)["main"] > 0.6  # 0.5 is chance


@pytest.mark.slow
def test_pipeline_from_rollouts_to_a_trained_policy(tmp_path: Path) -> None:
    data = collect_arithmetic(tmp_path / "values", 40, n_cov=2, n_mc=2, temperature=0.3)
    assert data.spending.num_rollouts > 40
    assert {label for row in data.rows for label in row["labels"]} <= {0.0, 0.5, 1.0, None}
    again = collect_arithmetic(tmp_path / "values", 40, n_cov=2, n_mc=2, temperature=0.3)
    assert again.spending == data.spending  # read, not drawn again
    verifier, metrics = train_arithmetic_verifier(data.rows, tmp_path / "verifier", prover="it", epochs=1)
    assert metrics["eval_num_labels"] > 0
    assert verifier.settings.prover == "it"
    method = Method("PAV", 1e-4, 5.0, str(tmp_path / "verifier"), best_of_k=4)
    _, logs = train_arithmetic(method, seed=0, max_steps=2)
    assert len(logs) == 2
    assert all(entry["process/reward/std"] > 0 for entry in logs)
