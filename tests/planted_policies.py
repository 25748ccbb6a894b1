"""Exact terms of provers on the planted task, for policies that look at the matched length and the time left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from trl_prl.demo.planted import DEFAULT_TASK, prover_token_probs, prover_values
from trl_prl.diagnosis.moments import SampledState, depth_strata
from trl_prl.diagnosis.terms import Array, Terms, terms_from_sums


TASK = DEFAULT_TASK
GOAL = len(TASK.planted)


def constant_policy(gamma: float) -> np.ndarray:
    """The prover of strength `gamma` as a policy, of shape (states, length + 1, vocab_size)."""
    return np.repeat(prover_token_probs(gamma)[:, None, :], TASK.length + 1, axis=1)


@torch.no_grad()
def fitted_policy(model: Any, num_samples: int = 4096, seed: int = 0) -> np.ndarray:
    """Mean next-token probabilities of a model over sampled prefixes with the same match and time left.

    The model sees more than the match, so this is an approximation; between such prefixes its probabilities differ
    little.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((num_samples, 1), TASK.eos)
    state, alive = np.zeros(num_samples, dtype=np.int64), np.ones(num_samples, dtype=bool)
    sums = np.zeros((GOAL + 1, TASK.length + 1, TASK.vocab_size))
    for left in range(TASK.length, 0, -1):
        probs = torch.softmax(model(ids).logits[:, -1].float(), -1)
        np.add.at(sums, (state[alive], left), probs.numpy()[alive])
        drawn = torch.multinomial(probs, 1, generator=generator)
        ids = torch.cat([ids, drawn], 1)
        tokens = drawn[:, 0].numpy()
        alive &= tokens != TASK.eos
        state = np.where(alive, TASK.transitions[state, tokens], state)
    # Where no sample came, what the model does at the same match at other times.
    sums += 1e-3 * (sums.sum(1, keepdims=True) + 1e-3) / (sums.sum((1, 2), keepdims=True) + 1e-3 * TASK.vocab_size)
    return sums / sums.sum(-1, keepdims=True)


def visits(policy: np.ndarray) -> np.ndarray:
    """How often the policy is in each state, of shape (states, length + 1); after success nothing is to decide."""
    found = np.zeros((GOAL + 1, TASK.length + 1))
    found[0, TASK.length] = 1.0
    for left in range(TASK.length, 0, -1):
        for state in range(GOAL):
            moved = found[state, left] * policy[state, left, : TASK.eos]
            np.add.at(found[:, left - 1], TASK.transitions[state, : TASK.eos], moved)
    found[GOAL], found[:, 0] = 0.0, 0.0
    return found


def step_values(values: np.ndarray) -> np.ndarray:
    """`Q` of every next token, from values of states, of shape (states, length + 1, vocab_size)."""
    after = np.zeros((*values.shape, TASK.vocab_size))
    after[:, 1:] = values[TASK.transitions][:, :, :-1].swapaxes(1, 2)
    after[:GOAL, :, TASK.eos] = 0.0
    return after


def policy_values(policy: np.ndarray) -> np.ndarray:
    """Success of a policy from every state, of shape (states, length + 1)."""
    values = np.zeros((GOAL + 1, TASK.length + 1))
    values[GOAL] = 1.0
    for left in range(1, TASK.length + 1):
        values[:GOAL, left] = (policy[:GOAL, left] * step_values(values)[:GOAL, left]).sum(-1)
    return values


def planted_terms(policy: np.ndarray, gammas: Sequence[float], num_strata: int = 4) -> Terms:
    """Exact terms of provers at the states that a policy visits, in strata of depth."""
    own = step_values(policy_values(policy))
    provers = [step_values(prover_values(gamma)) for gamma in gammas]
    depths = np.broadcast_to(TASK.length - np.arange(TASK.length + 1), own.shape[:2]).ravel()
    weights = visits(policy).ravel()
    used = weights > 0

    def flat(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, TASK.vocab_size)[used]

    strata = depth_strata(depths[used], weights[used], num_strata)
    return exact_terms(weights[used], flat(policy), flat(own), [flat(values) for values in provers], strata)


def sampled_planted_states(
    policy: np.ndarray, gammas: Sequence[float], num_problems: int, num_rollouts: int, seed: int, num_branches: int = 1
) -> list[SampledState]:
    """What a collection would hold: seeds of the policy, branches from their prefixes, and counted rollouts.

    Each problem has one seed, and every prefix of it `num_branches` further next tokens. Row 0 of the counts is the
    policy itself, then come the provers.
    """
    rng = np.random.default_rng(seed)
    values = [policy_values(policy), *(prover_values(gamma) for gamma in gammas)]
    after = np.stack([step_values(v) for v in values])
    own = values[0]
    states = []
    for problem in range(num_problems):
        match = 0
        for left in range(TASK.length, 0, -1):
            tokens = rng.choice(TASK.vocab_size, size=1 + num_branches, p=policy[match, left])
            distinct, draws = np.unique(tokens, return_counts=True)
            chances = after[:, match, left, distinct]
            # The end token, the last token and a found run end the solution: their outcome needs no rollouts.
            ended = (distinct == TASK.eos) | (left == 1) | (TASK.transitions[match, distinct] == GOAL)
            rollouts = np.where(ended, 0, num_rollouts) * np.ones_like(chances, dtype=np.int64)
            correct = np.where(ended, chances.astype(np.int64), rng.binomial(num_rollouts, chances))
            count = rng.binomial(num_rollouts, own[match, left])
            outcome_variance = count * (num_rollouts - count) / (num_rollouts * (num_rollouts - 1))
            states.append(
                SampledState(problem, TASK.length - left, 1, draws, rollouts, correct, float(outcome_variance))
            )
            match = int(TASK.transitions[match, tokens[0]])
            if tokens[0] == TASK.eos or match == GOAL:
                break
    return states


def exact_terms(
    weights: ArrayLike,
    policy: Array,
    own_values: Array,
    prover_values: Sequence[Array],
    strata: ArrayLike | None = None,
) -> Terms:
    """The same moments where everything is known.

    Args:
        weights (`array` of shape (S,)):
            How often the base policy is in each state, up to a factor.
        policy (`np.ndarray` of shape (S, A)):
            Its probabilities of the actions.
        own_values (`np.ndarray` of shape (S, A)):
            `Q^pi`.
        prover_values (`Sequence[np.ndarray]`):
            `Q^mu` of each candidate, of shape (S, A).
        strata (`array` of int, of shape (S,), *optional*):
            Stratum of each state; one for all by default.

    Returns:
        [`Terms`]: Without leading axes.
    """

    def covariance(x: Array, y: Array) -> Array:
        return (policy * x * y).sum(1) - (policy * x).sum(1) * (policy * y).sum(1)

    value = (policy * own_values).sum(1)
    columns = [covariance(values, values) for values in prover_values]
    columns += [covariance(values, own_values) for values in prover_values]
    columns += [covariance(own_values, own_values), value * (1 - value)]
    visits = np.asarray(weights, dtype=float)
    moments = visits[:, None] * np.stack([np.ones_like(visits), *columns], 1)
    groups = np.zeros(len(visits), dtype=np.int64) if strata is None else np.asarray(strata)
    sums = np.zeros((groups.max() + 1, moments.shape[1]))
    np.add.at(sums, groups, moments)
    return terms_from_sums(sums)
