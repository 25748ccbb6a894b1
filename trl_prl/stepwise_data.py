"""Stepwise rows as tokens: one tokenisation for training and scoring, and soft labels.

A row is `{"prompt", "completions": [step, ...], "labels": [number, ...]}`, and possibly `initial_value`, the value of
the prompt itself. The text of a solution is tokenised as a whole, never step by step, and its steps are found again in
the tokens of that text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from trl_prl.token_pieces import TokenPieces


UNLABELLED = -100
"""TRL's and PyTorch's mark of a label that does not count, accepted besides `None` and NaN."""


@dataclass(frozen=True)
class VerifierSettings:
    """What a verifier has to know to be used as it was trained; saved in its model's `config.verifier`.

    Args:
        step_splitter (`str`, *optional*, defaults to `"newline"`):
            Name of the splitter that cut the solutions it was trained on, see [`get_splitter`].
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of the `"fixed"` splitter.
        prompt_format (`str`, *optional*, defaults to `"text"`):
            `"text"`: the prompt is plain text, and of a conversation the contents of its messages, with blank lines
            between them. `"chat"`: the prompt is rendered by the chat template of the verifier's tokenizer, a plain
            text as one message of the user. Either way, plain and conversational prompts of one problem are equal.
        prompt_suffix (`str`, *optional*, defaults to `""`):
            Text between prompt and solution.
        max_length (`int`, *optional*):
            Most tokens of a solution with its prompt. Steps that end beyond are not scored.
        prover (`str`, *optional*):
            Whose probability of success the values are.
        best_of_k (`int`, *optional*, defaults to `1`):
            Values are those of the best of K samples of the prover, `1 - (1 - Q)^K`
            ([PAV](https://huggingface.co/papers/2410.08146), eq. 30).
        temperature (`float`, *optional*, defaults to `1.0`), offset (`float`, *optional*, defaults to `0.0`):
            Calibration: the value is `sigmoid(logit / temperature + offset)`.

    Raises:
        `ValueError`: If a setting is out of its range.
    """

    step_splitter: str | None = "newline"
    step_length: int = 256
    prompt_format: str = "text"
    prompt_suffix: str = ""
    max_length: int | None = None
    prover: str | None = None
    best_of_k: int = 1
    temperature: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.prompt_format not in ("text", "chat"):
            raise ValueError(
                f"`prompt_format` is {self.prompt_format!r}. There is no such format. Use 'text' for plain text, or "
                "'chat' for the chat template of the verifier's tokenizer."
            )
        if self.best_of_k < 1 or (self.max_length is not None and self.max_length < 1):
            raise ValueError(
                f"`best_of_k` is {self.best_of_k} and `max_length` is {self.max_length}, but both count something "
                "that exists. Use 1 or more; `None` leaves the length to the model."
            )
        if not (self.temperature > 0 and math.isfinite(self.temperature) and math.isfinite(self.offset)):
            raise ValueError(
                f"`temperature` is {self.temperature} and `offset` is {self.offset}. Values would be turned around or "
                "undefined. Use a positive temperature and a finite offset; 1.0 and 0.0 change nothing."
            )

    def to_dict(self) -> dict[str, Any]:
        """Settings as they stand in `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VerifierSettings:
        """Read settings from a config; names of later versions are left out."""
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class TokenizedSteps:
    """Tokens of a prompt and its solution, and the positions that stand for its steps.

    Attributes:
        input_ids (`list[int]`):
            Tokens, at most `max_length`: a text that is too long keeps its head.
        positions (`list[int]`):
            Position of the prompt's value, then one per step; -1 where it lies beyond `max_length`. Increasing, but
            two steps that end in one token share its position.
        num_merged (`int`):
            Steps without a position of their own, because a token covers the ends of two, or the step is empty.
        num_tokens (`int`):
            Tokens of the whole text.
    """

    input_ids: list[int]
    positions: list[int]
    num_merged: int
    num_tokens: int

    @property
    def num_truncated(self) -> int:
        """Steps that lie beyond `max_length`."""
        return sum(position < 0 for position in self.positions[1:])


def render_prompt(tokenizer: Any, prompt: str | Sequence[Mapping[str, Any]], settings: VerifierSettings) -> str:
    """Text of a prompt, as the verifier reads it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the verifier.
        prompt (`str` or `Sequence[Mapping]`):
            Plain text, or messages with `role` and `content`.
        settings ([`VerifierSettings`]):
            Settings of the verifier.

    Returns:
        `str`: The text.

    Raises:
        `ValueError`: If the prompt is not text, or there is no chat template to render it.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or ())
    if not messages or not all(isinstance(message.get("content"), str) for message in messages):
        raise ValueError(
            f"The prompt is {prompt!r:.120}, in which there is no text for every message. A verifier reads text only. "
            "Pass a string, or messages whose `content` is a string."
        )
    if settings.prompt_format == "text":
        return "\n\n".join(message["content"] for message in messages) + settings.prompt_suffix
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "The verifier has `prompt_format='chat'`, but its tokenizer has no chat template, so prompts cannot be "
            "rendered. Set `tokenizer.chat_template`, or use `prompt_format='text'`."
        )
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text) + settings.prompt_suffix


def tokenize_stepwise(
    tokenizer: Any,
    prompt: str | Sequence[Mapping[str, Any]],
    steps: Sequence[str],
    settings: VerifierSettings,
    token_pieces: TokenPieces | None = None,
) -> TokenizedSteps:
    """Tokenise a prompt with its solution, for training and for scoring alike.

    Prompt and steps are joined and tokenised as one text. A step is scored at the token that holds its last character
    (the last token of a character that is spread over several). When that token reaches into the next step, and the
    next step ends in it too, both are scored there. The prompt is scored at its last token that holds nothing of the
    solution, so that its value is the same whatever follows.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the verifier.
        prompt (`str` or `Sequence[Mapping]`):
            Plain text or messages.
        steps (`Sequence[str]`):
            Texts of the steps; joined, they are the solution.
        settings ([`VerifierSettings`]):
            Settings of the verifier.
        token_pieces ([`TokenPieces`], *optional*):
            Bytes of the tokenizer's tokens, to build its table only once.

    Returns:
        [`TokenizedSteps`]: Tokens and positions.

    Raises:
        `ValueError`: If the prompt has no text or no tokens, or the tokenizer changes text and has no offsets.
    """
    # Processors of vision-language models wrap the tokenizer.
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    head = render_prompt(tokenizer, prompt, settings)
    text = head + "".join(steps)
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, return_attention_mask=False
    )
    ids = list(encoding["input_ids"])
    starts, ends = _token_spans(tokenizer, text, encoding, token_pieces or TokenPieces(tokenizer))
    # A chat template writes the start token itself.
    added = [] if settings.prompt_format == "chat" else _start_ids(tokenizer)
    text_ends = list(accumulate((len(step) for step in steps), initial=len(head)))
    # The last token that starts before the end of the step; for the prompt, the last one that ends by its end.
    positions = (np.searchsorted(starts, text_ends, side="left") - 1 + len(added)).tolist()
    positions[0] = int(np.searchsorted(ends, text_ends[0], side="right")) - 1 + len(added)
    if positions[0] < 0:
        raise ValueError(
            f"The prompt {head!r:.80} has no token of its own, so there is no position for its value. Give the prompt "
            "a text, or set `prompt_suffix` to a line break."
        )
    num_merged = sum(a == b for a, b in pairwise(positions))
    ids = added + ids
    num_tokens = len(ids)
    if settings.max_length is not None and num_tokens > settings.max_length:
        ids = ids[: settings.max_length]
        positions = [position if position < len(ids) else -1 for position in positions]
    return TokenizedSteps(ids, positions, num_merged, num_tokens)


def _start_ids(tokenizer: Any) -> list[int]:
    """The start token, where the tokenizer adds one; what it adds at the end would stand behind the last step."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _token_spans(tokenizer: Any, text: str, encoding: Any, token_pieces: TokenPieces) -> tuple[np.ndarray, np.ndarray]:
    """Character at which each token starts, and up to which it reaches; both never decrease."""
    pieces = token_pieces.literal_pieces(encoding["input_ids"])
    raw, joined = text.encode("utf-8", "surrogatepass"), b"".join(pieces)
    if joined in (raw, b" " + raw):
        # Exact. SentencePiece puts a space before a text, which is not part of it.
        byte_ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64) - (len(joined) - len(raw))
        byte_ends = np.maximum(byte_ends, 0)
        byte_starts = np.concatenate([[0], byte_ends[:-1]])[: len(byte_ends)]
        # Continuation bytes start no character, so this counts the characters begun before each byte. A token that
        # holds any part of a character covers it.
        is_start = (np.frombuffer(raw, dtype=np.uint8) & 0xC0) != 0x80
        begun = np.concatenate([[0], np.cumsum(is_start)])
        return begun[np.minimum(byte_starts + 1, len(raw))] - 1, begun[byte_ends]
    if not tokenizer.is_fast:
        raise ValueError(
            f"The text was tokenised by a {type(tokenizer).__name__}, which changes text and has no offsets, so the "
            "steps cannot be found in its tokens. Use the fast version of the tokenizer."
        )
    offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return np.maximum.accumulate(offsets[:, 0]), np.maximum.accumulate(offsets[:, 1])


def clean_labels(labels: Sequence[Any], num_steps: int) -> list[float]:
    """Read step labels.

    Args:
        labels (`Sequence`):
            Numbers in [0, 1] or booleans; `None`, NaN and -100 mark steps without a label.
        num_steps (`int`):
            Number of steps.

    Returns:
        `list[float]`: Labels in [0, 1], NaN where there is none.

    Raises:
        `ValueError`: If there is not one label per step, or one is out of range.
    """
    if len(labels) != num_steps:
        raise ValueError(
            f"There are {len(labels)} labels for {num_steps} steps. Labels would belong to other steps. Give one "
            "label per step, `None` for a step without one."
        )
    cleaned = []
    for label in labels:
        value = math.nan if label is None else float(label)
        value = math.nan if value == UNLABELLED else value
        if not (math.isnan(value) or 0.0 <= value <= 1.0):
            raise ValueError(
                f"A step has the label {label!r}, but labels are probabilities of success. Rescale them to [0, 1], "
                f"and use `None`, NaN or {UNLABELLED} for steps without a label."
            )
        cleaned.append(value)
    return cleaned


def cut_after_first_error(
    steps: Sequence[str], labels: Sequence[float], threshold: float = 0.0
) -> tuple[list[str], list[float]]:
    """Drop what follows the first step whose label says that the solution has failed.

    Source: the first pit of [PAV](https://huggingface.co/papers/2410.08146), App. D: the first step from which no
    rollout succeeds.

    Args:
        steps (`Sequence[str]`):
            Texts of the steps.
        labels (`Sequence[float]`):
            One label per step, NaN for none.
        threshold (`float`, *optional*, defaults to `0.0`):
            A label up to this one is an error.

    Returns:
        `tuple[list[str], list[float]]`: Steps and labels up to and including that step.
    """
    end = next((i + 1 for i, label in enumerate(labels) if label <= threshold), len(steps))
    return list(steps[:end]), list(labels[:end])
