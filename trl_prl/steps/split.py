"""Steps of sampled completions: which token belongs to which step, and the text of each step.

Layer 0: no model, no trainer, no input or output. `step_ids` of shape (B, T) is the only bridge from steps to tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from trl_prl.types import StepSplitter

from .markdown import MarkdownSplitter
from .sentences import SentenceSplitter
from .splitters import (
    SPLITTER_HELP,
    ByteSplitter,
    DelimiterSplitter,
    FixedLengthSplitter,
    RegexSplitter,
    TurnSplitter,
    is_blank,
)
from .token_pieces import TokenPieces


@dataclass(frozen=True)
class SplitBatch:
    """Steps of a batch of completions.

    Attributes:
        step_ids (`Tensor` of shape (B, T), int64, on the CPU):
            Step of every token, from 0 in order along the action tokens; -1 off the action mask.
        step_bytes (`list[list[bytes]]`):
            Exact bytes of each step; joined, they are the bytes of the completion's action tokens. None for a
            completion without action tokens.
    """

    step_ids: Tensor
    step_bytes: list[list[bytes]] = field(repr=False)

    @cached_property
    def steps(self) -> list[list[str]]:
        """Texts of the steps, decoded on first use.

        Joined, the texts of a completion are its text; only where a step ends inside a character (its bytes are
        spread over tokens), or where the sampled bytes are not UTF-8, U+FFFD stands for the parts. `step_bytes` is
        exact in every case.
        """
        return [[step.decode("utf-8", "replace") for step in row] for row in self.step_bytes]

    def token_ids(self, completion_ids: Tensor) -> list[list[list[int]]]:
        """Ids of the tokens of each step.

        Args:
            completion_ids (`torch.Tensor`):
                Tokens that were split, of shape (B, T).

        Returns:
            `list[list[list[int]]]`: For each completion, and each of its steps, the ids of its tokens.
        """
        found: list[list[list[int]]] = [[[] for _ in steps] for steps in self.steps]
        for row, ids, numbers in zip(found, completion_ids.tolist(), self.step_ids.tolist(), strict=True):
            for token, number in zip(ids, numbers, strict=True):
                if number >= 0:
                    row[number].append(token)
        return found


def get_splitter(name_or_splitter: str | StepSplitter, *, step_length: int = 256) -> StepSplitter:
    r"""Turn the name of a splitter, as a config carries it, into the splitter.

    Args:
        name_or_splitter (`str` or `StepSplitter`):
            `"fixed"`, `"newline"`, `"blank_line"`, `"sentence"`, `"turn"` (one step per turn of the policy, between
            tool outputs), `"markdown"` (blank lines outside of formulas, fences and tables), `"markdown_newline"`
            (line breaks outside of them), `"regex:PATTERN"` or `"delimiter:TEXT"` (with `\n`, `\r` and `\t` written
            as escapes or not). A splitter object is returned as it is.
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of `"fixed"`; no other splitter reads it.

    Returns:
        `StepSplitter`: The splitter.

    Raises:
        `ValueError`: When the name is not one of these.
        `TypeError`: When the argument is neither a name nor has a `step_ends` method.
    """
    if not isinstance(name_or_splitter, str):
        if isinstance(name_or_splitter, StepSplitter):
            return name_or_splitter
        raise TypeError(
            f"The step splitter is a {type(name_or_splitter).__name__}, which has no `step_ends(pieces)` method, so "
            "it cannot tell where steps end. Pass the name of a splitter or an object with that method."
        )
    match name_or_splitter.partition(":"):
        case ("fixed", "", ""):
            return FixedLengthSplitter(step_length)
        case ("newline", "", ""):
            return DelimiterSplitter("\n")
        case ("blank_line", "", ""):
            return DelimiterSplitter("\n\n")
        case ("sentence", "", ""):
            return SentenceSplitter()
        case ("turn", "", ""):
            return TurnSplitter()
        case ("markdown", "", ""):
            return MarkdownSplitter()
        case ("markdown_newline", "", ""):
            return MarkdownSplitter(newline=True)
        case ("regex", ":", pattern):
            return RegexSplitter(pattern)
        case ("delimiter", ":", text):
            for escape, character in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")):
                text = text.replace(escape, character)
            return DelimiterSplitter(text)
    raise ValueError(
        f"The step splitter is {name_or_splitter!r}, but no splitter has that name. Use {SPLITTER_HELP}, or pass a "
        "splitter object."
    )


def step_ids_from_ends(ends: list[list[int]], length: int) -> Tensor:
    """Turn step ends into the step of every token.

    Args:
        ends (`list[list[int]]`):
            Exclusive step ends of each completion, strictly increasing, as a splitter returns them; the completion's
            first token is at 0.
        length (`int`):
            T, the padded number of tokens; at least the largest end.

    Returns:
        `Tensor` of shape (B, T), int64: Step of each token, -1 from the last end on.

    Raises:
        `ValueError`: When ends are not strictly increasing within 1..`length`.
    """
    step_ids = np.full((len(ends), length), -1, dtype=np.int64)
    for row, row_ends in zip(step_ids, ends, strict=True):
        if row_ends:
            _check_ends(row_ends, None, length)
            row[: row_ends[-1]] = np.repeat(np.arange(len(row_ends)), np.diff(row_ends, prepend=0))
    return torch.from_numpy(step_ids)


def split_completions(
    splitter: StepSplitter, token_pieces: TokenPieces, completion_ids: Tensor, action_mask: Tensor
) -> SplitBatch:
    """Split sampled completions into steps.

    Every contiguous run of action tokens is split on its own, so a tool call ends a step and nothing in tool output or
    padding is ever seen. A run without content (an end-of-sequence token between two tool outputs) joins the last
    step before it, or the first one after it.

    Args:
        splitter (`StepSplitter`):
            Any object with `step_ends(pieces)`. Those of this package also have a fast path over joined bytes.
        token_pieces ([`TokenPieces`]):
            Bytes of the policy's token ids.
        completion_ids (`Tensor` of shape (B, T), int64):
            Sampled ids; what stands outside the mask does not matter. Any device.
        action_mask (`Tensor` of shape (B, T), bool):
            Tokens the policy sampled: not padding, not tool output. It may have holes, be padded on either side and
            be empty in some rows.

    Returns:
        [`SplitBatch`]: Steps on the CPU.

    Raises:
        `ValueError`: When the two shapes differ, or a splitter returns ends that are not a partition of its pieces.
    """
    if completion_ids.shape != action_mask.shape or completion_ids.ndim != 2:
        raise ValueError(
            f"`completion_ids` is of shape {tuple(completion_ids.shape)} and `action_mask` of shape "
            f"{tuple(action_mask.shape)}, but both must be (B, T) for a token to have a mask entry. Pass the "
            "completion's own ids and mask, without the prompt."
        )
    ids = completion_ids.detach().cpu().numpy()
    mask = action_mask.detach().cpu().numpy().astype(bool)
    step_ids = np.full(ids.shape, -1, dtype=np.int64)
    padded = np.pad(mask, ((0, 0), (1, 1)))
    step_bytes = [
        _split_row(splitter, token_pieces, row_ids, np.flatnonzero(row_changes).tolist(), row_steps)
        for row_ids, row_changes, row_steps in zip(ids, padded[:, 1:] != padded[:, :-1], step_ids, strict=True)
    ]
    return SplitBatch(torch.from_numpy(step_ids), step_bytes)


def step_ends(
    splitter: StepSplitter, token_pieces: TokenPieces, completions: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Exclusive step ends of completions that are one run of action tokens each, as [`split_completions`] finds them.

    Args:
        splitter (`StepSplitter`), token_pieces ([`TokenPieces`]):
            As in [`split_completions`].
        completions (`Sequence[Sequence[int]]`):
            Ids of each completion.

    Returns:
        `list[list[int]]`: Ends of each, the last one its length; empty for an empty one.
    """
    ends: dict[tuple[int, ...], list[int]] = {(): []}
    # Samples of one prefix are often equal, and are split once.
    for ids in {tuple(completion) for completion in completions} - {()}:
        text, byte_ends = token_pieces.join(ids)
        is_one = is_blank(text)
        ends[ids] = [len(ids)] if is_one else _run_ends(splitter, token_pieces, np.asarray(ids), text, byte_ends)
    return [ends[tuple(completion)] for completion in completions]


def _split_row(
    splitter: StepSplitter, token_pieces: TokenPieces, ids: np.ndarray, edges: list[int], step_ids: np.ndarray
) -> list[bytes]:
    """Split one completion, whose runs of action tokens start and end at `edges`.

    Writes its row of `step_ids` and returns the bytes of its steps.
    """
    steps: list[bytes] = []
    # Runs without content since the last step; joined at once, as there may be many.
    blanks: list[bytes] = []
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        text, byte_ends = token_pieces.join(ids[start:stop])
        if is_blank(text):
            step_ids[start:stop] = max(len(steps) - 1, 0)
            blanks.append(text)
            continue
        ends = _run_ends(splitter, token_pieces, ids[start:stop], text, byte_ends)
        step_ids[start:stop] = np.repeat(
            np.arange(len(steps), len(steps) + len(ends)), [end - begin for begin, end in pairwise([0, *ends])]
        )
        text_ends = byte_ends[np.asarray(ends) - 1].tolist()
        texts = [text[a:b] for a, b in zip([0, *text_ends[:-1]], text_ends, strict=True)]
        if blanks and steps:
            steps[-1] = b"".join([steps[-1], *blanks])
        elif blanks:
            texts[0] = b"".join([*blanks, texts[0]])
        blanks.clear()
        steps.extend(texts)
    if blanks:
        steps[-1:] = [b"".join([*steps[-1:], *blanks])]
    return steps


def _run_ends(
    splitter: StepSplitter, token_pieces: TokenPieces, ids: np.ndarray, text: bytes, byte_ends: np.ndarray
) -> list[int]:
    if isinstance(splitter, ByteSplitter):
        return splitter.step_ends_from_bytes(text, byte_ends)
    ends = list(splitter.step_ends(token_pieces.pieces(ids.tolist())))
    _check_ends(ends, splitter, len(ids))
    if ends[-1] != len(ids):
        raise ValueError(
            f"{type(splitter).__name__}.step_ends returned {ends[-1]} as its last end for {len(ids)} tokens, but "
            "every token belongs to a step. Return `len(pieces)` as the last end."
        )
    return ends


def _check_ends(ends: list[int], splitter: StepSplitter | None, length: int) -> None:
    if ends and ends[0] >= 1 and ends[-1] <= length and all(a < b for a, b in pairwise(ends)):
        return
    source = "`ends`" if splitter is None else f"{type(splitter).__name__}.step_ends"
    raise ValueError(
        f"{source} gave the step ends {ends[:8]} for {length} tokens, but ends must increase strictly within "
        f"1..{length} or steps would overlap or be empty. Give the exclusive end of each step, in order."
    )
