"""Samples one step at a time: continuations of token ids, cut where the package's splitter ends the next step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from trl_prl.generation.rollouts import Problem, ids_digest
from trl_prl.generation.sampling import completion_limit, draw
from trl_prl.steps.split import MarkdownSplitter, SentenceSplitter, step_ends
from trl_prl.steps.splitters import DelimiterSplitter, FixedLengthSplitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion, Generator, Prompt, SamplingParams, StepSplitter


StepEnd = Literal["step", "eos", "stop", "length"]
"""How a sampled step ended: where the next step begins, with the completion, or at the limit of its length."""


@dataclass(frozen=True)
class StepRequest:
    """Steps to sample after one prefix.

    Args:
        problem ([`Problem`]):
            The problem.
        ids (`tuple[int, ...]`):
            Ids of the completion so far; `()` is the prompt itself.
        n (`int`):
            How many samples.
        label (`str`, *optional*, defaults to `""`):
            Different labels give independent samples of one prefix.
    """

    problem: Problem
    ids: tuple[int, ...]
    n: int
    label: str = ""


@dataclass
class StepSample:
    """A prefix with one step more.

    Args:
        ids (`tuple[int, ...]`):
            Ids of the completion up to the end of the step.
        end (`str`):
            How it ended.
        num_generated_tokens (`int`):
            Tokens sampled for it, those behind the end of the step included.
        num_prompt_tokens (`int`):
            Tokens it was continued from; 0 for all but the first sample of a prefix, which share it.
    """

    ids: tuple[int, ...]
    end: StepEnd | None = None
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0


def step_stop_texts(splitter: StepSplitter) -> tuple[str, ...]:
    """Texts after which a step may have ended: there it pays to stop sampling and look.

    Args:
        splitter (`StepSplitter`):
            The splitter.

    Returns:
        `tuple[str, ...]`: Texts; empty for a splitter that nothing is known of, which is looked at every few tokens.
    """
    if isinstance(splitter, DelimiterSplitter):
        return (splitter.delimiter,)
    if isinstance(splitter, MarkdownSplitter):
        return ("\n" if splitter.newline else "\n\n",)
    if isinstance(splitter, SentenceSplitter):
        # With the space that follows, as an end is only known by what comes after it.
        return ("\n", *(mark + after for mark in ".!?" for after in (" ", '" ', "' ", ") ")))
    return ()


@dataclass
class StepSampler:
    """Samples steps over any [`Generator`].

    Sampling pauses where a step may have ended, at a stop text or after some tokens, and the splitter looks at the
    *whole* completion's sampled ids. A sample ends where the first step ends that begins behind its prefix; what was
    sampled beyond is cut off. Where there is no such end yet (a blank line inside a formula), the sample goes on from
    where it is. A delimiter may grow with what is sampled next (a third line break, an end-of-sequence token alone):
    that joins the step before it, as everywhere in the package. Nothing is re-tokenised.

    Args:
        generator ([`Generator`]):
            What samples.
        splitter (`StepSplitter`):
            Where steps end.
        token_pieces ([`TokenPieces`]):
            Bytes of the generator's tokens.
        sampling ([`SamplingParams`]):
            How to sample; `max_tokens` is the limit of a whole completion, `stop` ends it. `n` is not read.
        chunk_tokens (`int`, *optional*, defaults to `64`):
            Tokens after which to look, where no stop texts are known.
        step_stop (`tuple[str, ...]`, *optional*):
            Texts to pause at, [`step_stop_texts`] by default. An engine that leaves stop texts out of samples needs
            `()`, which is the default for an [`OpenAIGenerator`] with `send_text`.

    Raises:
        `ValueError`: If `chunk_tokens` is below 1.
    """

    generator: Generator
    splitter: StepSplitter
    token_pieces: TokenPieces
    sampling: SamplingParams
    chunk_tokens: int = 64
    step_stop: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(
                f"Got chunk_tokens={self.chunk_tokens}, and without a token no step ever ends. Use a positive number, "
                "about the length of a step."
            )
        # A server that takes text leaves stop texts out, and its samples are tokenised again, to any number of tokens.
        self._sends_text = bool(getattr(self.generator, "send_text", False))
        own = () if self._sends_text else step_stop_texts(self.splitter)
        self._stop = own if self.step_stop is None else self.step_stop

    def draw(self, requests: Sequence[StepRequest]) -> list[list[StepSample]]:
        """Sample steps.

        Args:
            requests (`Sequence[StepRequest]`):
                Prefixes, each with room for a token.

        Returns:
            `list[list[StepSample]]`: For each request its samples, in order. They depend on the problem's row, the
            ids, the label and the seed alone.

        Raises:
            `ValueError`: When the generator returns another number of samples than asked.
        """
        samples = [[StepSample(request.ids) for _ in range(request.n)] for request in requests]
        by_number: dict[int, list[int]] = defaultdict(list)
        for k, request in enumerate(requests):
            by_number[request.n].append(k)
        open_samples: list[tuple[StepRequest, int, StepSample]] = []
        for n, positions in by_number.items():
            prompts = [self._prompt(requests[k], requests[k].ids, "") for k in positions]
            for k, prompt, row in zip(positions, prompts, self._generate(prompts, n), strict=True):
                samples[k][0].num_prompt_tokens += len(prompt.token_ids)
                for i, (sample, completion) in enumerate(zip(samples[k], row, strict=True)):
                    self._append(requests[k], sample, completion)
                    open_samples.append((requests[k], i, sample))
        number = 0
        while open_samples := self._cut(open_samples):
            number += 1
            # Samples with equal ids are still independent: each goes on under a key of its own.
            prompts = [
                self._prompt(request, sample.ids, f"/{i}+{number}", ids_digest(request.ids))
                for request, i, sample in open_samples
            ]
            drawn = self._generate(prompts, 1)
            for (request, _, sample), prompt, row in zip(open_samples, prompts, drawn, strict=True):
                sample.num_prompt_tokens += len(prompt.token_ids)
                self._append(request, sample, row[0])
        return samples

    def _prompt(self, request: StepRequest, ids: tuple[int, ...], suffix: str, digest: str | None = None) -> Prompt:
        problem = request.problem
        room = self.sampling.max_tokens - len(ids)
        return Prompt(
            (*problem.prompt_ids, *ids),
            key=f"{problem.row}/{request.label}/{digest or ids_digest(ids)}{suffix}",
            max_tokens=min(room, self._chunk(len(ids))),
        )

    def _limit(self, request: StepRequest) -> int:
        """Most tokens of a completion."""
        return completion_limit(self.generator, len(request.problem.prompt_ids), self.sampling.max_tokens)

    def _chunk(self, num_tokens: int) -> int:
        """Tokens to sample before the splitter looks."""
        if isinstance(self.splitter, FixedLengthSplitter):
            return self.splitter.length - num_tokens % self.splitter.length
        return self.sampling.max_tokens if self._stop else self.chunk_tokens

    def _generate(self, prompts: list[Prompt], n: int) -> list[list[Completion]]:
        stop = tuple(dict.fromkeys((*self._stop, *self.sampling.stop)))
        return draw(self.generator, prompts, replace(self.sampling, n=n, stop=stop))

    def _append(self, request: StepRequest, sample: StepSample, completion: Completion) -> None:
        asked = min(self.sampling.max_tokens - len(sample.ids), self._chunk(len(sample.ids)))
        sample.ids = (*sample.ids, *completion.token_ids)
        sample.num_generated_tokens += len(completion.token_ids)
        sample.end = None
        if completion.finish_reason != "length":
            sample.end = completion.finish_reason
        elif len(sample.ids) >= self._limit(request) or len(completion.token_ids) < (1 if self._sends_text else asked):
            # The second: the engine has no position left, and did not say how many it has.
            sample.end = "length"

    def _cut(self, samples: list[tuple[StepRequest, int, StepSample]]) -> list[tuple[StepRequest, int, StepSample]]:
        """Cut samples at the end of their step; return those that have none yet."""
        ends = step_ends(self.splitter, self.token_pieces, [sample.ids for _, _, sample in samples])
        return [
            (request, i, sample)
            for (request, i, sample), row_ends in zip(samples, ends, strict=True)
            if not self._cut_one(len(request.ids), sample, row_ends, self._limit(request))
        ]

    def _cut_one(self, start: int, sample: StepSample, ends: list[int], limit: int) -> bool:
        """Cut one sample, and say whether its step has ended."""
        text, byte_ends = self.token_pieces.join(sample.ids)
        begin = int(byte_ends[start - 1]) if start else 0
        # Of the steps that begin behind the prefix. What begins before has only grown: it was a step already.
        new_ends = [end for step_start, end in pairwise([0, *ends]) if step_start >= start]
        length = len(sample.ids)
        step_end = new_ends[0] if new_ends else length
        stop_end = self._stop_end(text, byte_ends, begin)
        if stop_end is not None and stop_end <= step_end:
            sample.ids, sample.end = sample.ids[:stop_end], "stop"
            return True
        if step_end < length:
            # Samples that were tokenised again may be longer than asked.
            sample.end = "step" if step_end < limit else "length"
            sample.ids = sample.ids[:step_end]
            return True
        if length >= limit and sample.end != "eos":
            sample.end = "length"
        if sample.end in ("eos", "length"):
            return True
        if new_ends and self._ends_here(sample):
            sample.end = "step"
            return True
        return False

    def _ends_here(self, sample: StepSample) -> bool:
        """Whether the splitter would end a step at the end of a sample: asked with a word behind it."""
        if sample.end != "stop" and not isinstance(self.splitter, FixedLengthSplitter):
            return False
        return len(sample.ids) in self.splitter.step_ends([*self.token_pieces.pieces(sample.ids), b"X"])

    def _stop_end(self, text: bytes, byte_ends: np.ndarray, begin: int) -> int | None:
        """Tokens up to the first of the stop texts of the completion that ends in what is new."""
        found = []
        for stop in map(str.encode, self.sampling.stop):
            # It may have begun in the step before.
            at = text.find(stop, max(0, begin - len(stop) + 1))
            if at >= 0:
                found.append(int(np.searchsorted(byte_ends, at + len(stop), side="left")) + 1)
        return min(found, default=None)
