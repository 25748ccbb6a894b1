"""Step values: against exact ones, by hand, and the mistakes of earlier collectors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.benchmarks.arithmetic.prover import ArithmeticProcessReward
from tests.benchmarks.arithmetic.task import arithmetic_policy_path, arithmetic_reward
from tests.provers import ArithmeticProver, ScriptedGenerator, arithmetic_problems, few_positions, root_mean_square
from trl_prl.collection.monte_carlo import MonteCarloParams, estimate_step_values
from trl_prl.collection.output import best_of_k_row
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.rollouts import Problem
from trl_prl.generation.tallies import Spending
from trl_prl.metrics.intervals import SequentialRule, value_interval
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.splitters import DelimiterSplitter, FixedLengthSplitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import SamplingParams


SAMPLING = SamplingParams(max_tokens=64, seed=1)


def estimate(prover: Any, problems: list[Problem], params: MonteCarloParams, **kwargs: Any) -> list[dict[str, Any]]:
    arguments = {"reward": arithmetic_reward, "sampling": SAMPLING, **kwargs}
    return estimate_step_values(
        problems,
        prover,
        splitter=DelimiterSplitter("\n"),
        token_pieces=TokenPieces(prover.tokenizer),
        params=params,
        **arguments,
    )


def errors(rows: list[dict[str, Any]], error_rate: float) -> list[float]:
    """Measured minus exact values of every distinct measured prefix."""
    exact = ArithmeticProcessReward(error_rate)
    found: dict[tuple[int, str], float] = {}
    for row in rows:
        values = exact([row["prompt"]], [row["completions"]], finished=[False])[0]
        for k, (value, label, n) in enumerate(zip(values, row["labels"], row["num_rollouts"], strict=True)):
            if n:
                found[row["row"], "".join(row["completions"][: k + 1])] = label - value  # type: ignore[operator]
    return list(found.values())


@pytest.fixture(scope="module")
def prover() -> ArithmeticProver:
    return ArithmeticProver(0.15)


@pytest.mark.parametrize("n_mc", [16, SequentialRule()])
@pytest.mark.parametrize("strategy", ["iid", "first_pit"])
def test_values_are_those_of_the_prover(prover: ArithmeticProver, strategy: Any, n_mc: Any) -> None:
    problems = arithmetic_problems(prover.tokenizer, 30)
    rows = estimate(prover, problems, MonteCarloParams(4, n_mc, strategy))
    found = errors(rows, 0.15)
    assert len(found) > 100
    assert root_mean_square(found) < 0.12
    assert abs(math.fsum(found) / len(found)) < 0.025
    initial = {row["row"]: row["initial_value"] for row in rows}
    exact = ArithmeticProcessReward(0.15).initial_values(["1+1-1+1="])[0]
    assert math.fsum(initial.values()) / len(initial) == pytest.approx(exact, abs=0.06)


def test_rows_by_hand(prover: ArithmeticProver) -> None:
    """Two seeds, equal; their prefix measured once; the whole solution has its outcome and no rollouts."""
    texts = ["7\n#7", "7\n#7", "8\n#8"]

    def write(text: str, i: int) -> str:
        if text.endswith("="):
            # The seeds; then rollouts of the prompt: three of four right.
            return texts[i] if len(generator.prompts) == 1 else "7\n#7" if i else "8\n#8"
        return "#7" if i % 2 else "#8"

    generator = ScriptedGenerator(prover.tokenizer, write)
    problem = Problem(5, "3+4=", tuple(prover.tokenizer("3+4=").input_ids), {"answer": "7"})
    spending = Spending()
    rows = estimate(generator, [problem], MonteCarloParams(n_cov=3, n_mc=4), spending=spending)
    assert len(rows) == 2
    first, second = rows
    assert first["completions"] == ["7\n", "#7"]
    assert (first["row"], first["num_seeds"], second["num_seeds"]) == (5, 2, 1)
    assert first["labels"] == [0.5, 1.0]
    assert second["labels"] == [0.5, 0.0]
    assert first["initial_value"] == 0.75
    assert first["num_rollouts"] == [4, 0]
    low, high = value_interval(2, 4)
    assert first["interval_low"] == [low, 1.0]
    assert first["interval_high"] == [high, 1.0]
    assert (first["outcome"], second["outcome"]) == (1.0, 0.0)
    # Three seeds, four rollouts of the prompt and of each of "7\n" and "8\n".
    assert spending.num_rollouts == 3 + 4 + 4 + 4
    # The prefix was given as the sampled ids.
    assert {p.token_ids for p in generator.prompts[1:]} == {
        tuple(prover.tokenizer(text).input_ids) for text in ("3+4=", "3+4=7\n", "3+4=8\n")
    }


def test_duplicate_prompts_stay_separate_rows(prover: ArithmeticProver) -> None:
    """Never keyed by prompt text: two equal prompts have seeds and rollouts of their own."""
    one = arithmetic_problems(prover.tokenizer, 1)[0]
    twin = Problem(1, one.prompt, one.prompt_ids, one.columns)
    rows = estimate(prover, [one, twin], MonteCarloParams(4, 30))
    assert {row["row"] for row in rows} == {0, 1}
    of = {k: [row for row in rows if row["row"] == k] for k in (0, 1)}
    assert [r["completions"] for r in of[0]] != [r["completions"] for r in of[1]]
    alone = estimate(prover, [twin], MonteCarloParams(4, 30))
    assert alone == of[1]


def test_unfinished_rollouts_are_not_silently_wrong(prover: ArithmeticProver) -> None:
    """Every second rollout never ends; the others are right."""
    generator = ScriptedGenerator(prover.tokenizer, lambda text, i: "7\n#7" if i % 2 else "1\n" * 40)
    problem = Problem(0, "3+4=", tuple(prover.tokenizer("3+4=").input_ids), {"answer": "7"})
    apart = estimate(generator, [problem], MonteCarloParams(2, 10))
    assert [row["initial_value"] for row in apart] == [1.0, 1.0]
    unfinished = next(row for row in apart if row["finish_reason"] == "length")
    assert unfinished["outcome"] is None
    # No room is left after the last step, so it has no value rather than zero.
    assert unfinished["labels"][-1] is None
    assert unfinished["num_unfinished"][0] == 5
    wrong = estimate(generator, [problem], MonteCarloParams(2, 10, unfinished="wrong"))
    assert [row["initial_value"] for row in wrong] == [0.5, 0.5]
    assert wrong[0]["num_unfinished"][0] == 5


@pytest.mark.parametrize("options", [{"n_branch": 2}, {"strategy": "first_pit"}])
def test_a_seed_that_fills_the_models_positions_has_no_value_at_its_end(options: dict[str, Any]) -> None:
    """The model ends it before `max_tokens` does, and cannot go on from there."""
    generator = few_positions(24)
    problem = Problem(0, "Add", tuple(generator.tokenizer("Add 1 + 2.").input_ids))
    rows = estimate_step_values(
        [problem],
        generator,
        reward=lambda completions, **_: [float(len(text) % 2) for text in completions],
        splitter=FixedLengthSplitter(2),
        token_pieces=TokenPieces(generator.tokenizer),
        params=MonteCarloParams(8, 2, unfinished="wrong", **options),
        sampling=SamplingParams(max_tokens=32),
    )
    cut = [row for row in rows if row["finish_reason"] == "length" and not row["rest"]]
    assert cut
    room = 24 - len(problem.prompt_ids)
    for row in cut:
        assert len(row["completions"]) == math.ceil(room / 2)
        assert row["labels"][-1] is None
        assert row["num_rollouts"][-2:] == [2, 0]


def test_first_pit_does_not_probe_where_the_prover_has_no_room(prover: ArithmeticProver) -> None:
    """Seeds of another sampler may be longer than the prover's completions."""
    generator = ScriptedGenerator(prover.tokenizer, lambda text, i: "1\n2\n3\n4\n#5"[len(text) - 4 :])
    problem = Problem(0, "1+1=", tuple(prover.tokenizer("1+1=").input_ids))
    (row,) = estimate(
        generator,
        [problem],
        MonteCarloParams(1, 2, "first_pit", unfinished="wrong"),
        reward=lambda completions, **_: [0.0] * len(completions),
        sampling=replace(SAMPLING, max_tokens=3),
        seed_sampling=SAMPLING,
    )
    assert (row["labels"], row["initial_value"]) == ([0.0], 0.0)


def test_correct_seeds_are_measured(prover: ArithmeticProver) -> None:
    """Steps of a correct seed are not stored with value 1."""
    rows = estimate(ArithmeticProver(0.3), arithmetic_problems(prover.tokenizer, 20), MonteCarloParams(2, 20))
    values = [v for row in rows if row["outcome"] == 1.0 for v in row["labels"][:-1]]
    assert min(values) < 0.6
    counts = [n for row in rows if row["outcome"] == 1.0 for n in row["num_rollouts"][:-1]]
    assert set(counts) == {20}


def test_failed_checks_are_counted_apart(prover: ArithmeticProver) -> None:
    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if "8" in text else float("nan") if "9" in text else 1.0 for text in completions]

    generator = ScriptedGenerator(prover.tokenizer, lambda text, i: f"{7 + i % 3}\n#1")
    problem = Problem(0, "3+4=", tuple(prover.tokenizer("3+4=").input_ids))
    rows = estimate(generator, [problem], MonteCarloParams(3, 9), reward=reward)
    assert [row["initial_value"] for row in rows] == [1.0] * 3
    assert [row["initial_num_rollouts"] for row in rows] == [3] * 3
    assert [row["outcome"] for row in rows] == [1.0, None, None]
    assert [row["labels"][-1] for row in rows] == [1.0, None, None]
    # After "8" in the first step every rollout fails its check.
    assert rows[1]["labels"][0] is None
    assert rows[1]["num_failed"][0] == 9


def test_an_exception_of_the_reward_is_not_reward_zero(prover: ArithmeticProver) -> None:
    def reward(completions: list[str], **columns: Any) -> list[float]:
        raise ZeroDivisionError("in the check")

    with pytest.raises(ZeroDivisionError, match="in the check"):
        estimate(prover, arithmetic_problems(prover.tokenizer, 1), MonteCarloParams(), reward=reward)
    with pytest.raises(ValueError, match="returned 1 rewards"):
        estimate(prover, arithmetic_problems(prover.tokenizer, 1), MonteCarloParams(), reward=lambda **_: [1.0])


def test_a_generator_that_ignores_n_is_an_error(prover: ArithmeticProver) -> None:
    class One(ArithmeticProver):
        def generate(self, prompts: Any, params: Any) -> Any:
            return [row[:1] for row in super().generate(prompts, params)]

    with pytest.raises(ValueError, match="4 were asked"):
        estimate(One(), arithmetic_problems(prover.tokenizer, 1), MonteCarloParams(4))


def test_rows_do_not_depend_on_the_other_problems(prover: ArithmeticProver) -> None:
    problems = arithmetic_problems(prover.tokenizer, 6)
    for strategy in ("iid", "first_pit"):
        params = MonteCarloParams(3, SequentialRule(), strategy)  # type: ignore[arg-type]
        together = estimate(prover, problems, params)
        apart = [row for problem in problems for row in estimate(prover, [problem], params)]
        assert together == apart


# ---- first pit ----


def test_first_pit_keeps_the_prefixes_up_to_the_pit(prover: ArithmeticProver) -> None:
    """The second of four lines cannot be repaired; what comes after it is not measured."""

    def write(text: str, i: int) -> str:
        lines = text.split("=")[1].split("\n")[:-1]
        wanted = ["1", "9", "3", "#3"] if len(generator.prompts) == 1 else ["1", "2", "3", "#3"]
        return "\n".join(wanted[len(lines) :])

    generator = ScriptedGenerator(prover.tokenizer, write)
    problem = Problem(0, "1+0+1+1=", tuple(prover.tokenizer("1+0+1+1=").input_ids))

    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [float("9" not in text) for text in completions]

    rows = estimate(generator, [problem], MonteCarloParams(2, 12, "first_pit"), reward=reward)
    (row,) = rows
    assert row["completions"] == ["1\n", "9\n"]
    assert row["rest"] == "3\n#3"
    assert row["labels"] == [1.0, 0.0]
    assert row["num_rollouts"] == [12, 12]
    assert row["outcome"] == 0.0


@pytest.mark.slow
def test_a_probe_without_success_is_not_taken_as_a_fact(prover: ArithmeticProver) -> None:
    """One rollout per probe errs often; whatever is called a pit has no success among its own n_mc rollouts."""
    problems = arithmetic_problems(prover.tokenizer, 40)
    weak = ArithmeticProver(0.4)
    rows = estimate(weak, problems, MonteCarloParams(3, 25, "first_pit", n_probe=1))
    cut = [row for row in rows if row["outcome"] == 0.0 and row["rest"]]
    assert len(cut) > 20
    for row in cut:
        assert row["labels"][-1] == 0.0
        assert row["num_rollouts"][-1] == 25


@pytest.mark.slow
def test_first_pit_adds_failures_from_promising_prefixes_and_saves_rollouts(prover: ArithmeticProver) -> None:
    problems = arithmetic_problems(prover.tokenizer, 30, num_terms=8)
    prover.num_rollouts = 0
    iid = estimate(prover, problems, MonteCarloParams(4, 20))
    spent = {"iid": prover.num_rollouts}
    prover.num_rollouts = 0
    pit = estimate(prover, problems, MonteCarloParams(4, 20, "first_pit"))
    spent["first_pit"] = prover.num_rollouts
    assert sum(row["num_seeds"] for row in pit) > sum(row["num_seeds"] for row in iid)
    assert spent["first_pit"] / len(errors(pit, 0.15)) < 1.3 * spent["iid"] / len(errors(iid, 0.15))


# ---- Best-of-K ----


def test_best_of_k_by_hand(prover: ArithmeticProver) -> None:
    row = estimate(prover, arithmetic_problems(prover.tokenizer, 3), MonteCarloParams(1, 10))[0]
    best = best_of_k_row(row, 4)
    assert best["labels"] == pytest.approx([1 - (1 - value) ** 4 for value in row["labels"]])
    assert best["initial_value"] == pytest.approx(1 - (1 - row["initial_value"]) ** 4)
    assert best["interval_low"][0] <= best["labels"][0] <= best["interval_high"][0]
    assert best_of_k_row(row, 1)["labels"] == pytest.approx(row["labels"])
    # Without bias: 1 - C(n - c, k) / C(n, k).
    unbiased = best_of_k_row({**row, "labels": [0.2], "num_rollouts": [10], "num_correct": [2]}, 4, "unbiased")
    assert unbiased["labels"] == pytest.approx([1 - math.comb(8, 4) / math.comb(10, 4)])
    fewer = best_of_k_row({**row, "labels": [0.5], "num_rollouts": [2], "num_correct": [1]}, 4, "unbiased")
    assert fewer["labels"] == [None]
    outcome = best_of_k_row({**row, "labels": [1.0], "num_rollouts": [0], "num_correct": [0]}, 4, "unbiased")
    assert outcome["labels"] == [1.0]


def test_refuses_what_it_cannot_do(prover: ArithmeticProver) -> None:
    for fields in ({"n_cov": 0}, {"n_mc": 0}, {"strategy": "best"}, {"unfinished": "right"}):
        with pytest.raises(ValueError, match="Got "):
            MonteCarloParams(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k=0"):
        best_of_k_row({}, 0)


def test_seeds_may_be_sampled_at_another_temperature() -> None:
    """The seeds are those of the policy; values are those of the same weights at temperature 0, so 0 or 1."""
    generator = TransformersGenerator.from_pretrained(arithmetic_policy_path(), dtype="float32", device="cpu")
    problems = arithmetic_problems(generator.tokenizer, 6)
    hot = replace(SAMPLING, max_tokens=24)
    own = estimate(generator, problems, MonteCarloParams(3, 2), sampling=hot)
    greedy = estimate(
        generator, problems, MonteCarloParams(3, 2), sampling=replace(hot, temperature=0.0), seed_sampling=hot
    )
    assert [row["completions"] for row in greedy] == [row["completions"] for row in own]
    labels = [label for row in greedy for label in row["labels"] if label is not None]
    assert {*labels} == {0.0, 1.0}
    assert {label for row in own for label in row["labels"]} > {0.0, 1.0}


def test_branches_obey_the_splitter(prover: ArithmeticProver) -> None:
    """Samples that go on with more of the delimiter, or are cut off, are no next steps."""
    texts = {
        "1+1=": ["2\n#2", "2\n#2", "2\n#2"],
        # From behind the first step: the end of the text, a further line break, and a whole line.
        "1+1=2\n": ["\n#2", "\n\n", "#2", "3\n#3", "111111"],
    }

    def write(text: str, i: int) -> str:
        found = texts.get(text, ["#2"])
        return found[i % len(found)]

    generator = ScriptedGenerator(prover.tokenizer, write)
    problem = Problem(0, "1+1=", tuple(prover.tokenizer("1+1=").input_ids), {"answer": "2"})
    rows = estimate(generator, [problem], MonteCarloParams(1, 1, n_branch=5), sampling=SamplingParams(max_tokens=6))
    branches = {"".join(row["completions"]): row for row in rows if row["branch_at"] == 1}
    assert set(branches) == {"2\n#2", "2\n3\n"}
    splitter = DelimiterSplitter("\n")
    for row in rows:
        assert all(step.strip() for step in row["completions"])
        whole = "".join(row["completions"]) + row["rest"]
        cut = split_text(splitter, whole)
        assert row["completions"] == cut[: len(row["completions"])]
