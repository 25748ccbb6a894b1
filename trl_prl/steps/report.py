"""What a splitter does to completions: steps counted, and what became of every occurrence of its delimiter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trl_prl.types import StepSplitter

from .markdown import MarkdownSplitter
from .splitters import DelimiterSplitter, delimiter_pattern
from .token_pieces import TokenPieces


@dataclass
class DelimiterReport:
    """What became of every occurrence of the splitter's delimiter.

    An occurrence is a run of the delimiter, `"\\n\\n\\n"` is one. `num_ended_step + num_protected + num_merged` is
    `num_occurrences`.

    Attributes:
        delimiter (`str`):
            Delimiter of the splitter.
        naive_token (`str`):
            Token that a look-up by `encode(delimiter)[0]` would take for the delimiter.
        num_occurrences (`int`):
            Occurrences in the completions.
        num_ended_step (`int`):
            Occurrences that end a step.
        num_protected (`int`):
            Occurrences inside a block that the splitter does not cut (code, tables, mathematics).
        num_merged (`int`):
            Occurrences that end no step because nothing but whitespace or tags is before or after them.
        num_missed_by_id (`int`):
            Occurrences without that token, which such a look-up would miss.
        tokens (`dict[str, int]`):
            The most frequent tokens that complete an occurrence.
    """

    delimiter: str
    naive_token: str
    num_occurrences: int = 0
    num_ended_step: int = 0
    num_protected: int = 0
    num_merged: int = 0
    num_missed_by_id: int = 0
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass
class SplitReport:
    """Steps of a set of completions.

    Attributes:
        splitter (`str`):
            The splitter.
        num_completions (`int`), num_skipped (`int`), num_tokens (`int`), num_steps (`int`):
            Counts; skipped rows had no completion or an empty one.
        num_single_step (`int`):
            Completions of one step: a process reward says no more about them than an outcome reward.
        steps_per_completion (`dict[str, float]`), tokens_per_step (`dict[str, float]`):
            `mean`, `median`, `p95`, `max`.
        histogram (`list[tuple[int, int, int]]`):
            Least tokens, most tokens, number of steps of that length.
        longest_step (`dict`):
            `row` and `step` (from 0), `tokens` and the start of its `text`.
        delimiter (`DelimiterReport`, *optional*):
            `None` for splitters that have no delimiter.
    """

    splitter: str
    num_completions: int
    num_skipped: int
    num_tokens: int
    num_steps: int
    num_single_step: int
    steps_per_completion: dict[str, float]
    tokens_per_step: dict[str, float]
    histogram: list[tuple[int, int, int]]
    longest_step: dict[str, Any]
    delimiter: DelimiterReport | None


def split_report(
    completions: Iterable[str | Sequence[int] | None], splitter: StepSplitter, tokenizer: Any
) -> SplitReport:
    """Split completions and count.

    Args:
        completions (`Iterable[str | Sequence[int] | None]`):
            Texts, which are tokenised without special tokens, or sampled ids, which are taken as they are. `None` and
            empty ones are skipped and counted.
        splitter (`StepSplitter`):
            Splitter to report on.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.

    Returns:
        [`SplitReport`]: The counts.

    Raises:
        `ValueError`: When there is no completion to report on.
    """
    token_pieces = TokenPieces(tokenizer)
    delimiters = _DelimiterCounter(splitter, tokenizer)
    steps_per_completion: list[int] = []
    tokens_per_step: list[int] = []
    longest: dict[str, Any] = {"tokens": 0}
    num_skipped = 0
    for row, completion in enumerate(completions):
        if isinstance(completion, str):
            completion = tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"]
        if completion is None or len(completion) == 0:
            num_skipped += 1
            continue
        pieces = token_pieces.pieces(completion)
        ends = splitter.step_ends(pieces)
        lengths = np.diff(ends, prepend=0)
        steps_per_completion.append(len(ends))
        tokens_per_step.extend(lengths.tolist())
        step = int(lengths.argmax())
        if lengths[step] > longest["tokens"]:
            text = b"".join(pieces[ends[step] - lengths[step] : ends[step]]).decode("utf-8", "replace")
            longest = {"row": row, "step": step, "tokens": int(lengths[step]), "text": text[:200]}
        delimiters.add(completion, pieces, ends)
    if not steps_per_completion:
        raise ValueError(
            f"There are {num_skipped} rows, but none has a completion with text, so there is nothing to split. Give "
            "another file, or another column."
        )
    return SplitReport(
        splitter=repr(splitter),
        num_completions=len(steps_per_completion),
        num_skipped=num_skipped,
        num_tokens=sum(tokens_per_step),
        num_steps=len(tokens_per_step),
        num_single_step=steps_per_completion.count(1),
        steps_per_completion=_summary(steps_per_completion),
        tokens_per_step=_summary(tokens_per_step),
        histogram=_histogram(tokens_per_step),
        longest_step=longest,
        delimiter=delimiters.report(),
    )


class _DelimiterCounter:
    """Follows every occurrence of the delimiter from the text to the step ends."""

    def __init__(self, splitter: StepSplitter, tokenizer: Any) -> None:
        self._report: DelimiterReport | None = None
        if not isinstance(splitter, DelimiterSplitter | MarkdownSplitter):
            return
        self._splitter = splitter
        # With special tokens, because that is what the look-up by id does.
        self._naive_id = next(iter(tokenizer.encode(splitter.delimiter)), -1)
        naive_token = str(tokenizer.convert_ids_to_tokens([self._naive_id])[0]) if self._naive_id >= 0 else ""
        self._report = DelimiterReport(splitter.delimiter, naive_token)
        self._tokens: Counter[bytes] = Counter()

    def add(self, ids: Sequence[int], pieces: list[bytes], ends: list[int]) -> None:
        report = self._report
        if report is None:
            return
        text = b"".join(pieces)
        byte_ends = np.cumsum([len(piece) for piece in pieces])
        boundaries = set(self._splitter.boundaries(text))
        ended = set(ends)
        for match in delimiter_pattern(report.delimiter).finditer(text):
            first = int(np.searchsorted(byte_ends, match.start(), side="right"))
            last = int(np.searchsorted(byte_ends, match.end(), side="left"))
            report.num_occurrences += 1
            self._tokens[pieces[last]] += 1
            if match.end() not in boundaries:
                report.num_protected += 1
            elif last + 1 in ended or (last + 1 < len(pieces) and not text[byte_ends[last] :]):
                report.num_ended_step += 1
            else:
                report.num_merged += 1
            if self._naive_id not in ids[first : last + 1]:
                report.num_missed_by_id += 1

    def report(self) -> DelimiterReport | None:
        if self._report is not None:
            frequent = self._tokens.most_common(8)
            self._report.tokens = {piece.decode("utf-8", "replace"): count for piece, count in frequent}
        return self._report


def _summary(values: list[int]) -> dict[str, float]:
    array = np.array(values)
    return {
        "mean": float(array.mean()),
        "median": float(np.median(array)),
        "p95": float(np.percentile(array, 95)),
        "max": float(array.max()),
    }


def _histogram(lengths: list[int]) -> list[tuple[int, int, int]]:
    """Count lengths in classes that double: 1, 2-3, 4-7, ..."""
    classes = Counter(length.bit_length() for length in lengths)
    return [(2 ** (bits - 1), 2**bits - 1, classes[bits]) for bits in range(min(classes), max(classes) + 1)]
