"""What the searches over steps share: limits, nodes, and how nodes are grown, merged and scored."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trl_prl.generation.rollouts import Problem
from trl_prl.metrics.aggregation import best_of_n
from trl_prl.steps.split import step_ends
from trl_prl.storage.row_values import json_value
from trl_prl.types import ProcessReward

from .results import FINISHED, Candidate, EndReason, SearchCost, SearchResult
from .scoring import EffectiveReward, ScoredSteps, score_solutions
from .step_sampler import StepRequest, StepSample, StepSampler


@dataclass(frozen=True)
class SearchLimits:
    """Where a search over steps ends, whatever it has found. `SamplingParams.max_tokens` limits a completion.

    Args:
        max_steps (`int`, *optional*, defaults to `64`):
            Most steps of a completion.
        max_generated_tokens (`int`, *optional*):
            Tokens sampled for one problem from which on no further step is begun.
        max_seconds (`float`, *optional*):
            Wall time of a call from which on no further step is begun. The only limit that makes results depend on the
            machine.

    Raises:
        `ValueError`: When a limit leaves no room for a step.
    """

    max_steps: int = 64
    max_generated_tokens: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        limits = [self.max_steps, self.max_generated_tokens, self.max_seconds]
        if any(limit is not None and limit <= 0 for limit in limits):
            raise ValueError(
                f"Got the limits {limits}, and one of them leaves no room for a single step. Use positive numbers, or "
                "None for no limit of tokens in all or of time."
            )


@dataclass(eq=False)
class Node:
    """A prefix in a search: internal to the searches over steps."""

    number: int
    parent: int | None
    ids: tuple[int, ...]
    steps: tuple[str, ...] = ()
    end: EndReason | None = None
    scored: ScoredSteps = field(default_factory=lambda: ScoredSteps((), (), ()))
    count: int = 1
    places: int = 1
    status: str = "open"
    reason: str = ""

    @property
    def score(self) -> float:
        """Score of its last step, and minus infinity where it has none."""
        return -math.inf if math.isnan(self.scored.score) else self.scored.score

    def candidate(self) -> Candidate:
        """The node as a result."""
        end = self.end or "steps"
        return Candidate(
            self.ids, self.steps, end, self.scored.values, self.scored.advantages, self.scored.score, self.count
        )

    def as_dict(self, parent_text: str) -> dict[str, Any]:
        """The node as plain JSON values."""
        text = "".join(self.steps)
        data = {
            "id": self.number,
            "parent": self.parent,
            "depth": len(self.steps),
            "text": text[len(parent_text) :] if text.startswith(parent_text) else text,
            "value": self.scored.values[-1] if self.scored.values else None,
            "advantage": self.scored.advantages[-1] if self.scored.advantages else None,
            "score": self.scored.score,
            "count": self.count,
            "places": self.places,
            "end": self.end,
            "status": self.status,
            "reason": self.reason,
        }
        return {name: json_value(value) for name, value in data.items()}


class StepSearch:
    """What the searches over steps share: nodes of many problems, grown, merged and scored together.

    Args:
        problems (`Sequence[Problem]`):
            The problems, each with a row number of its own.
        sampler ([`StepSampler`]):
            Samples steps.
        reward ([`EffectiveReward`]):
            Scores them.
        limits ([`SearchLimits`]):
            Where to end.

    Raises:
        `ValueError`: If two problems have the same row number.
    """

    def __init__(
        self, problems: Sequence[Problem], sampler: StepSampler, reward: EffectiveReward, limits: SearchLimits
    ) -> None:
        if len({problem.row for problem in problems}) < len(problems):
            raise ValueError(
                "Two of the problems have the same row number, which is what their samples are drawn by, so both "
                "would get the same ones. Number the problems, equal prompts too."
            )
        self.problems = problems
        self.sampler = sampler
        self.reward = reward
        self.limits = limits
        self.costs = [SearchCost() for _ in problems]
        self.nodes: list[list[Node]] = [[Node(0, None, ())] for _ in problems]
        self._scored: dict[tuple[int, tuple[str, ...], bool], ScoredSteps] = {}
        self._began = time.monotonic()

    def limit_reached(self, i: int) -> EndReason | None:
        """The limit that keeps a problem from another round, if any."""
        seconds, tokens = self.limits.max_seconds, self.limits.max_generated_tokens
        if seconds is not None and time.monotonic() - self._began >= seconds:
            return "time"
        return "budget" if tokens is not None and self.costs[i].num_generated_tokens >= tokens else None

    def grow(self, wanted: Sequence[tuple[int, Node, int, str]]) -> list[list[Node]]:
        """Sample steps after nodes, merge equal ones, and score them.

        Args:
            wanted (`Sequence[tuple[int, Node, int, str]]`):
                Problem, node, number of samples and label of each group.

        Returns:
            `list[list[Node]]`: The distinct new nodes of each group, in the order they were drawn.
        """
        began = time.monotonic()
        drawn = self.sampler.draw([StepRequest(self.problems[i], node.ids, n, label) for i, node, n, label in wanted])
        groups = [self._merge(i, node, row) for (i, node, _, _), row in zip(wanted, drawn, strict=True)]
        self._score([(i, node) for (i, _, _, _), group in zip(wanted, groups, strict=True) for node in group])
        seconds = time.monotonic() - began
        num_samples = sum(map(len, drawn))
        for (i, _, _, _), row in zip(wanted, drawn, strict=True):
            cost = self.costs[i]
            cost.num_samples += len(row)
            cost.num_generated_tokens += sum(sample.num_generated_tokens for sample in row)
            cost.num_prompt_tokens += sum(sample.num_prompt_tokens for sample in row)
            cost.seconds += seconds * len(row) / num_samples
        return groups

    def _merge(self, i: int, parent: Node, samples: Sequence[StepSample]) -> list[Node]:
        """One node for samples with the same text, those that ended apart from those that go on."""
        merged: dict[tuple[bytes, bool], Node] = {}
        for sample in samples:
            text, _ = self.sampler.token_pieces.join(sample.ids)
            end: EndReason | None = None if sample.end == "step" else sample.end
            key = text, end in FINISHED
            if key in merged:
                merged[key].count += 1
                if end is None and merged[key].end is not None:
                    # A sample that was cut at the length limit says nothing about an equal one that was not, whose
                    # tokens are fewer: the node goes on from these.
                    merged[key].ids, merged[key].end = sample.ids, None
            else:
                merged[key] = Node(len(self.nodes[i]), parent.number, sample.ids, end=end)
                self.nodes[i].append(merged[key])
        return list(merged.values())

    def _score(self, nodes: Sequence[tuple[int, Node]]) -> None:
        """Cut the new nodes into steps and score them; a text that has been scored is not scored again."""
        splitter, pieces = self.sampler.splitter, self.sampler.token_pieces
        for (_, node), ends in zip(nodes, step_ends(splitter, pieces, [node.ids for _, node in nodes]), strict=True):
            starts = [0, *ends[:-1]]
            node.steps = tuple(
                pieces.join(node.ids[a:b])[0].decode("utf-8", "replace") for a, b in zip(starts, ends, strict=True)
            )
            if node.end is None and len(node.steps) >= self.limits.max_steps:
                node.end = "steps"
        keys = [(i, node.steps, node.end in FINISHED) for i, node in nodes]
        new = {key: node for key, (_, node) in zip(keys, nodes, strict=True) if key not in self._scored}
        found = score_solutions(
            self.reward,
            [self.problems[i] for i, _, _ in new],
            [steps for _, steps, _ in new],
            [finished for _, _, finished in new],
        )
        for (key, node), scored in zip(new.items(), found, strict=True):
            self._scored[key] = scored
            cost, num_tokens = self.costs[key[0]], len(self.problems[key[0]].prompt_ids) + len(node.ids)
            cost.num_scored += 1
            cost.num_scored_tokens += num_tokens * self.reward.num_passes
            cost.num_unscored += math.isnan(scored.score)
        for key, (_, node) in zip(keys, nodes, strict=True):
            node.scored = self._scored[key]

    def result(self, i: int, ended: Sequence[Node], keep_tree: bool) -> SearchResult:
        """What a problem's search ended with: its answer is the finished node with the highest value."""
        distinct: dict[tuple[str, bool], Candidate] = {}
        owners: dict[tuple[str, bool], Node] = {}
        for node in ended:
            candidate = node.candidate()
            key = candidate.text, candidate.finished
            if key in distinct:
                distinct[key] = replace(distinct[key], count=distinct[key].count + candidate.count)
            else:
                distinct[key], owners[key] = candidate, node
        candidates = list(distinct.values())
        finished = [k for k, candidate in enumerate(candidates) if candidate.finished]
        chosen = finished[best_of_n([candidates[k].value for k in finished])] if finished else None
        if chosen is not None:
            owners[candidates[chosen].text, True].status = "chosen"
        tree = None
        if keep_tree:
            nodes = self.nodes[i]
            texts = ["".join(node.steps) for node in nodes]
            tree = [node.as_dict("" if node.parent is None else texts[node.parent]) for node in nodes]
        return SearchResult(self.problems[i].row, tuple(candidates), chosen, self.costs[i], tree)


def as_effective_reward(process_reward: ProcessReward | EffectiveReward, alpha: float = 0.5) -> EffectiveReward:
    """A process reward as value and prover both, with this weight; what is an effective reward already stays it."""
    if isinstance(process_reward, EffectiveReward):
        return process_reward
    return EffectiveReward(process_reward, alpha=alpha)


def check_sizes(**sizes: int) -> None:
    """Refuse sizes with which nothing is sampled."""
    wrong = {name: size for name, size in sizes.items() if size < 1}
    if wrong:
        raise ValueError(f"Got {wrong}, with which no step is sampled. Use at least 1.")
