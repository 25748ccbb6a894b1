"""Calibration curves, the choice of a threshold, and the evaluation of values that are given, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from trl_prl.metrics.calibration import calibration_bins, expected_calibration_error
from trl_prl.metrics.step_values import auroc, choose_threshold, process_bench_f1
from trl_prl.verifier.evaluation import ScoredSolution, evaluate_verifier, label_kind


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


# Inside the bins: a value on an edge between two may fall on either side of it.
INNER_VALUES = st.builds(lambda place, rest: place / 10 + rest, st.integers(0, 9), st.floats(0.01, 0.09))


@given(st.lists(st.tuples(INNER_VALUES, st.booleans()), max_size=30), INNER_VALUES, INNER_VALUES)
def test_of_hard_labels_it_is_the_curve_of_scikit_learn(
    pairs: list[tuple[float, bool]], right: float, wrong: float
) -> None:
    values = [right, wrong, *(value for value, _ in pairs)]
    labels = [1.0, 0.0, *(float(label) for _, label in pairs)]
    filled = [entry for entry in calibration_bins(values, labels) if entry["num"]]
    observed, predicted = calibration_curve(labels, values, n_bins=10)
    assert [entry["mean_label"] for entry in filled] == pytest.approx(observed)
    assert [entry["mean_value"] for entry in filled] == pytest.approx(predicted)


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_shares_of_rollouts_are_told_from_judgements_by_their_columns() -> None:
    """Four rollouts that all fail or all succeed give 0 and 1 too, and no first error."""
    rows = [solution(f"p{i}", [0.9, 0.2], [1, 0]) for i in range(6)]
    counted = [solution(f"p{i}", [0.9, 0.2], [1.0, 0.0], num_rollouts=[4, 4]) for i in range(6)]
    valued = [solution(f"p{i}", [0.9, 0.2], [1.0, 0.0], initial_value=0.5, num_rollouts=None) for i in range(6)]
    assert evaluate_verifier(counted)["progress_error"] == pytest.approx(0.3)
    assert "progress_error" not in evaluate_verifier(valued)
    assert "no 'num_rollouts'" in evaluate_verifier(valued)["no_progress_error"]
    single = [solution("p", [0.9, 0.2], [1.0, None], num_rollouts=[4, 0])]
    assert "no two steps in a row" in evaluate_verifier(single)["no_progress_error"]
    noisy = [solution("p", [0.5, 0.5], [0.5, 0.5], num_rollouts=[2, 2])]
    assert "below the noise" in evaluate_verifier(noisy)["no_progress_error"]
    assert "no_progress_error" not in {**evaluate_verifier(rows, threshold=0.5), **evaluate_verifier(counted)}
    assert (label_kind(rows), label_kind(counted), label_kind(valued)) == ("hard", "monte_carlo", "monte_carlo")
    assert label_kind([solution("p", [0.9], [0.5])]) == "soft"
    assert evaluate_verifier(rows, threshold=0.5)["first_error"] == {"error_accuracy": 1.0}
    results = evaluate_verifier(counted)
    assert "first_error" not in results
    assert "process_bench_f1" not in results["metrics"]
    assert (results["labels"], results["threshold"]["how"], results["num_solutions"]) == ("monte_carlo", "default", 6)


def test_what_cannot_be_computed_is_left_out() -> None:
    results = evaluate_verifier([solution("a", [0.9], [1]), solution("b", [0.7], [1])], threshold=0.5)
    assert "auroc" not in results["metrics"]
    assert "auroc" not in results["positions"][0]
    assert None not in [number for entry in results["metrics"].values() for number in entry.values()]


@pytest.mark.parametrize(
    ("solutions", "options", "message"),
    [
        # Judgements of +1 and -1, and percentages.
        ([solution("a", [0.9, 0.1], [1, -1])], {"threshold": 0.5}, r"Solution 0 .* label that is -1.* Rescale"),
        ([solution("a", [0.9], [1]), solution("b", [0.9], [80])], {}, "Solution 1 .* label that is 80"),
        ([solution("a", [0.9], [None, -100, True])], {"threshold": 0.5}, "1 steps and 3 labels"),
        ([solution("a", [0.5], [1, 0])], {}, "1 steps and 2 labels"),
        ([solution("a", [0.9, 0.1], [1, -1])], {"threshold": 0.5}, "Solution 0 has a label that is -1"),
        ([solution("a", [0.9, 0.1], [100, 0])], {"threshold": 0.5}, "labels are probabilities of success"),
        ([solution("a", [0.9, 0.1], ["yes", "no"])], {"threshold": 0.5}, "no number"),
        ([solution("a", [0.9, 0.1], "10")], {"threshold": 0.5}, "labels are a list"),
        ([solution("a", [None], [1])], {"threshold": 0.5}, "nothing can be compared"),
        ([solution("a", [0.5], [1])], {"tune_fraction": 1.0}, "nothing to report on"),
        ([solution("a", [0.5], [1])], {}, "both need some"),
        ([solution("a", [0.5], [1])], {"threshold": 0.5, "group_by": ["level"]}, "No problem has the column"),
    ],
)
def test_mistakes_are_explained(solutions: list[ScoredSolution], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_verifier(solutions, **options)
