"""Metrics of step values: numbers worked out by hand, and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from trl_prl.metrics.calibration import expected_calibration_error
from trl_prl.metrics.step_values import (
    auroc,
    brier_score,
    first_errors,
    metrics_of_records,
    process_bench_f1,
    progress_error,
    spearman,
    verifier_metrics,
)


NAN = math.nan
# Few distinct numbers, so that ties are frequent.
PAIRS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.sampled_from([0.0, 0.25, 0.5, 1.0])))


def test_brier_by_hand() -> None:
    assert brier_score([0.5, 1.0, 0.2], [1.0, 1.0, NAN]) == pytest.approx(0.25 / 2)
    assert math.isnan(brier_score([], []))


def test_calibration_error_by_hand() -> None:
    # Bin [0, 0.5): mean value 0.3, mean label 0.5; bin [0.5, 1]: mean value 0.9, mean label 0.9.
    values, labels = [0.2, 0.4, 0.8, 1.0], [0.0, 1.0, 0.8, 1.0]
    assert expected_calibration_error(values, labels, num_bins=2) == pytest.approx(0.5 * 0.2 + 0.5 * 0.0)


def test_perfect_calibration_of_soft_labels_has_no_error() -> None:
    assert expected_calibration_error([0.25, 0.75, 1.0], [0.25, 0.75, 1.0]) == pytest.approx(0.0)


def test_calibration_error_needs_a_bin() -> None:
    with pytest.raises(ValueError, match="Use 1 or more"):
        expected_calibration_error([0.5], [0.5], num_bins=0)


@given(PAIRS)
def test_auroc_equals_counting_all_pairs(pairs: list[tuple[float, float]]) -> None:
    values, labels = [value for value, _ in pairs], [label for _, label in pairs]
    positive = [value for value, label in pairs if label >= 0.5]
    negative = [value for value, label in pairs if label < 0.5]
    found = auroc(values, labels)
    if not positive or not negative:
        assert math.isnan(found)
    else:
        wins = [(p > n) + (p == n) / 2 for p, n in itertools.product(positive, negative)]
        assert found == pytest.approx(sum(wins) / len(wins))


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=1))
def test_of_hard_labels_losses_are_those_of_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    values, labels = [value for value, _ in pairs], [float(label) for _, label in pairs]
    found = verifier_metrics([values], [labels])
    assert found["brier"] == pytest.approx(brier_score_loss(labels, values, labels=[0, 1]))
    assert found["cross_entropy"] == pytest.approx(log_loss(labels, values, labels=[0, 1]))


def test_spearman_by_hand() -> None:
    assert spearman([1.0, 2.0, 3.0], [0.1, 0.2, 0.9]) == pytest.approx(1.0)
    assert spearman([1.0, 2.0, 3.0], [0.9, 0.2, 0.1]) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman([1.0, 1.0], [0.0, 1.0]))
    assert math.isnan(spearman([1.0], [0.0]))


def test_progress_error_by_hand() -> None:
    """0.4 told, 0.5 measured, by 5 rollouts and none: (0.4 - 0.5)² less the noise 0.25 / 4, but no less than 0."""
    assert progress_error([[0.3, 0.7]], [[0.5, 1.0]], [[5, 0]]) == 0.0
    # Of outcomes alone there is no noise; the second row has one step, and the third a label of a single rollout.
    values, labels = [[0.3, 0.7], [0.5, NAN], [0.1, 0.9]], [[0.0, 1.0], [1.0, NAN], [1.0, 1.0]]
    assert progress_error(values, labels, [[0, 0], [0, NAN], [1, 0]]) == pytest.approx(0.6)
    assert math.isnan(progress_error([[0.5]], [[0.5]], [[4]]))


def test_progress_error_is_that_of_the_verifier_whatever_the_number_of_rollouts() -> None:
    generator = np.random.default_rng(0)
    exact = generator.random((40_000, 2))
    values = exact + generator.normal(0, 0.15, exact.shape)
    for number in (2, 8):
        labels = generator.binomial(number, exact) / number
        error = progress_error(values, labels, np.full(exact.shape, number))
        assert error == pytest.approx(0.15 * math.sqrt(2), abs=0.02)


def test_first_errors() -> None:
    scores = [[0.9, 0.4, 0.1], [0.9, 0.5, NAN], [NAN, 0.2, 0.9]]
    assert first_errors(scores).tolist() == [1, -1, 1]
    assert first_errors(np.empty((2, 0))).tolist() == [-1, -1]


def test_process_bench_by_hand() -> None:
    # Errors: found, found too early, missed. Correct solutions: one kept, one accused.
    values = [[0.9, 0.1, 0.9], [0.2, 0.1, NAN], [0.9, 0.9, NAN], [0.8, 0.6, NAN], [0.8, 0.3, NAN]]
    result = process_bench_f1(values, [1, 1, 0, -1, -1])
    assert result == pytest.approx({"error_accuracy": 1 / 3, "correct_accuracy": 0.5, "f1": 0.4})


def test_process_bench_without_a_hit_is_zero_and_of_one_class_undefined() -> None:
    assert process_bench_f1([[0.9], [0.1]], [0, -1])["f1"] == 0.0
    assert math.isnan(process_bench_f1([[0.9]], [-1])["f1"])
    with pytest.raises(ValueError, match="one index per solution"):
        process_bench_f1([[0.9]], [-1, 0])


def test_all_metrics_ignore_padding() -> None:
    values, labels = [[0.9, 0.2], [0.8, 0.7]], [[1.0, 0.0], [1.0, 1.0]]
    plain = verifier_metrics(values, labels)
    padded = verifier_metrics([[*row, NAN, 0.3] for row in values], [[*row, 0.5, NAN] for row in labels])
    assert {name: padded[name] for name in plain} == pytest.approx(plain)
    assert plain["auroc"] == 1.0
    assert plain["process_bench_f1"] == 1.0
    assert plain["cross_entropy"] == pytest.approx(-np.mean(np.log([0.9, 0.8, 0.8, 0.7])))
    assert plain["brier_step_2"] == pytest.approx((0.04 + 0.09) / 2)


def test_soft_labels_have_no_first_error_metric() -> None:
    found = verifier_metrics([[0.9, 0.2]], [[1.0, 0.3]])
    assert not any(name.startswith("process_bench") for name in found)


def test_shares_of_rollouts_are_no_judgements_whatever_their_values() -> None:
    values, labels = [[0.9, 0.2]], [[1.0, 0.0]]
    assert verifier_metrics(values, labels)["process_bench_error_accuracy"] == 1.0
    assert not any("process_bench" in name for name in verifier_metrics(values, labels, hard_labels=False))
    # A row with a label of its prompt is one of rollouts.
    judged, rolled = ((np.array([0.5, 0.9, 0.2]), np.array([first, 1.0, 0.0])) for first in (NAN, 1.0))
    assert "process_bench_error_accuracy" in metrics_of_records([judged], 0.5)
    assert "process_bench_error_accuracy" not in metrics_of_records([rolled], 0.5)


def test_later_positions_share_one_brier_score() -> None:
    found = verifier_metrics([[0.5] * 6], [[0.5, 0.5, 0.5, 0.5, 1.0, 0.5]])
    assert found["brier_step_later"] == pytest.approx(0.125)
    assert "brier_step_5" not in found


def test_nothing_to_measure_gives_no_numbers_and_no_warning() -> None:
    assert verifier_metrics(np.full((2, 3), NAN), np.full((2, 3), NAN)) == {"num_labels": 0.0}
    assert metrics_of_records([], 0.5) == {"num_labels": 0.0}


def test_records_keep_the_prompt_apart() -> None:
    records = [(np.array([0.5, 0.9]), np.array([0.7, 1.0])), (np.array([0.1, 0.2, 0.4]), np.array([NAN, 0.0, 1.0]))]
    found = metrics_of_records(records, 0.5)
    assert found["num_labels"] == 3
    assert found["brier_prompt"] == pytest.approx(0.04)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must not broadcast"):
        brier_score([0.5, 0.5], [0.5])
    with pytest.raises(ValueError, match=r"shape \(B, S\)"):
        verifier_metrics([0.5], [0.5])
