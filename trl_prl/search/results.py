"""What a search at test time returns: candidates, the one chosen, what it cost, and the tree it grew."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trl_prl.storage.row_values import json_value


EndReason = Literal["eos", "stop", "length", "steps", "budget", "time"]
"""Why a candidate ended: by itself (`"eos"`, `"stop"`), or at a limit of tokens, steps, tokens in all, or time."""

FINISHED: tuple[EndReason, ...] = ("eos", "stop")


@dataclass(frozen=True)
class Candidate:
    """A completion that a search ended with.

    Args:
        token_ids (`tuple[int, ...]`):
            Sampled ids of the completion, without the prompt.
        steps (`tuple[str, ...]`):
            Texts of its steps as the splitter cuts the whole completion; joined, they are its text.
        end_reason (`str`):
            `"eos"` or `"stop"` where it came to its end; otherwise the limit that it met.
        values (`tuple[float, ...]`):
            Value Q after each step; NaN where there is none.
        advantages (`tuple[float, ...]`):
            Progress A of each step; NaN where there is none.
        score (`float`):
            What it was ranked by; NaN where it could not be scored.
        count (`int`, *optional*, defaults to `1`):
            Samples with this very text that are this one candidate.
    """

    token_ids: tuple[int, ...]
    steps: tuple[str, ...]
    end_reason: EndReason
    values: tuple[float, ...]
    advantages: tuple[float, ...]
    score: float
    count: int = 1

    @property
    def text(self) -> str:
        """Text of the completion."""
        return "".join(self.steps)

    @property
    def finished(self) -> bool:
        """Whether it came to an end by itself. Only such a candidate can be chosen."""
        return self.end_reason in FINISHED

    @property
    def value(self) -> float:
        """Value after the last step; NaN where there is none."""
        return self.values[-1] if self.values else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; NaN is `None`."""
        data = {"text": self.text, "finished": self.finished, "value": self.value, **asdict(self)}
        return json_value(data)


@dataclass
class SearchCost:
    """What the search of one problem cost.

    Args:
        num_generated_tokens (`int`):
            Sampled tokens, those that were cut off behind a step's end included.
        num_prompt_tokens (`int`):
            Tokens that samples were continued from, once for all samples of one prefix. An engine with a prefix cache
            computes fewer.
        num_scored_tokens (`int`):
            Tokens of prompts and completions given to process rewards, counted with the policy's tokenizer. Every
            prefix is scored from its start, and by each process reward on its own.
        num_samples (`int`):
            Completions or steps that were sampled.
        num_scored (`int`):
            Texts that were scored; equal ones once.
        num_unscored (`int`):
            Texts among them without a usable score. They rank last.
        seconds (`float`):
            Share of the wall time: of each round in proportion to the problem's samples.
    """

    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    num_scored_tokens: int = 0
    num_samples: int = 0
    num_scored: int = 0
    num_unscored: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """Result of the search of one problem.

    Args:
        row (`int`):
            Number of the problem in its data set.
        candidates (`tuple[Candidate, ...]`):
            What the search ended with, unfinished ones among them, no text twice (in [`best_of_n_search`] one per
            sample, in the order drawn).
        chosen (`int`, *optional*):
            Index of the answer among the candidates; `None` if none of them finished.
        cost ([`SearchCost`]):
            What it cost.
        tree (`list[dict]`, *optional*):
            Every node that was grown, as plain JSON values, if that was asked for; `docs/search.md` has the fields.
    """

    row: int
    candidates: tuple[Candidate, ...]
    chosen: int | None
    cost: SearchCost = field(default_factory=SearchCost)
    tree: list[dict[str, Any]] | None = None

    @property
    def answer(self) -> Candidate | None:
        """The chosen candidate."""
        return None if self.chosen is None else self.candidates[self.chosen]
