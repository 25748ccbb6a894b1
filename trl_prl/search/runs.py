"""The searches of `trl-prl search`: one unit of problems at every n, checked and written as plain JSON values."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trl_prl.generation.rollouts import Problem, check_outcomes
from trl_prl.jobs.options import process_device
from trl_prl.prms.load import load_process_reward
from trl_prl.rewards.checks import warn_of_other_prompts, warn_of_other_splitter, warn_of_second_best_of_k
from trl_prl.rewards.extraction import final_answer
from trl_prl.rewards.outcomes import import_object
from trl_prl.steps.split import get_splitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Generator, OutcomeReward, ProcessReward

from .beams import beam_search, dvts
from .best_of_n import best_of_n_search, choose, cost_of_samples
from .config import SearchConfig
from .rejection import step_rejection
from .results import Candidate, SearchResult
from .scoring import EffectiveReward


@dataclass
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

    config: SearchConfig
    tokenizer: Any
    generator: Generator
    reward: OutcomeReward

    def __post_init__(self) -> None:
        config = self.config
        self.answer_of = load_answer_function(config.answer)
        self.setting: dict[str, Any] = {
            "generator": self.generator,
            "splitter": get_splitter(config.splitter, step_length=config.step_length),
            "token_pieces": TokenPieces(self.tokenizer),
            "sampling": config.sampling(),
        }
        self.effective: EffectiveReward | None = None
        self._prompts_compared = False
        if config.process_reward:
            self.effective = EffectiveReward(
                _load(config.process_reward),
                _load(config.advantage_reward) if config.advantage_reward else None,
                alpha=config.effective_alpha,
                best_of_k=config.best_of_k,
                rank_by=config.rank_by,
                initial_value=config.initial_value,
            )
            for process_reward in self.process_rewards():
                warn_of_other_splitter(process_reward, self.setting["splitter"])
            warn_of_second_best_of_k(self.effective.prover, config.best_of_k)

    def process_rewards(self) -> list[ProcessReward]:
        """What scores the steps, in this process."""
        found = (self.effective.values, self.effective.advantages) if self.effective else ()
        return [process_reward for process_reward in found if process_reward is not None]

    def rows(self, problems: list[Problem]) -> list[dict[str, Any]]:
        """Search a unit of problems.

        Args:
            problems (`list[Problem]`):
                The problems.

        Returns:
            `list[dict]`: One row per problem, with a run for every n, as `docs/search.md` describes it.
        """
        if not self._prompts_compared:
            for process_reward in self.process_rewards():
                warn_of_other_prompts(process_reward, problems[0].prompt, self.config.prompts())
            self._prompts_compared = True
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
            columns = dict(problem.columns)
            rows.append({"row": problem.row, "prompt": problem.prompt, "columns": columns, "runs": runs})
        return rows

    def _samples(self, problems: list[Problem], n: int, scored: bool) -> list[SearchResult]:
        # The choice is made for every n from the same samples.
        return best_of_n_search(
            problems,
            process_reward=self.effective if scored else None,
            n=n,
            choice=None,
            aggregation=self.config.aggregation,
            temperature=self.config.aggregation_temperature,
            **self.setting,
        )

    def _first(self, result: SearchResult, problem: Problem, n: int) -> SearchResult:
        """What a search with the first n samples would have found, and its cost."""
        candidates = result.candidates[:n]
        passes = 0 if self.effective is None else self.effective.num_passes
        seconds = result.cost.seconds * len(candidates) / len(result.candidates)
        part = cost_of_samples(candidates, len(problem.prompt_ids), passes, seconds)
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
        "cost": asdict(result.cost),
        "candidates": candidates,
    }
    return {**run, "tree": result.tree} if with_tree and result.tree is not None else run


def _load(name: str) -> ProcessReward:
    """A process reward by its name; a model is on this process's GPU, if there is one."""
    return load_process_reward(name, device=process_device())


def load_answer_function(name: str) -> Callable[[str], Hashable | None]:
    """The function from a text to its final answer: the package's own, or `"module:function"`."""
    return import_object(name, "answer function") if name else final_answer
