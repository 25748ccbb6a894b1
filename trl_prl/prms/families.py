"""How public process reward models are asked: the text each family was trained on, and where its scores are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from trl_prl.verifier.rows import start_ids

from .heads import QwenProcessRewardModel, SkyworkProcessRewardModel


Messages = Sequence[Mapping[str, Any]]
Tokenize = Callable[[Any, Messages, list[str]], tuple[list[int], list[int]]]

QWEN_SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."
_STEP_NUMBER = re.compile(r"\s*step\s+\d+\s*[:.]", re.IGNORECASE)


@dataclass(frozen=True)
class Family:
    """What is special to a family of process reward models, and all that an adapter has to say.

    Args:
        name (`str`):
            Name, for messages.
        tokenize (`Callable`):
            `(tokenizer, messages, steps) -> (input_ids, positions)`: the tokens of a problem and its solution, and for
            every step the position that is read. The messages are those of the prompt, a plain text as one of the
            user; the steps hold something besides white space, and none at their ends. [`tokenize_pieces`] does it for
            a text that is tokenised as a whole.
        labels (`tuple[str, str]`, *optional*):
            Tokens of a causal language model that say that a step is right and that it is wrong: the value is the
            probability of the first among the two. Without them, the value is read from a classification head.
        architecture (`type`, *optional*):
            Class of the model, where `AutoModelForTokenClassification` does not load it.
        step_splitter (`str`, *optional*):
            Splitter that cuts solutions as the model's training data were cut, see [`get_splitter`].
        marker (`str`, *optional*):
            Text that must be one token of the model's tokenizer.

    Example:

    ```python
    from trl_prl.prms.families import Family, question_of, tokenize_pieces

    def tokenize(tokenizer, messages, steps):
        return tokenize_pieces(tokenizer, [question_of(messages) + "\n", *(f"{step}\n<verdict>" for step in steps)])

    reward = load_process_reward("my-org/my-prm", family=Family("mine", tokenize, labels=("Yes", "No")))
    ```
    """

    name: str
    tokenize: Tokenize
    labels: tuple[str, str] | None = None
    architecture: Any = None
    step_splitter: str | None = field(default=None, kw_only=True)
    marker: str | None = field(default=None, kw_only=True)


def question_of(messages: Messages) -> str:
    """Text of a problem: the contents of all messages but the system's, which tells a policy how to write."""
    return "\n\n".join(message["content"] for message in messages if message["role"] != "system")


def tokenize_pieces(
    tokenizer: Any, pieces: Sequence[str], add_start: bool | None = None
) -> tuple[list[int], list[int]]:
    """Tokenise joined pieces of text as a whole, and find the end of every piece but the first.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Fast tokenizer.
        pieces (`Sequence[str]`):
            What stands before the first step, then one piece per step that ends where the step is scored.
        add_start (`bool`, *optional*):
            Whether the start token comes first; by default if the tokenizer adds it to texts. A chat template writes
            it itself.

    Returns:
        `tuple[list[int], list[int]]`: Token ids, and the position of the token that holds the last character of each
        piece but the first.

    Raises:
        `ValueError`: If the tokenizer has no offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer is a {type(tokenizer).__name__}, which does not say where its tokens lie in a text, so "
            "the ends of steps cannot be found. Use the fast version of the tokenizer."
        )
    encoding = tokenizer("".join(pieces), add_special_tokens=False, return_offsets_mapping=True)
    start = start_ids(tokenizer) if add_start is None else start_ids(tokenizer)[: int(add_start)]
    starts = np.maximum.accumulate(np.array([begin for begin, _ in encoding["offset_mapping"]], dtype=np.int64))
    ends = list(accumulate(len(piece) for piece in pieces))[1:]
    # The last token that starts before the end of the piece.
    positions = np.searchsorted(starts, ends, side="left") - 1 + len(start)
    return [*start, *encoding["input_ids"]], positions.tolist()


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def qwen(system_prompt: str = QWEN_SYSTEM_PROMPT) -> Family:
    """Qwen2.5-Math-PRM: a chat whose answer has `<extra_0>` behind every step, read there.

    Args:
        system_prompt (`str`, *optional*):
            System prompt, in place of the policy's; that of the model card by default.

    Returns:
        [`Family`]: The family.
    """

    def tokenize(tokenizer: Any, messages: Messages, steps: list[str]) -> tuple[list[int], list[int]]:
        turns = [message for message in messages if message["role"] != "system"]
        head = tokenizer.apply_chat_template(
            [{"role": "system", "content": system_prompt}, *turns], tokenize=False, add_generation_prompt=True
        )
        return tokenize_pieces(tokenizer, [head, *(f"{step}<extra_0>" for step in steps)], add_start=False)

    return Family("qwen", tokenize, None, QwenProcessRewardModel, step_splitter="blank_line", marker="<extra_0>")


def math_shepherd(number_steps: bool = True) -> Family:
    """Math-Shepherd: `ки` behind every step, read at that very token as the odds of `+` against `-`.

    Args:
        number_steps (`bool`, *optional*, defaults to `True`):
            Whether `Step k: ` is put before steps without a number, as all training data have one.

    Returns:
        [`Family`]: The family.
    """

    def tokenize(tokenizer: Any, messages: Messages, steps: list[str]) -> tuple[list[int], list[int]]:
        pieces = [question_of(messages) + " "]
        for number, step in enumerate(steps, 1):
            prefix = f"Step {number}: " if number_steps and not _STEP_NUMBER.match(step) else ""
            pieces.append("\n" * (number > 1) + f"{prefix}{step} ки")
        return tokenize_pieces(tokenizer, pieces)

    return Family("math-shepherd", tokenize, ("+", "-"), step_splitter="newline", marker="ки")


def rlhflow() -> Family:
    """RLHFlow: a chat in which the user shows one step at a time and the assistant answers `+`, read before it."""

    def tokenize(tokenizer: Any, messages: Messages, steps: list[str]) -> tuple[list[int], list[int]]:
        question = question_of(messages)
        texts = [f"{question} {step}" if i == 0 else step for i, step in enumerate(steps)] or [question]
        # Stands for the answers while the template is rendered, which may change the texts around them.
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if not any(chr(code) in text for text in texts))
        shown = (("user", text) for text in texts)
        turns = [{"role": role, "content": text} for turn in shown for role, text in (turn, ("assistant", mark))]
        parts = tokenizer.apply_chat_template(turns, tokenize=False).split(mark)[: len(steps)]
        pieces = [part if i == 0 else f"+{part}" for i, part in enumerate(parts)]
        return tokenize_pieces(tokenizer, ["", *pieces] if steps else [question], add_start=False)

    return Family("rlhflow", tokenize, ("+", "-"), step_splitter="blank_line")


def skywork() -> Family:
    """Skywork o1: lines tokenised one by one, each ended by the token of a line break, read there.

    A step of several lines has the value of its last one; blank lines are left out.

    Returns:
        [`Family`]: The family.
    """

    def tokenize(tokenizer: Any, messages: Messages, steps: list[str]) -> tuple[list[int], list[int]]:
        mark = _ids(tokenizer, "\n")[-1]
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids, positions = start + _ids(tokenizer, question_of(messages) + "\n"), []
        for step in steps:
            for line in filter(str.strip, step.split("\n")):
                ids += [*_ids(tokenizer, line), mark]
            positions.append(len(ids) - 1)
        return ids, positions

    return Family("skywork", tokenize, None, SkyworkProcessRewardModel, step_splitter="newline")


def trl(step_separator: str = "\n") -> Family:
    """TRL's `PRMTrainer`: steps tokenised one by one, each ended by a separator, read at its last token.

    Args:
        step_separator (`str`, *optional*, defaults to a line break):
            `PRMConfig.step_separator` of the training.

    Returns:
        [`Family`]: The family.
    """

    def tokenize(tokenizer: Any, messages: Messages, steps: list[str]) -> tuple[list[int], list[int]]:
        separator = _ids(tokenizer, step_separator)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids, positions = start + _ids(tokenizer, question_of(messages)), []
        for step in steps:
            ids += _ids(tokenizer, step.removesuffix(step_separator)) + separator
            positions.append(len(ids) - 1)
        return ids, positions

    return Family("trl", tokenize)


FAMILIES: dict[str, Callable[..., Family]] = {
    "math-shepherd": math_shepherd,
    "qwen": qwen,
    "rlhflow": rlhflow,
    "skywork": skywork,
    "trl": trl,
}
