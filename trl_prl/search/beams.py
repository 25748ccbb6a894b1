"""Beam search over steps by effective reward, and diverse verifier tree search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trl_prl.generation.rollouts import Problem
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Generator, ProcessReward, SamplingParams, StepSplitter

from .results import FINISHED, EndReason, SearchResult
from .scoring import EffectiveReward
from .step_sampler import StepSampler
from .step_search import Node, SearchLimits, StepSearch, as_effective_reward, check_sizes


@dataclass
class _Tree:
    """An independent beam of one problem."""

    problem: int
    label: str
    live: list[Node]
    ended: list[Node] = field(default_factory=list)


def beam_search(
    problems: Sequence[Problem],
    generator: Generator,
    process_reward: ProcessReward | EffectiveReward,
    splitter: StepSplitter,
    token_pieces: TokenPieces,
    sampling: SamplingParams,
    *,
    beam_size: int = 4,
    expansions: int = 3,
    limits: SearchLimits | None = None,
    chunk_tokens: int = 64,
    step_stop: tuple[str, ...] | None = None,
    keep_tree: bool = False,
) -> list[SearchResult]:
    """Beam search over steps by the effective reward `Q + alpha·A`.

    Each round samples `expansions` next steps for every place of the beam and keeps the `beam_size` best by the score
    of their last step. A completion that has come to its end keeps its place, so the search of a problem goes on until
    every place holds one, and a long solution is never cut off by a short one. The answer is the finished completion
    with the highest value Q. One that met a limit is returned with that limit as its `end_reason`, and never chosen.

    Samples with the same text are one node: scored once, shown once and returned once. It holds as many places as it
    has samples, and draws new steps for each of them, so the search is the one that would have kept the duplicates.
    (One place per text would give the same number of new steps to a good prefix that most samples agree on as to a bad
    one. Where steps are short enough for that to happen, it was measured to be worse.)

    Source: [PAV](https://huggingface.co/papers/2410.08146), section 4 (`expansions` 3, answer by Q).

    Args:
        problems (`Sequence[Problem]`):
            Problems, searched together. What is found for one depends on its row number and the seed alone.
        generator ([`Generator`]):
            Policy.
        process_reward ([`ProcessReward`] or [`EffectiveReward`]):
            What ranks. A plain process reward is both Q and, with alpha 0.5, A: `EffectiveReward(process_reward)`.
        splitter (`StepSplitter`), token_pieces ([`TokenPieces`]):
            Where steps end, and bytes of the policy's tokens.
        sampling ([`SamplingParams`]):
            How to sample; `max_tokens` is the limit of a completion. `n` is not read.
        beam_size (`int`, *optional*, defaults to `4`):
            Places of the beam, N.
        expansions (`int`, *optional*, defaults to `3`):
            Next steps sampled per place, C.
        limits ([`SearchLimits`], *optional*):
            Where to end.
        chunk_tokens (`int`, *optional*, defaults to `64`), step_stop (`tuple[str, ...]`, *optional*):
            As for [`StepSampler`].
        keep_tree (`bool`, *optional*, defaults to `False`):
            Whether to return the nodes.

    Returns:
        `list[SearchResult]`: One per problem, in the order given.

    Raises:
        `ValueError`: If a number is below 1, two problems have the same row number, or a process reward cannot rank.
    """
    sampler = StepSampler(generator, splitter, token_pieces, sampling, chunk_tokens, step_stop)
    return _search(problems, sampler, process_reward, limits, 1, beam_size, expansions, keep_tree)


def dvts(
    problems: Sequence[Problem],
    generator: Generator,
    process_reward: ProcessReward | EffectiveReward,
    splitter: StepSplitter,
    token_pieces: TokenPieces,
    sampling: SamplingParams,
    *,
    num_trees: int = 4,
    expansions: int = 3,
    limits: SearchLimits | None = None,
    chunk_tokens: int = 64,
    step_stop: tuple[str, ...] | None = None,
    keep_tree: bool = False,
) -> list[SearchResult]:
    """Diverse verifier tree search: independent beams of one place each.

    No tree sees the others, so they do not all follow the same early favourite. A tree keeps the best of `expansions`
    next steps until its completion ends; the answer is the finished completion of any tree with the highest value.
    At equal arguments it draws as many steps per round as [`beam_search`] with `beam_size=num_trees`.

    Source: Beeching et al., [Scaling test-time compute with open
    models](https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute).

    Args:
        problems (`Sequence[Problem]`):
            As in [`beam_search`], like all that is not listed here.
        num_trees (`int`, *optional*, defaults to `4`):
            Independent trees.
        expansions (`int`, *optional*, defaults to `3`):
            Next steps sampled per tree.

    Returns:
        `list[SearchResult]`: One per problem, in the order given.

    Raises:
        `ValueError`: As [`beam_search`] does.
    """
    sampler = StepSampler(generator, splitter, token_pieces, sampling, chunk_tokens, step_stop)
    return _search(problems, sampler, process_reward, limits, num_trees, 1, expansions, keep_tree)


def _search(
    problems: Sequence[Problem],
    sampler: StepSampler,
    process_reward: ProcessReward | EffectiveReward,
    limits: SearchLimits | None,
    num_trees: int,
    beam_size: int,
    expansions: int,
    keep_tree: bool,
) -> list[SearchResult]:
    check_sizes(num_trees=num_trees, beam_size=beam_size, expansions=expansions)
    search = StepSearch(problems, sampler, as_effective_reward(process_reward), limits or SearchLimits())
    trees = [_Tree(i, f"tree{t}", [search.nodes[i][0]]) for i in range(len(problems)) for t in range(num_trees)]
    for nodes in search.nodes:
        nodes[0].places = beam_size
    while True:
        for tree in trees:
            _end_at_limit(tree, search.limit_reached(tree.problem))
        growing = [tree for tree in trees if tree.live]
        if not growing:
            break
        wanted = [(tree.problem, node, node.places * expansions, tree.label) for tree in growing for node in tree.live]
        groups = iter(search.grow(wanted))
        for tree in growing:
            pool = [node for _ in tree.live for node in next(groups)]
            _keep_best(tree, pool, beam_size)
    ended: list[list[Node]] = [[] for _ in problems]
    for tree in trees:
        ended[tree.problem] += tree.ended
    return [search.result(i, nodes, keep_tree) for i, nodes in enumerate(ended)]


def _keep_best(tree: _Tree, pool: list[Node], beam_size: int) -> None:
    """Keep the best of a round in the places that finished completions have left."""
    places = left = beam_size - sum(node.places for node in tree.ended)
    # Sorting is stable: of equal scores, the one drawn first.
    ranked = sorted(pool, key=lambda node: -node.score)
    tree.live = []
    for rank, node in enumerate(ranked, 1):
        node.places = min(node.count, left)
        left -= node.places
        node.reason = f"rank {rank} of {len(ranked)}, {node.places} of {places} places"
        if not node.places:
            node.status = "pruned"
        elif node.end is None:
            node.status = "kept"
            tree.live.append(node)
        else:
            node.status = "finished" if node.end in FINISHED else "unfinished"
            tree.ended.append(node)


def _end_at_limit(tree: _Tree, limit: EndReason | None) -> None:
    """End what is still growing."""
    if limit is not None:
        for node in tree.live:
            node.end, node.status = limit, "unfinished"
        tree.ended += [node for node in tree.live if node.parent is not None]
        tree.live = []
