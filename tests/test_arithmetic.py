"""The arithmetic task: problems, splits, exact values against the prover's own sampling, and the shipped policy."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.arithmetic.prover import ERROR_OFFSETS, ArithmeticProcessReward, continue_solution
from tests.benchmarks.arithmetic.task import (
    LONG_NUM_TERMS,
    ArithmeticProblem,
    arithmetic_dataset,
    arithmetic_policy_path,
    arithmetic_reward,
    build_arithmetic_tokenizer,
    parse_problem,
    read_answer,
    reference_solution,
    sample_problems,
)
from trl_prl.types import ProcessReward


PROBLEM = ArithmeticProblem((12, 7, -25, 9))
PROMPT = "12+7-25+9="
TERMS = st.lists(st.integers(-29, 29).filter(bool), min_size=1, max_size=7)
PROBLEMS = st.builds(lambda first, others: ArithmeticProblem((first, *others)), st.integers(1, 29), TERMS)
LINES = st.one_of(
    st.integers(-60, 60).map(str), st.integers(-60, 60).map("#{}".format), st.text("0123456789+-=#\n ", max_size=5)
)


def values(steps, error_rate=0.2, **columns):
    return ArithmeticProcessReward(error_rate)([PROMPT], [steps], **columns)[0]


def test_problem_by_hand():
    assert PROBLEM.prompt == PROMPT
    assert PROBLEM.running_results == (19, -6, 3)
    assert PROBLEM.answer == "3"
    assert reference_solution(PROBLEM) == "19\n-6\n3\n#3"


@given(PROBLEMS)
def test_problem_round_trip(problem):
    assert parse_problem(problem.prompt) == problem
    assert read_answer(reference_solution(problem)) == sum(problem.terms)


@pytest.mark.parametrize("prompt", ["", "12=", "12+7", "12+7= ", "-1+2=", "a+b=", "1+2*3=", [{"role": "user"}], None])
def test_unreadable_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match="cannot be read"):
        ArithmeticProcessReward()([prompt], [["1\n"]])


def test_splits_share_no_problem():
    drawn = {
        split: {p.prompt for seed in (0, 1) for terms in (2, 4) for p in sample_problems(split, 400, seed, terms)}
        for split in ("train", "tuning", "test")
    }
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not one & other


def test_problems_are_reproducible():
    problems = sample_problems("test", 50, seed=3, num_terms=LONG_NUM_TERMS)
    assert problems == sample_problems("test", 50, seed=3, num_terms=LONG_NUM_TERMS)
    assert problems != sample_problems("test", 50, seed=4, num_terms=LONG_NUM_TERMS)
    assert {len(p.terms) for p in problems} == {LONG_NUM_TERMS}
    assert all(1 <= abs(term) <= 9 for p in problems for term in p.terms)
    assert all(p.terms[0] > 0 for p in problems)


@pytest.mark.parametrize("arguments", [{"split": "validation"}, {"num_terms": 1}])
def test_impossible_draws_are_refused(arguments):
    with pytest.raises(ValueError, match="Got"):
        sample_problems(**{"split": "train", "n": 1, "seed": 0, **arguments})


def test_dataset():
    dataset = arithmetic_dataset("tuning", 5, seed=0)
    assert dataset.column_names == ["prompt", "answer"]
    assert all(eval(row["prompt"][:-1]) == int(row["answer"]) for row in dataset)


def test_outcome_reward():
    completions = [
        "19\n-6\n3\n#3",
        "#3\n#4",
        "#4\n#3",
        "19\n-6\n3",
        "#",
        "#3 ",
        "# 3",
        "#33",
        "#-3",
        "",
        "x#3",
        "3#3\n#3",
    ]
    rewards = arithmetic_reward(completions=completions, prompts=[PROMPT] * 12, answer=["3"] * 12)
    assert rewards == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_values_by_hand():
    reward = ArithmeticProcessReward(0.2)
    assert isinstance(reward, ProcessReward)
    assert reward.returns == "values"
    # With an error rate of 0.2 a line is right with 0.8 and makes each of the four slips with 0.05.
    two = 0.8**2 + 4 * 0.05**2  # two right lines, or two slips that cancel
    three = 0.8**3 + 3 * 0.8 * 4 * 0.05**2
    assert values(["19\n", "-6\n", "3\n", "#3"]) == pytest.approx([three, two, 0.8, 1.0])
    assert values(["19\n", "-6\n", "3\n", "#4"]) == pytest.approx([three, two, 0.8, 0.0])
    # Off by one: one of two lines has to slip back; off by ten likewise; off by two takes both lines.
    assert values(["19\n", "-5\n", "4\n", "#3"]) == pytest.approx([three, 2 * 0.8 * 0.05, 0.05, 1.0])
    assert values(["19\n", "-16\n", "x"]) == pytest.approx([three, 2 * 0.8 * 0.05, 0.0])
    assert values(["19\n", "-8\n", ""]) == pytest.approx([three, 0.05**2, 0.0])
    assert values(["19\n", "-3\n", ""]) == pytest.approx([three, 0.0, 0.0])  # off by three is out of reach
    four = 0.8**4 + 6 * 0.8**2 * 4 * 0.05**2 + 36 * 0.05**4  # 36 ways for four slips to cancel
    assert reward.initial_values([PROMPT, "1+1="]) == pytest.approx([four, two])


def test_without_errors_values_are_zero_or_one():
    assert values(["19\n", "-6\n", "4\n", "#3"], error_rate=0.0) == [1.0, 1.0, 0.0, 1.0]
    assert ArithmeticProcessReward(0.0).initial_values([PROMPT]) == [1.0]


def test_malformed_solutions():
    assert values([]) == []
    assert values([""]) == [0.0]
    assert values(["abc\n", "19\n", "#3"]) == [0.0, 0.0, 1.0]  # nothing to continue from, yet the answer is right
    assert values(["19+0\n", "\n", "7"]) == [0.0, 0.0, 0.0]
    assert values(["#3\n", "9\n", "#9"]) == [1.0, 1.0, 1.0]  # nothing counts after the answer
    assert values(["#x\n", "#3"]) == [0.0, 0.0]
    first, blank, second, cut = values(["19\n", "\n\n", "-6\n", "3"])
    assert first == blank == pytest.approx(values(["19\n", ""])[0])
    assert second > first
    assert cut == 0.0  # finished without an answer
    assert values(["9" * 5000 + "\n", "#" + "9" * 5000]) == [0.0, 0.0]


def test_results_beyond_the_last_term_are_compared_with_the_answer():
    assert values(["19\n-6\n3\n", "3\n", "4\n", "#3"]) == pytest.approx([0.8, 0.8, 0.05, 1.0])


def test_steps_inside_a_line_and_prefixes():
    whole = values(["19\n", "-6\n"], finished=[False])
    start = ArithmeticProcessReward(0.2).initial_values([PROMPT])[0]
    assert values(["1", "9", "\n-", "6\n"], finished=[False]) == pytest.approx([start, start, *whole])
    assert values(["19\n-6\n3\n#3"], finished=[False]) == pytest.approx([0.8])
    assert values(["19\n-6\n3\n#3"]) == [1.0]


@pytest.mark.parametrize("error_rate", [-0.1, 1.0, float("nan")])
def test_impossible_error_rate_is_refused(error_rate):
    with pytest.raises(ValueError, match="error_rate"):
        ArithmeticProcessReward(error_rate)


@pytest.mark.parametrize("prefix", ["", "19\n", "20\n", "19\n\n-16\n", "19\n-6\n3\n", "19\n-6\n3\n2\n"])
def test_values_equal_sampling(prefix):
    generator, n = np.random.default_rng(0), 6000
    texts = [continue_solution(PROBLEM, prefix, 0.25, generator) for _ in range(n)]
    share = np.mean(arithmetic_reward(texts, ["3"] * n))
    exact = values([prefix], error_rate=0.25, finished=[False])[0]
    assert abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / n)


def test_values_equal_enumeration():
    """All error patterns of the prover on the problem, weighed one by one."""
    for error in range(-12, 13):
        exact = values([f"{19 + error}\n"], finished=[False])[0]
        total = sum(
            np.prod([0.8 if slip == 0 else 0.05 for slip in slips])
            for slips in itertools.product((0, *ERROR_OFFSETS), repeat=3)
            if sum(slips) == -error
        )
        assert exact == pytest.approx(total, abs=1e-12)


@given(PROBLEMS, st.integers(0, 6), st.integers(-25, 25), st.floats(0.0, 0.9))
def test_progress_of_the_prover_is_zero_on_average(problem, num_lines, error, error_rate):
    """A^mu under mu itself has mean 0: the values after the prover's next line average to the value before it."""
    num_lines = min(num_lines, len(problem.terms) - 2)
    written = "".join(f"{result + error}\n" for result in problem.running_results[:num_lines])
    error = error if num_lines else 0
    reward = ArithmeticProcessReward(error_rate)
    following = problem.running_results[num_lines] + error
    steps = [[written], *([written + f"{following + slip}\n"] for slip in (0, *ERROR_OFFSETS))]
    before, *after = (row[0] for row in reward([problem.prompt] * 6, steps, finished=[False] * 6))
    weights = [1 - error_rate] + [error_rate / 4] * 4
    assert before == pytest.approx(np.dot(weights, after), abs=1e-12)


@given(PROBLEMS, st.lists(LINES, max_size=10), st.lists(st.integers(0, 60), max_size=8))
def test_any_text_in_any_steps_gets_one_value_per_step(problem, lines, cuts):
    text = "\n".join(lines)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    steps = [text[start:end] for start, end in itertools.pairwise([0, *ends])]
    reward = ArithmeticProcessReward(0.1)
    scores = reward([problem.prompt], [steps], answer=[problem.answer])[0]
    assert len(scores) == len(steps)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert scores[-1:] == arithmetic_reward([text], [problem.answer])
    by_prefix = [reward([problem.prompt], [[text[:end]]], finished=[False])[0][0] for end in ends]
    answered_before = [any(line.startswith("#") for line in text[:end].split("\n")[:-1]) for end in ends]
    for score, alone, answered in zip(scores[:-1], by_prefix, answered_before, strict=False):
        assert answered or score == alone


def test_solutions_of_the_prover_have_the_right_format():
    generator = np.random.default_rng(0)
    for problem in sample_problems("train", 50, seed=0, num_terms=5):
        assert continue_solution(problem, "", 0.0, generator) == reference_solution(problem)
        lines = continue_solution(problem, "", 0.5, generator).split("\n")
        assert len(lines) == 5
        assert lines[-1].startswith("#")
    assert continue_solution(PROBLEM, "#4\n", 0.5, generator) == "#4\n"
    assert continue_solution(PROBLEM, "what\n", 0.5, generator) is None


@given(PROBLEMS)
def test_tokenizer_is_one_character_per_token(problem):
    tokenizer = build_arithmetic_tokenizer()
    text = problem.prompt + reference_solution(problem)
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id], skip_special_tokens=True) == text


def test_shipped_policy_solves_some_problems():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = arithmetic_policy_path()
    assert (Path(path) / "model.safetensors").stat().st_size <= 4 * 1024**2
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    assert policy.dtype == torch.float32
    assert tokenizer.get_vocab() == build_arithmetic_tokenizer().get_vocab()
    dataset = arithmetic_dataset("test", 300, seed=1)
    inputs = tokenizer(dataset["prompt"][:], padding=True, return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = policy.generate(**inputs, max_new_tokens=32, do_sample=True, temperature=1.0, top_k=0)
    texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert 0.05 < np.mean(arithmetic_reward(texts, dataset["answer"][:])) < 0.60
    assert np.mean([text.count("\n") == 3 for text in texts]) > 0.9
