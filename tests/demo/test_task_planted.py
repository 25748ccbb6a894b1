"""The planted sub-sequence task: its automaton, its values against enumeration and sampling, its process reward."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.demo.planted import (
    DEFAULT_TASK,
    END_TEXT,
    PlantedProcessReward,
    PlantedTask,
    planted_reward,
    prover_token_probs,
    prover_values,
    sample_prover,
)
from trl_prl.demo.planted_policy import build_base_policy, build_planted_tokenizer, planted_dataset
from trl_prl.types import ProcessReward


LETTERS = "abcdefghijklmn"
GOAL = "dgadf"  # 3, 6, 0, 3, 5


def texts_of(tokens):
    return ["".join(LETTERS[token] for token in row if token < 14) for row in tokens.tolist()]


def longest_match(text):
    """The paper's rule, read off the text: the largest k whose last k letters are the first k of the planted run."""
    return max(k for k in range(6) if text.endswith(GOAL[:k]))


def test_paper_constants():
    task = DEFAULT_TASK
    assert (task.vocab_size, task.length, task.planted, task.eos) == (15, 10, (3, 6, 0, 3, 5), 14)


def test_transitions_by_hand():
    transitions = DEFAULT_TASK.transitions
    assert [transitions[k, token] for k, token in enumerate(DEFAULT_TASK.planted)] == [1, 2, 3, 4, 5]
    assert transitions[4, 6] == 2  # 3 6 0 3 | 6 ends with 3 6
    assert transitions[4, 3] == 1
    assert transitions[1, 3] == 1
    assert transitions[2, 3] == 1
    assert transitions[3, 6] == 0
    assert set(transitions[5]) == {5}


@given(st.text(LETTERS[:7], max_size=10))
def test_states_follow_the_papers_rule(text):
    states = DEFAULT_TASK.states(text)
    for end, state in enumerate(states):
        assert state == (5 if GOAL in text[:end] else longest_match(text[:end]))


def test_prover_token_probs():
    probs = prover_token_probs(10.0)
    assert probs.shape == (6, 15)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    assert probs[2, 0] == pytest.approx(10 / 24)
    assert probs[2, 14] == pytest.approx(1 / 24)
    np.testing.assert_allclose(probs[5], 1 / 15)


def test_values_by_hand():
    values = prover_values(10.0)
    assert values.shape == (6, 11)
    p, q = 10 / 24, 1 / 24
    assert values[4, 0] == 0.0
    assert values[4, 1] == pytest.approx(p)
    assert values[3, 1] == 0.0
    assert values[3, 2] == pytest.approx(p * p)
    assert values[0, 5] == pytest.approx(p**5)
    # Six tokens: the run starts at once, or after one of the tokens that start nothing (neither 3 nor the end), or
    # after a 3 that is followed by a 3.
    assert values[0, 6] == pytest.approx(p**5 + 13 * q * p**5 + p * q * p**4)
    # One miss from state 4 with four tokens left: 6 leads back to state 2, where 0 3 5 remain.
    assert values[4, 4] == pytest.approx(p + q * p**3)
    assert (values[5] == 1.0).all()


def test_values_equal_enumeration_on_a_smaller_task():
    task = PlantedTask(vocab_size=4, length=6, planted=(0, 1, 0), eos=3)
    gamma, success = 3.0, 0.0
    values, probs = prover_values(gamma, task), prover_token_probs(gamma, task)
    for sequence in itertools.product(range(4), repeat=6):
        written = sequence[: sequence.index(3)] if 3 in sequence else sequence
        probability, text = 1.0, ""
        for token in (*written, 3)[:6]:
            found = "aba" in text
            state = 3 if found else max(k for k in range(3) if text.endswith("aba"[:k]))
            probability *= probs[state, token]
            text += "abc"[token] if token < 3 else ""
        # All continuations after the end token are the same sequence: count it once.
        is_first = all(token == 3 for token in sequence[len(written) :])
        success += probability * ("aba" in text) * is_first
    assert values[0, 6] == pytest.approx(success, abs=1e-12)


@pytest.mark.parametrize("gamma", [5.0, 10.0, 30.0])
def test_values_equal_sampling(gamma):
    n = 20_000
    share = np.mean(planted_reward(texts_of(sample_prover(gamma, n, seed=1))))
    exact = prover_values(gamma)[0, 10]
    assert abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / n)


def test_values_grow_with_tokens_left():
    assert (np.diff(prover_values(8.0), axis=1) >= 0).all()


def test_samples_are_reproducible_and_end_once():
    samples = sample_prover(5.0, 500, seed=3)
    np.testing.assert_array_equal(samples, sample_prover(5.0, 500, seed=3))
    ended = (samples == 14).cumsum(axis=1) > 0
    assert (samples[ended] == 14).all()
    assert 0.3 < ended[:, -1].mean() < 0.6


def test_process_reward_by_hand():
    reward = PlantedProcessReward(gamma=10.0)
    assert isinstance(reward, ProcessReward)
    assert reward.returns == "values"
    values = prover_values(10.0)
    prompts = [END_TEXT] * 5
    steps = [list("dgadf"), list("dgac"), ["dg", "ad"], [""], []]
    scores = reward(prompts=prompts, steps=steps, column=list("vwxyz"))
    assert scores[0] == [values[1, 9], values[2, 8], values[3, 7], values[4, 6], 1.0]
    assert scores[1] == [values[1, 9], values[2, 8], values[3, 7], 0.0]  # ended by the end token, which has no text
    assert scores[2] == [values[2, 8], 0.0]
    assert scores[3:] == [[0.0], []]
    assert reward.initial_values(prompts) == [values[0, 10]] * 5


def test_prefixes_keep_their_value():
    values = prover_values(10.0)
    reward = PlantedProcessReward(gamma=10.0)
    assert reward([END_TEXT], [["dg", "ad"]], finished=[False]) == [[values[2, 8], values[4, 6]]]
    assert reward([END_TEXT], [["abcabcabcd"]], finished=[False]) == [[0.0]]


@given(st.text(LETTERS, max_size=10), st.lists(st.integers(0, 10), max_size=10))
def test_scores_do_not_depend_on_the_steps(text, cuts):
    """Any way to cut the text gives, at each cut, the value that letter-by-letter steps have there."""
    reward = PlantedProcessReward(gamma=9.0)
    by_letter = [reward.initial_values([""])[0], *reward([""], [list(text)])[0]]
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    steps = [text[start:end] for start, end in itertools.pairwise([0, *ends])]
    scores = reward([""], [steps])[0]
    assert len(scores) == len(steps)
    assert scores[:-1] == [by_letter[end] for end in ends[:-1]]
    assert scores[-1] == float(GOAL in text)


def test_progress_of_the_prover_is_zero_on_average():
    """A^mu under mu itself has mean 0: the values of the next states average to the value of this one."""
    values, probs = prover_values(7.0), prover_token_probs(7.0)
    for state, remaining in itertools.product(range(5), range(1, 11)):
        following = values[DEFAULT_TASK.transitions[state], remaining - 1].copy()
        following[14] = 0.0
        assert probs[state] @ following == pytest.approx(values[state, remaining], abs=1e-12)


def test_outcome_reward():
    completions = ["aadgadfaaa", "dgad", "", "dgadgadf", "aaaaaaadgadf"]
    assert planted_reward(completions=completions, prompts=[END_TEXT] * 5) == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_text_that_is_no_token_matches_nothing():
    assert not DEFAULT_TASK.solved("dga df")
    assert not DEFAULT_TASK.solved("DGADF")
    assert PlantedProcessReward(10.0)([""], [["dé", "gadf"]])[0][-1] == 0.0


@pytest.mark.parametrize(
    "arguments", [{"eos": 3}, {"vocab_size": 40, "eos": 39}, {"planted": ()}, {"planted": (3, 14)}, {"length": 0}]
)
def test_impossible_tasks_are_refused(arguments):
    with pytest.raises(ValueError, match="Got"):
        PlantedTask(**arguments)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma"):
        PlantedProcessReward(gamma)


@given(st.lists(st.integers(0, 13), max_size=10))
def test_tokenizer_is_one_letter_per_token(ids):
    tokenizer = build_planted_tokenizer()
    text = "".join(LETTERS[token] for token in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer(END_TEXT + text).input_ids == [14, *ids]
    assert tokenizer.decode([*ids, 14], skip_special_tokens=True) == text


def test_tokenizer_has_the_papers_vocabulary():
    tokenizer = build_planted_tokenizer()
    assert len(tokenizer) == 15
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.bos_token_id == 14


def test_dataset():
    dataset = planted_dataset(3)
    assert dataset["prompt"] == [END_TEXT] * 3


@pytest.mark.slow
def test_base_policy_learned_a_little_and_leaves_the_random_state_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    policy = build_base_policy(0, learning_rate=5e-3, hidden_size=32, num_layers=2)
    assert torch.equal(torch.get_rng_state(), state)
    again = build_base_policy(0, learning_rate=5e-3, hidden_size=32, num_layers=2)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    assert not policy.training
    with torch.no_grad():
        probs = policy(torch.tensor([[14]])).logits[0, -1].softmax(-1)
    assert probs.argmax() == 3  # the prover's first choice; 1/15 before training


def test_random_state_of_python_and_numpy_is_left_alone():
    random.seed(0)
    np.random.seed(0)
    first = random.random(), np.random.random()
    random.seed(0)
    np.random.seed(0)
    sample_prover(5.0, 10, seed=0)
    assert (random.random(), np.random.random()) == first
