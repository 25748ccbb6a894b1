"""Step-level rejection sampling: the cheap search, which draws another step only where one has lost ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trl_prl.generation.rollouts import Problem
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Generator, ProcessReward, SamplingParams, StepSplitter

from .results import FINISHED, SearchResult
from .scoring import EffectiveReward
from .step_sampler import StepSampler
from .step_search import Node, SearchLimits, StepSearch, as_effective_reward, check_sizes


@dataclass
class _Chain:
    """One completion that grows, and the steps tried at its end."""

    problem: int
    label: str
    node: Node
    tries: list[Node] = field(default_factory=list)


def step_rejection(
    problems: Sequence[Problem],
    generator: Generator,
    process_reward: ProcessReward | EffectiveReward,
    splitter: StepSplitter,
    token_pieces: TokenPieces,
    sampling: SamplingParams,
    *,
    num_chains: int = 4,
    max_tries: int = 4,
    min_advantage: float = -0.05,
    limits: SearchLimits | None = None,
    chunk_tokens: int = 64,
    step_stop: tuple[str, ...] | None = None,
    keep_tree: bool = False,
) -> list[SearchResult]:
    """Step-level rejection sampling.

    Each chain samples one step at a time. A step whose progress A is at least `min_advantage` is kept; otherwise
    another one is sampled, and after `max_tries` the best of them by score is kept. Easy stretches so cost no more
    than plain sampling. The answer is the finished completion of any chain with the highest value.

    Args:
        problems (`Sequence[Problem]`):
            As in [`beam_search`], like all that is not listed here.
        process_reward ([`ProcessReward`] or [`EffectiveReward`]):
            A is the progress under its prover; its score ranks steps that were all rejected.
        num_chains (`int`, *optional*, defaults to `4`):
            Independent chains per problem.
        max_tries (`int`, *optional*, defaults to `4`):
            Most samples of one step. 1 is plain sampling in steps.
        min_advantage (`float`, *optional*, defaults to `-0.05`):
            Least progress of a step that is kept at once.

    Returns:
        `list[SearchResult]`: As [`beam_search`] does.

    Raises:
        `ValueError`: As [`beam_search`] does, and if the progress of steps cannot be known.
    """
    check_sizes(num_chains=num_chains, max_tries=max_tries)
    reward = as_effective_reward(process_reward)
    if not reward.needs_progress:
        if reward.advantages is not None:
            raise ValueError(
                f"Got rank_by={reward.rank_by!r} and alpha={reward.alpha}, by which no progress is computed, but "
                "steps are kept or rejected by it. Use rank_by='advantages', or 'effective' with an alpha above 0, or "
                "leave `advantages` out."
            )
        reward.check_progress()
    sampler = StepSampler(generator, splitter, token_pieces, sampling, chunk_tokens, step_stop)
    search = StepSearch(problems, sampler, reward, limits or SearchLimits())
    chains = [_Chain(i, f"chain{c}", search.nodes[i][0]) for i in range(len(problems)) for c in range(num_chains)]
    while growing := _growing(chains, search):
        wanted = [(chain.problem, chain.node, 1, f"{chain.label}/{len(chain.tries)}") for chain in growing]
        for chain, group in zip(growing, search.grow(wanted), strict=True):
            _consider(chain, group[0], max_tries, min_advantage)
    ends = [chains[first : first + num_chains] for first in range(0, len(chains), num_chains)]
    begun = ([chain.node for chain in row if chain.node.parent is not None] for row in ends)
    return [search.result(i, nodes, keep_tree) for i, nodes in enumerate(begun)]


def _growing(chains: Sequence[_Chain], search: StepSearch) -> list[_Chain]:
    """End the chains that met a limit, and return those that go on."""
    for chain in chains:
        limit = search.limit_reached(chain.problem)
        if chain.node.end is None and limit is not None:
            chain.node.end, chain.node.status = limit, "unfinished"
    return [chain for chain in chains if chain.node.end is None]


def _consider(chain: _Chain, node: Node, max_tries: int, min_advantage: float) -> None:
    """Keep a new step, or the best of those that were tried, or go on trying."""
    chain.tries.append(node)
    node.status, node.reason = "pruned", f"try {len(chain.tries)}, progress below {min_advantage:g}"
    advantage = node.scored.advantages[-1] if node.scored.advantages else float("nan")
    if advantage >= min_advantage:
        kept, reason = node, f"try {len(chain.tries)}, progress at least {min_advantage:g}"
    elif len(chain.tries) >= max_tries:
        # Of equal scores, the first.
        kept, reason = max(chain.tries, key=lambda tried: tried.score), f"best of {max_tries} rejected"
    else:
        return
    kept.reason = reason
    kept.status = "kept" if kept.end is None else "finished" if kept.end in FINISHED else "unfinished"
    chain.node, chain.tries = kept, []
