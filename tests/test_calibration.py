"""Calibration curves, the choice of a threshold, and the evaluation of values that are given, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.calibration import bootstrap_metrics, calibration_bins, choose_threshold
from trl_prl.verifier_evaluation import ScoredSolution, evaluate_verifier
from trl_prl.verifier_metrics import auroc, expected_calibration_error, process_bench_f1


def test_bins_by_hand() -> None:
    bins = calibration_bins([0.1, 0.15, 1.0, math.nan], [0.0, 1.0, 1.0, 1.0], num_bins=5)
    assert [entry["num"] for entry in bins] == [2, 0, 0, 0, 1]
    assert (bins[0]["mean_value"], bins[0]["mean_label"]) == (pytest.approx(0.125), 0.5)
    assert (bins[1]["mean_value"], bins[1]["low"], bins[1]["high"]) == (None, 0.2, 0.4)
    with pytest.raises(ValueError, match="same shape"):
        calibration_bins([0.1], [0.1, 0.2])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_bins_add_up_to_the_calibration_error(pairs: list[tuple[float, float]]) -> None:
    values, labels = [value for value, _ in pairs], [label for _, label in pairs]
    bins = [entry for entry in calibration_bins(values, labels) if entry["num"]]
    total = sum(entry["num"] * abs(entry["mean_value"] - entry["mean_label"]) for entry in bins)
    assert total / len(pairs) == pytest.approx(expected_calibration_error(values, labels), abs=1e-9)


def test_threshold_finds_the_best_score_and_stays_near_one_half() -> None:
    values = [[0.9, 0.8, 0.3], [0.9, 0.1, math.nan], [0.7, 0.35, 0.6]]
    errors = [-1, 1, -1]
    threshold = choose_threshold(values, errors)
    assert process_bench_f1(values, errors, threshold)["f1"] == 1.0
    assert process_bench_f1(values, errors)["f1"] < 1.0
    assert threshold == pytest.approx(0.2)
    # Where 0.5 is as good as any other it stays, and where there is no score too.
    assert choose_threshold([[0.9, 0.1], [0.8, 0.7]], [1, -1]) == 0.5
    assert choose_threshold([[0.9]], [-1]) == 0.5


def test_bootstrap_draws_problems_as_a_whole() -> None:
    values = np.array([0.0] * 50 + [1.0] * 50)
    by_sample = bootstrap_metrics(lambda rows: {"mean": float(values[rows].mean())}, list(range(100)))
    by_problem = bootstrap_metrics(lambda rows: {"mean": float(values[rows].mean())}, [0] * 50 + [1] * 50)
    assert by_problem["mean"] == (0.0, 1.0)
    assert 0.3 < by_sample["mean"][0] < by_sample["mean"][1] < 0.7
    assert bootstrap_metrics(lambda rows: {"never": math.nan}, [0, 1]) == {}


def solution(prompt: str, values: list[Any], labels: list[Any], **columns: Any) -> ScoredSolution:
    return ScoredSolution(prompt, values, labels, columns)


def test_given_threshold_by_hand() -> None:
    solutions = [
        # Found at the first wrong step; what follows has no label.
        solution("a", [0.9, 0.2, 0.1], [True, False], level=1),
        solution("b", [0.9, 0.8], [True, True], level=2),
        # An alarm at a right step.
        solution("c", [0.3, 0.9], [1, 1], level=2),
        solution("c", [None, 0.9], [None, 1], level=2),
    ]
    results = evaluate_verifier(solutions, threshold=0.5, group_by=["level"])
    assert results["threshold"] == {"value": 0.5, "how": "given", "num_solutions_tuned_on": 0}
    assert results["first_error"] == {"error_accuracy": 1.0, "correct_accuracy": pytest.approx(2 / 3), "f1": 0.8}
    assert (results["num_solutions"], results["num_labels"], results["num_unscored"]) == (4, 7, 0)
    # The wrong step at 0.2 is below all six right ones.
    assert results["metrics"]["auroc"]["value"] == 1.0
    assert [part["position"] for part in results["positions"]] == ["1", "2"]
    assert [part["num_labels"] for part in results["positions"]] == [3, 4]
    assert results["positions"][1]["brier"] == pytest.approx((0.2**2 + 0.2**2 + 0.1**2 + 0.1**2) / 4)
    level = results["groups"]["level"]
    assert {label: part["num_solutions"] for label, part in level.items()} == {"1": 1, "2": 3}
    assert sum(entry["num"] for entry in level["2"]["bins"]) == 5


def test_threshold_is_chosen_on_a_split_that_is_not_reported() -> None:
    """The verifier is shifted: only a threshold of its own finds the errors, and other prompts choose it."""
    generator = np.random.default_rng(0)
    solutions = []
    for i in range(200):
        right = i % 2 == 0
        last = generator.uniform(0.12, 0.3) if right else generator.uniform(0.0, 0.08)
        values = [*generator.uniform(0.12, 0.3, size=3), last]
        # Several solutions of a prompt stay on one side.
        solutions.append(solution(f"p{i // 4}", values, [1, 1, 1, int(right)]))
    results = evaluate_verifier(solutions, tune_fraction=0.3)
    assert 0.08 <= results["threshold"]["value"] <= 0.12
    tuned = results["threshold"]["num_solutions_tuned_on"]
    assert tuned % 4 == 0
    assert results["num_solutions"] + tuned == 200
    assert "not reported" in results["threshold"]["how"]
    assert results["first_error"]["f1"] == 1.0
    assert results["first_error_at_0.5"]["f1"] == 0.0
    low, high = results["metrics"]["brier"]["interval"]
    assert low < results["metrics"]["brier"]["value"] < high
    assert evaluate_verifier(solutions, tune_fraction=0.3) == results


def test_soft_labels_have_no_first_error() -> None:
    results = evaluate_verifier([solution("a", [0.5, 0.4], [0.6, 0.1]), solution("b", [0.9], [0.95])])
    assert "first_error" not in results
    assert results["threshold"]["how"] == "default"
    assert results["metrics"]["auroc"]["value"] == auroc([0.5, 0.4, 0.9], [0.6, 0.1, 0.95])


@pytest.mark.parametrize(
    ("solutions", "options", "message"),
    [
        ([solution("a", [0.5], [1, 0])], {}, "1 steps and 2 labels"),
        ([solution("a", [None], [1])], {"threshold": 0.5}, "nothing can be compared"),
        ([solution("a", [0.5], [1])], {"tune_fraction": 1.0}, "nothing to report on"),
        ([solution("a", [0.5], [1])], {}, "both need some"),
        ([solution("a", [0.5], [1])], {"threshold": 0.5, "group_by": ["level"]}, "No problem has the column"),
    ],
)
def test_mistakes_are_explained(solutions: list[ScoredSolution], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_verifier(solutions, **options)
