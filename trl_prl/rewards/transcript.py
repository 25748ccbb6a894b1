"""Transcripts: what the policy wrote and what its tools answered, in order, for process rewards that read both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from torch import Tensor

from trl_prl.prompts.chat import content_text
from trl_prl.steps.token_pieces import TokenPieces

from .checks import asks_for
from .scoring import callable_name


@dataclass(frozen=True)
class TranscriptSegment:
    """One piece of a transcript.

    Args:
        role (`str`):
            `"assistant"` for what the policy wrote, `"tool"` for what a tool or an environment answered.
        text (`str`):
            Its text. That of the policy is as sampled, without special tokens; that of a tool is the content of its
            message, or, where a rollout function masks the tokens of an environment, their text.
        step (`int`, *optional*):
            Number of the step, from 0, that the policy's text belongs to; `None` for tools. Several segments may have
            one step, whose texts joined are that step.
        name (`str`, *optional*):
            Name of the tool that answered, where there are messages of tools.
        tool_calls (`tuple[dict]`):
            Calls as TRL read them from the turn that this segment ends; empty for other segments.
    """

    role: Literal["assistant", "tool"]
    text: str
    step: int | None = None
    name: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


def add_transcript(
    function: Callable[..., Any], columns: dict[str, Any], make: Callable[[], list[list[TranscriptSegment]]]
) -> None:
    """Give a process reward the transcripts in a column, if it asks for them.

    Args:
        function (`Callable`):
            What will be called.
        columns (`dict`):
            What it will be given; changed in place.
        make (`Callable`):
            Makes the transcripts.

    Raises:
        `ValueError`: if it asks for them, and the data set has a column of that name.
    """
    if not asks_for(function, "transcript"):
        return
    if "transcript" in columns:
        raise ValueError(
            f"The data set has a column 'transcript', and the process reward '{callable_name(function)}' has a "
            "parameter of that name, which is given what was sampled, so it cannot get the column too. Rename the "
            "column with `dataset.rename_column('transcript', ...)`, and, if the column was meant, the "
            "parameter too."
        )
    columns["transcript"] = make()


def token_transcripts(
    pieces: TokenPieces, rollout: Mapping[str, Tensor], completions: Sequence[Any]
) -> list[list[TranscriptSegment]]:
    """Transcripts of sampled completions, cut where steps and turns end.

    Args:
        pieces ([`TokenPieces`]):
            Bytes of the policy's token ids.
        rollout (`Mapping[str, Tensor]`):
            `completion_ids` and `completion_mask` of shape (B, T), tool output included, and `step_ids` of shape
            (B, T), -1 off the policy's own tokens.
        completions (`Sequence`):
            The completions as TRL gives them to reward functions; names, contents and calls of tools are read from
            those that are messages.

    Returns:
        `list[list[TranscriptSegment]]`: Segments of each completion, in order.
    """
    names = ("completion_ids", "completion_mask", "step_ids")
    rows = zip(*(rollout[name].tolist() for name in names), completions, strict=True)
    return [_row(pieces, *row) for row in rows]


def message_transcript(completion: Any, split: Callable[[str], list[str]]) -> list[TranscriptSegment]:
    """Transcript of a completion of which only text or messages are known.

    Args:
        completion (`str` or `list[dict]`):
            The completion, in TRL's form.
        split (`Callable`):
            Cuts the text of one turn into steps.

    Returns:
        `list[TranscriptSegment]`: Segments in order; steps are numbered through all turns.
    """
    segments: list[TranscriptSegment] = []
    num_steps = 0
    for message in [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion:
        text = content_text(message.get("content"))
        if message["role"] != "assistant":
            segments.append(TranscriptSegment("tool", text, name=message.get("name")))
            continue
        steps = split(text) if text else []
        turn = [TranscriptSegment("assistant", step, num_steps + i) for i, step in enumerate(steps)]
        num_steps += len(steps)
        segments += _with_calls(turn, message)
    return segments


def _row(
    pieces: TokenPieces, ids: list[int], mask: list[int], step_ids: list[int], completion: Any
) -> list[TranscriptSegment]:
    tokens = [(token, step) for token, is_there, step in zip(ids, mask, step_ids, strict=True) if is_there]
    runs = [list(run) for _, run in groupby(tokens, key=lambda token: token[1] >= 0)]
    # Where TRL calls the tools, messages and tokens are in step; a rollout function's environment has no messages.
    turns = _turns(completion)
    if [run[0][1] >= 0 for run in runs] != [turn[0]["role"] == "assistant" for turn in turns]:
        turns = [[] for _ in runs]
    segments: list[TranscriptSegment] = []
    for run, messages in zip(runs, turns, strict=True):
        is_tool = run[0][1] < 0
        if is_tool and messages:
            segments += [
                TranscriptSegment("tool", content_text(message.get("content")), name=message.get("name"))
                for message in messages
            ]
            continue
        cut = [(step, _text(pieces, part)) for step, part in groupby(run, key=lambda token: token[1])]
        turn = [
            TranscriptSegment("tool", text) if is_tool else TranscriptSegment("assistant", text, step)
            for step, text in cut
            if text
        ]
        segments += turn if is_tool or not messages else _with_calls(turn, messages[-1])
    return segments


def _turns(completion: Any) -> list[list[Mapping[str, Any]]]:
    """Messages in runs of the policy's and of tools'; none for text."""
    messages = completion if isinstance(completion, list) else []
    return [list(run) for _, run in groupby(messages, key=lambda message: message["role"] == "assistant")]


def _text(pieces: TokenPieces, part: Any) -> str:
    return pieces.join([token for token, _ in part])[0].decode("utf-8", "replace")


def _with_calls(turn: list[TranscriptSegment], message: Mapping[str, Any]) -> list[TranscriptSegment]:
    """The segments of a turn, the last of which says what tools were called."""
    calls = tuple(message.get("tool_calls") or ())
    if not calls:
        return turn
    last = turn[-1] if turn else TranscriptSegment("assistant", "")
    return [*turn[:-1], replace(last, tool_calls=calls)]
