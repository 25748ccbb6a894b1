"""Search over whole completions: best-of-n by a verifier, majority and weighted votes, from the same samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from trl_prl.generation.rollouts import Problem, ids_digest
from trl_prl.generation.sampling import draw
from trl_prl.metrics.aggregation import Aggregation, aggregate_step_values, best_of_n, majority_vote, weighted_vote
from trl_prl.rewards.equality import group_answers
from trl_prl.steps.split import step_ends
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion, Generator, ProcessReward, Prompt, SamplingParams, StepSplitter

from .results import Candidate, EndReason, SearchCost, SearchResult
from .scoring import EffectiveReward, ScoredSteps, score_solutions
from .step_search import as_effective_reward, check_sizes


Choice = Literal["best_of_n", "majority_vote", "weighted_vote"]
AnswerOf = Callable[[str], Hashable | None]


def best_of_n_search(
    problems: Sequence[Problem],
    generator: Generator,
    process_reward: ProcessReward | EffectiveReward | None,
    splitter: StepSplitter,
    token_pieces: TokenPieces,
    sampling: SamplingParams,
    *,
    n: int = 4,
    choice: Choice | None = "best_of_n",
    aggregation: Aggregation = "last",
    temperature: float = 0.1,
    answer_of: AnswerOf | None = None,
) -> list[SearchResult]:
    """Sample whole completions and choose one by its score, by the most frequent answer, or by weighted votes.

    A completion's score aggregates the scores of its steps: their values Q for a plain process reward, whatever an
    [`EffectiveReward`] says otherwise (`Q + alpha·A` with the aggregation `last` is PAV used as an outcome reward
    model). Completions that did not finish are returned, but neither scored nor chosen. Equal texts are scored once.
    The samples of a smaller `n` are the first ones of a larger; [`choose`] takes the answer of any number of them.

    Args:
        problems (`Sequence[Problem]`):
            As in [`beam_search`], like all that is not listed here.
        process_reward ([`ProcessReward`] or [`EffectiveReward`], *optional*):
            What scores. Majority votes, and no choice, need none.
        n (`int`, *optional*, defaults to `4`):
            Completions per problem.
        choice (`str`, *optional*, defaults to `"best_of_n"`):
            `"best_of_n"`, `"majority_vote"`, `"weighted_vote"` (its weights are the scores), or `None` for no choice.
        aggregation (`str`, *optional*, defaults to `"last"`), temperature (`float`, *optional*, defaults to `0.1`):
            As in [`aggregate_step_values`].
        answer_of (`Callable`, *optional*):
            Final answer of a text, hashable, `None` if it has none. Votes need it; they count texts that are
            mathematically equal as one answer.

    Returns:
        `list[SearchResult]`: One per problem; its candidates are the samples in the order drawn.

    Raises:
        `ValueError`: If `n` is below 1, or the choice lacks what it needs.
    """
    check_sizes(n=n)
    _check_choice(choice, process_reward is not None, answer_of)
    reward = None if process_reward is None else as_effective_reward(process_reward, alpha=0.0)
    began = time.monotonic()
    prompts = [Prompt(problem.prompt_ids, key=f"{problem.row}/sample/{ids_digest(())}") for problem in problems]
    drawn = draw(generator, prompts, replace(sampling, n=n))
    groups = _candidates(problems, drawn, reward, splitter, token_pieces, aggregation, temperature)
    seconds = (time.monotonic() - began) / max(len(problems), 1)
    num_passes = 0 if reward is None else reward.num_passes
    return [
        SearchResult(
            problem.row,
            tuple(group),
            choose(group, choice, answer_of),
            cost_of_samples(group, len(problem.prompt_ids), num_passes, seconds),
        )
        for problem, group in zip(problems, groups, strict=True)
    ]


def cost_of_samples(
    candidates: Sequence[Candidate], num_prompt_tokens: int, num_passes: int, seconds: float
) -> SearchCost:
    """What whole completions of one problem cost.

    Args:
        candidates (`Sequence[Candidate]`):
            The samples; equal texts are scored once, and unfinished ones never.
        num_prompt_tokens (`int`):
            Tokens of the prompt.
        num_passes (`int`):
            Process rewards that each text is given to.
        seconds (`float`):
            Their share of the wall time.

    Returns:
        [`SearchCost`]: The cost.
    """
    # Of equal texts, the tokens of the first.
    scored = [*{c.steps: c for c in reversed(candidates) if c.finished}.values()] if num_passes else []
    return SearchCost(
        num_generated_tokens=sum(len(candidate.token_ids) for candidate in candidates),
        num_prompt_tokens=num_prompt_tokens,
        num_scored_tokens=num_passes * sum(num_prompt_tokens + len(candidate.token_ids) for candidate in scored),
        num_samples=len(candidates),
        num_scored=len(scored),
        num_unscored=sum(math.isnan(candidate.score) for candidate in scored),
        seconds=seconds,
    )


def choose(
    candidates: Sequence[Candidate], choice: Choice | None = "best_of_n", answer_of: AnswerOf | None = None
) -> int | None:
    """Choose one of the candidates that finished.

    Args:
        candidates (`Sequence[Candidate]`):
            Candidates with their scores.
        choice (`str`, *optional*, defaults to `"best_of_n"`):
            As in [`best_of_n_search`].
        answer_of (`Callable`, *optional*):
            As in [`best_of_n_search`].

    Returns:
        `int`, *optional*: Index; `None` if none of them finished, or there is no choice.

    Raises:
        `ValueError`: If a vote has no `answer_of`.
    """
    _check_choice(choice, True, answer_of)
    finished = [k for k, candidate in enumerate(candidates) if candidate.finished]
    if not finished or choice is None:
        return None
    scores = [candidates[k].score for k in finished]
    if answer_of is None or choice == "best_of_n":
        return finished[best_of_n(scores)]
    answers = group_answers([answer_of(candidates[k].text) for k in finished])
    return finished[majority_vote(answers) if choice == "majority_vote" else weighted_vote(answers, scores)]


def _check_choice(choice: str | None, has_reward: bool, answer_of: AnswerOf | None) -> None:
    if choice is None:
        return
    if choice not in get_args(Choice):
        raise ValueError(f"Got choice={choice!r}. There is no such rule. Use one of {', '.join(get_args(Choice))}.")
    if choice != "majority_vote" and not has_reward:
        raise ValueError(f"Got choice={choice!r} without a process reward, so there are no scores. Pass one.")
    if choice != "best_of_n" and answer_of is None:
        raise ValueError(
            f"Got choice={choice!r} without `answer_of`, so it is not known which completions agree. Pass a function "
            "from a text to its final answer."
        )


def _candidates(
    problems: Sequence[Problem],
    drawn: Sequence[Sequence[Completion]],
    reward: EffectiveReward | None,
    splitter: StepSplitter,
    token_pieces: TokenPieces,
    aggregation: Aggregation,
    temperature: float,
) -> list[list[Candidate]]:
    """The samples with their steps and scores."""
    flat = [(i, completion) for i, row in enumerate(drawn) for completion in row]
    ends = step_ends(splitter, token_pieces, [completion.token_ids for _, completion in flat])
    steps = [
        tuple(
            token_pieces.join(completion.token_ids[a:b])[0].decode("utf-8", "replace")
            for a, b in zip([0, *row_ends[:-1]], row_ends, strict=True)
        )
        for (_, completion), row_ends in zip(flat, ends, strict=True)
    ]
    found: dict[tuple[int, tuple[str, ...]], ScoredSteps] = {}
    if reward is not None:
        distinct = dict.fromkeys((i, texts) for (i, c), texts in zip(flat, steps, strict=True) if c.finished)
        owners = [problems[i] for i, _ in distinct]
        scored = score_solutions(reward, owners, [texts for _, texts in distinct], [True] * len(distinct))
        found = dict(zip(distinct, scored, strict=True))
    groups: list[list[Candidate]] = [[] for _ in problems]
    for (i, completion), texts in zip(flat, steps, strict=True):
        end: EndReason = completion.finish_reason
        scores = found.get((i, texts)) if completion.finished else None
        if scores is None:
            unknown = (math.nan,) * len(texts)
            scores = ScoredSteps(unknown, unknown, unknown)
        score = aggregate_step_values(scores.scores, aggregation, temperature)
        groups[i].append(Candidate(completion.token_ids, texts, end, scores.values, scores.advantages, score))
    return groups
