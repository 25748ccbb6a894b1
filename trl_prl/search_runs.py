"""The searches of `trl-prl search`: one unit of problems at every n, checked and written as plain JSON values."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from trl_prl.answers import final_answer
from trl_prl.beams import beam_search, dvts
from trl_prl.process_reward_checks import warn_of_other_splitter
from trl_prl.process_scoring import resolve_process_reward
from trl_prl.rejection import step_rejection
from trl_prl.rollouts import Problem, check_outcomes
from trl_prl.search import best_of_n_search, choose
from trl_prl.search_config import SearchConfig
from trl_prl.search_results import Candidate, SearchCost, SearchResult
from trl_prl.search_scoring import EffectiveReward
from trl_prl.steps import get_splitter
from trl_prl.token_pieces import TokenPieces
from trl_prl.types import Generator, OutcomeReward, ProcessReward


class Searcher:
    """Searches units of problems at every n.

    Args:
        config ([`SearchConfig`]):
            Settings.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        generator ([`Generator`]):
            Policy.
        reward ([`OutcomeReward`]):
            Outcome reward.
    """

    def __init__(
        self,
        config: SearchConfig,
        tokenizer: Any,
        generator: Generator,
        reward: OutcomeReward,
    ) -> None:
        self.config = config
        self.generator = generator
        self.reward = reward
        self.answer_of = load_answer_function(config.answer)
        self.setting: dict[str, Any] = {
            "generator": generator,
            "splitter": get_splitter(config.splitter, step_length=config.step_length),
            "token_pieces": TokenPieces(tokenizer),
            "sampling": config.sampling(),
        }
        self.effective: EffectiveReward | None = None
        if config.process_reward:
            self.effective = EffectiveReward(
                load_process_reward(config.process_reward),
                load_process_reward(config.advantage_reward) if config.advantage_reward else None,
                alpha=config.effective_alpha,
                best_of_k=config.best_of_k,
                rank_by=config.rank_by,
                initial_value=config.initial_value,
            )
            for process_reward in (self.effective.values, self.effective.advantages):
                if process_reward is not None:
                    warn_of_other_splitter(process_reward, self.setting["splitter"])

    def rows(self, problems: list[Problem]) -> list[dict[str, Any]]:
        """Search a unit of problems.

        Args:
            problems (`list[Problem]`):
                The problems.

        Returns:
            `list[dict]`: One row per problem, with a run for every n, as `docs/search.md` describes it.
        """
        sizes = sorted(self.config.n)
        samples: list[SearchResult] = []
        if not self.config.over_steps:
            samples = self._samples(problems, sizes[-1], scored=True)
            results = [[self._first(result, problem, n) for result, problem in zip(samples, problems, strict=True)]
                       for n in sizes]  # fmt: skip
        else:
            results = [self._search(problems, n) for n in sizes]
            if self.config.ceiling:
                samples = self._samples(problems, sizes[-1], scored=False)
        outcomes = self._outcomes(problems, [*results, samples])
        rows = []
        for i, problem in enumerate(problems):
            drawn = [result.candidates for result in samples[i : i + 1]]
            runs = [
                _run(n, found[i], outcomes[i], drawn[0][:n] if drawn else None, problem.row < self.config.save_trees)
                for n, found in zip(sizes, results, strict=True)
            ]
            searched = sum(found[i].cost.num_generated_tokens for found in results) if self.config.over_steps else 0
            rows.append(
                {
                    "row": problem.row,
                    "prompt": problem.prompt,
                    "columns": dict(problem.columns),
                    "num_drawn_tokens": searched + sum(len(c.token_ids) for group in drawn for c in group),
                    "runs": runs,
                }
            )
        return rows

    def _samples(self, problems: list[Problem], n: int, scored: bool) -> list[SearchResult]:
        # Majority votes stand for no choice at all here: it is made for every n from the same samples.
        return best_of_n_search(
            problems,
            process_reward=self.effective if scored else None,
            n=n,
            choice="majority_vote",
            aggregation=self.config.aggregation,
            temperature=self.config.aggregation_temperature,
            answer_of=self.answer_of,
            **self.setting,
        )

    def _first(self, result: SearchResult, problem: Problem, n: int) -> SearchResult:
        """What a search with the first n samples would have found, and its cost."""
        candidates, cost = result.candidates[:n], result.cost
        passes = 0 if self.effective is None else self.effective.num_passes
        scored = {c.steps: len(problem.prompt_ids) + len(c.token_ids) for c in candidates[::-1] if c.finished}
        part = SearchCost(
            num_generated_tokens=sum(len(candidate.token_ids) for candidate in candidates),
            num_prompt_tokens=cost.num_prompt_tokens,
            num_scored_tokens=passes * sum(scored.values()),
            num_samples=len(candidates),
            num_scored=len(scored) if passes else 0,
            num_unscored=sum(c.finished and c.score != c.score for c in candidates) if passes else 0,
            seconds=cost.seconds * len(candidates) / len(result.candidates),
        )
        method: Any = self.config.method
        return SearchResult(result.row, candidates, choose(candidates, method, self.answer_of), part)

    def _search(self, problems: list[Problem], n: int) -> list[SearchResult]:
        config = self.config
        options: dict[str, Any] = {
            **self.setting,
            "process_reward": self.effective,
            "limits": config.limits(),
            "chunk_tokens": config.chunk_tokens,
            "keep_tree": any(problem.row < config.save_trees for problem in problems),
        }
        if config.method == "beam":
            return beam_search(problems, beam_size=n, expansions=config.expansions, **options)
        if config.method == "dvts":
            return dvts(problems, num_trees=n, expansions=config.expansions, **options)
        options |= {"max_tries": config.max_tries, "min_advantage": config.min_advantage}
        return step_rejection(problems, num_chains=n, **options)

    def _outcomes(
        self, problems: list[Problem], results: Sequence[Sequence[SearchResult]]
    ) -> list[dict[str, bool | None]]:
        """For each problem the outcome of every distinct finished text."""
        distinct: dict[tuple[int, str], Candidate] = {}
        for found in results:
            for i, result in enumerate(found):
                for candidate in result.candidates:
                    if candidate.finished:
                        distinct.setdefault((i, candidate.text), candidate)
        checked = check_outcomes(
            [problems[i] for i, _ in distinct],
            [text for _, text in distinct],
            [list(candidate.token_ids) for candidate in distinct.values()],
            self.reward,
            self.config.reward_threshold,
        )
        outcomes: list[dict[str, bool | None]] = [{} for _ in problems]
        for (i, text), outcome in zip(distinct, checked, strict=True):
            outcomes[i][text] = outcome
        return outcomes


def _run(
    n: int,
    result: SearchResult,
    outcomes: dict[str, bool | None],
    samples: Sequence[Candidate] | None,
    with_tree: bool,
) -> dict[str, Any]:
    """What a search found at one n, as plain JSON values."""
    candidates = []
    for candidate in result.candidates:
        data = candidate.as_dict()
        data["num_tokens"] = len(data.pop("token_ids"))
        candidates.append({**data, "correct": outcomes[candidate.text] if candidate.finished else None})
    answer = result.answer
    run: dict[str, Any] = {
        "n": n,
        "chosen": result.chosen,
        "correct": None if answer is None else outcomes[answer.text],
        "any_correct": any(candidate["correct"] for candidate in candidates),
        # Any of n plain samples: pass@n by its definition.
        "pass_at_n": None if samples is None else any(c.finished and outcomes[c.text] for c in samples),
        "pass_at_n_tokens": None if samples is None else sum(len(c.token_ids) for c in samples),
        "cost": result.cost.as_dict(),
        "candidates": candidates,
    }
    return {**run, "tree": result.tree} if with_tree and result.tree is not None else run


def load_process_reward(name: str) -> ProcessReward:
    """Load a process reward.

    Args:
        name (`str`):
            Path or Hub id of a verifier, or `"module:name"` of a process reward; a class is made without arguments.

    Returns:
        [`ProcessReward`]: The process reward; a verifier is on this process's GPU, if there is one.

    Raises:
        `ValueError`: When there is no such object.
    """
    if ":" in name and not Path(name).exists():
        found = _import(name, "process reward")
        return found() if isinstance(found, type) else found
    import torch

    verifier: Any = resolve_process_reward(name)
    return verifier.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}") if torch.cuda.is_available() else verifier


def load_answer_function(name: str) -> Callable[[str], Hashable | None]:
    """The function from a text to its final answer: the package's own, or `"module:function"`."""
    return _import(name, "answer function") if name else final_answer


def _import(name: str, what: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Got the {what} {name!r}, which cannot be imported ({error}). Use 'module:name' with a module that "
            "Python finds (the current folder may have to be in PYTHONPATH)."
        ) from error
