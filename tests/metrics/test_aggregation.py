"""Scores from step values, best-of-n and votes: by hand, as properties, and against real pools to the digit."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_prl import aggregate_step_values, best_of_n, majority_vote, weighted_vote
from trl_prl.metrics.sampling_estimates import mean_pass_at_k


NAN = float("nan")
AGGREGATIONS = ("last", "min", "mean", "product", "soft_min")
# Apart from each other, so that rounding decides nothing.
values = st.lists(st.integers(0, 64).map(lambda number: number / 64), min_size=1, max_size=12)


def test_aggregations_by_hand() -> None:
    steps = [0.5, 0.25, 1.0]
    expected = {"last": 1.0, "min": 0.25, "mean": 1.75 / 3, "product": 0.125}
    for aggregation, score in expected.items():
        assert aggregate_step_values(steps, aggregation) == pytest.approx(score)
    weights = [math.exp(-step / 0.5) for step in steps]
    soft = sum(weight * step for weight, step in zip(weights, steps, strict=True)) / sum(weights)
    assert aggregate_step_values(steps, "soft_min", temperature=0.5) == pytest.approx(soft)


@given(values)
def test_soft_min_goes_from_min_to_mean_with_its_temperature(steps: list[float]) -> None:
    low, mean = (aggregate_step_values(steps, name) for name in ("min", "mean"))
    soft = aggregate_step_values(steps, "soft_min")
    assert low - 1e-12 <= soft <= mean + 1e-12
    assert aggregate_step_values(steps, "soft_min", temperature=1e-6) == pytest.approx(low)
    assert aggregate_step_values(steps, "soft_min", temperature=1e6) == pytest.approx(mean, abs=1e-4)


def test_soft_min_equals_the_sum_of_the_min_form() -> None:
    import torch

    from trl_prl.credit.baselines import min_form_step_rewards

    steps = [0.9, 0.1, 0.4]
    summed = min_form_step_rewards(torch.tensor([steps]), temperature=0.2).sum().item()
    assert aggregate_step_values(steps, "soft_min", temperature=0.2) == pytest.approx(summed)


def test_soft_min_of_large_values_is_finite() -> None:
    assert aggregate_step_values([1e6, 2e6, -1e6], "soft_min") == -1e6
    assert aggregate_step_values([-math.inf, 1.0], "soft_min") == -math.inf


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_value_of_zero_is_a_value(aggregation: str) -> None:
    assert aggregate_step_values([0.0], aggregation) == 0.0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_known_is_unknown(aggregation: str) -> None:
    for steps in ([], [NAN], [None], [0.5, NAN], [0.5, None]):
        assert math.isnan(aggregate_step_values(steps, aggregation))


def test_an_unknown_step_spoils_only_what_reads_it() -> None:
    assert aggregate_step_values([NAN, 0.5], "last") == 0.5
    # Leaving the step out would score a solution by the steps that happened to be scorable.
    assert all(math.isnan(aggregate_step_values([NAN, 0.5], name)) for name in AGGREGATIONS[1:])


@pytest.mark.parametrize("arguments", [{"aggregation": "max"}, {"temperature": 0.0}, {"temperature": NAN}])
def test_unknown_rule_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Use one of last, min, mean, product, soft_min"):
        aggregate_step_values([0.5], **arguments)


def test_best_of_n_by_hand() -> None:
    assert best_of_n([0.1, 0.9, 0.9]) == 1
    assert best_of_n([NAN, 0.1, None, NAN]) == 1
    assert best_of_n([NAN, -math.inf]) == 1
    assert best_of_n([NAN, None]) == 0


@given(st.lists(st.one_of(st.none(), st.just(NAN), st.integers(-3, 3)), min_size=1))
def test_unknown_never_wins(scores: list[float | None]) -> None:
    known = [score for score in scores if score is not None and score == score]
    best = scores[best_of_n(scores)]
    assert not known or (best == max(known) and scores.index(best) == best_of_n(scores))


def test_votes_by_hand() -> None:
    assert majority_vote(["1", "2", "2"]) == 1
    assert majority_vote(["2", "1", "1", "2"]) == 0
    assert majority_vote([None, None, "3"]) == 2
    assert majority_vote([None, None]) == 0
    assert majority_vote([(1, 2), frozenset({1}), frozenset({1})]) == 1
    assert weighted_vote(["1", "2", "2"], [0.9, 0.3, 0.3]) == 0
    assert weighted_vote(["1", "2", "2"], [0.9, 0.5, 0.5]) == 1


def test_unknown_weights_have_no_vote() -> None:
    assert weighted_vote(["1", "2"], [NAN, 0.0]) == 1
    assert weighted_vote(["1", "2"], [None, -1.0]) == 1
    assert weighted_vote([None, "2", "3"], [1.0, NAN, NAN]) == 1


def test_answers_can_be_equal_without_being_identical() -> None:
    def close(left: str, right: str) -> bool:
        return float(left) == float(right)

    answers = ["1", "0.5", "0.50", "1"]
    assert majority_vote([*answers, ".5"], close) == 1
    assert majority_vote([*answers, ".5"]) == 0


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1))
def test_majority_is_the_first_of_the_most_frequent(answers: list[str | None]) -> None:
    counts = Counter(answer for answer in answers if answer is not None)
    winner = majority_vote(answers)
    if counts:
        most = max(counts.values())
        assert counts[answers[winner]] == most
        assert winner == min(answers.index(answer) for answer, count in counts.items() if count == most)
    else:
        assert winner == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), min_size=1))
def test_weighted_vote_is_the_largest_sum(votes: list[tuple[str, int]]) -> None:
    answers, weights = zip(*votes, strict=True)
    sums: dict[str, float] = {}
    for answer, weight in votes:
        sums[answer] = sums.get(answer, 0) + weight
    assert sums[answers[weighted_vote(answers, weights)]] == max(sums.values())


@pytest.mark.parametrize("choose", [best_of_n, majority_vote, lambda none: weighted_vote(none, none)])
def test_no_candidates_are_refused(choose: Any) -> None:
    with pytest.raises(ValueError, match="no best of nothing"):
        choose([])


def test_weights_must_fit_the_answers() -> None:
    with pytest.raises(ValueError, match="2 answers and 1 weights"):
        weighted_vote(["1", "2"], [1.0])


def test_every_number_of_the_real_pools_is_reproduced(shared_data: Path) -> None:
    reference = json.loads((shared_data / "pools_reference.json").read_text(encoding="utf-8"))
    reproduced = {name: pool_numbers(shared_data / "pools" / name, wanted) for name, wanted in reference.items()}
    assert reproduced == reference
    assert sum(len(wanted) - 2 for wanted in reference.values()) > 40


def pool_numbers(path: Path, wanted: dict[str, float]) -> dict[str, float]:
    """Compute the numbers that the reference has of a pool, rounded as it rounds."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line)["samples"] for line in lines]
    correct = [[sample["correct"] for sample in samples] for samples in problems]
    numbers: dict[str, float] = {"problems": len(problems), "n": len(problems[0])}
    for name in list(wanted)[2:]:
        if name.startswith("pass@"):
            numbers[name] = round(mean_pass_at_k(correct, int(name.removeprefix("pass@"))), 6)
        else:
            chosen = [samples[choice(samples, name)]["correct"] for samples in problems]
            numbers[name] = round(sum(chosen) / len(chosen), 6)
    return numbers


def choice(samples: list[dict[str, Any]], name: str) -> int:
    """Index of the sample that the rule with this name in the reference takes."""
    if name.startswith("maj@n"):
        return majority_vote([sample["pred"] for sample in samples])
    if name.startswith("rm@n"):
        return best_of_n([sample["rm_score"] for sample in samples])
    scorer, aggregation = name.split()[1:3]
    aggregation = "product" if aggregation == "prod" else aggregation
    return best_of_n([aggregate_step_values(sample["prm_scores"][scorer], aggregation) for sample in samples])
