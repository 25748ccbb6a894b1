"""Prompts as token ids: messages through the chat template, text as it stands, as TRL's GRPO trainer gives them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any


logger = logging.getLogger(__name__)

# The kinds of tokenizers that a warning was given for; one is enough for a process.
_warned: set[str] = set()


def is_messages(prompt: Any) -> bool:
    """Whether a prompt is a list of messages, each with a `role`; anything else that is no text is refused.

    Args:
        prompt (`Any`):
            The prompt.

    Returns:
        `bool`: True for messages, False for text.

    Raises:
        `ValueError`: If it is neither.
    """
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, Sequence) and prompt and all(isinstance(m, Mapping) and "role" in m for m in prompt):
        return True
    raise ValueError(
        f"The prompt is {prompt!r:.120}, which is neither text nor messages, so no model can be given it. Use a "
        'string, or a list such as [{"role": "user", "content": "..."}].'
    )


def content_text(content: Any) -> str:
    """Text of a message.

    Args:
        content (`str` or `list[dict]`, *optional*):
            What the message holds: text, parts as vision-language models take them, or nothing.

    Returns:
        `str`: The text; a part without one is shown by its type, as `[image]`.
    """
    if not isinstance(content, list):
        return "" if content is None else str(content)
    # Data sets give every part all fields, so that the text of an image is there and `None`.
    parts = [part for part in content if isinstance(part, Mapping)]
    texts = [part.get("text") for part in parts]
    return "".join(
        text if isinstance(text, str) else f"[{part.get('type') or 'other'}]"
        for text, part in zip(texts, parts, strict=True)
    )


def prompt_token_ids(
    tokenizer: Any,
    prompt: Any,
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    **chat_template_kwargs: Any,
) -> tuple[int, ...]:
    """Ids of a prompt as [`~trl.GRPOTrainer`] gives them to the policy.

    Messages go through the chat template, which begins the assistant's turn, also where the last message is the
    assistant's own. Text is tokenised as it stands; with a tokenizer of a chat model that gives one warning.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, with a chat template if prompts are messages.
        prompt (`str` or `list[dict]`):
            The prompt.
        tools (`Sequence`, *optional*):
            Tools that the template describes.
        chat_template (`str`, *optional*):
            Another template than the tokenizer's own.
        **chat_template_kwargs:
            Further arguments of the template, such as `enable_thinking`.

    Returns:
        `tuple[int, ...]`: Ids.

    Raises:
        `ValueError`: If the prompt is neither text nor messages, or there is no template for messages.
    """
    if not is_messages(prompt):
        warn_of_plain_text(tokenizer, prompt)
        return tuple(tokenizer(text=prompt)["input_ids"])
    check_chat_template(tokenizer, chat_template)
    encoded = tokenizer.apply_chat_template(
        list(prompt),
        tools=list(tools) if tools else None,
        chat_template=chat_template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **chat_template_kwargs,
    )
    return tuple(encoded["input_ids"])


def check_chat_template(tokenizer: Any, chat_template: str | None = None) -> None:
    """Refuse messages for a tokenizer that cannot render them.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        chat_template (`str`, *optional*):
            A template given instead of its own.

    Raises:
        `ValueError`: If there is no chat template.
    """
    if not (chat_template or getattr(tokenizer, "chat_template", None)):
        raise ValueError(
            f"The prompts are messages, but the tokenizer of '{_name(tokenizer)}' has no chat template, so they "
            "cannot be rendered. Set `tokenizer.chat_template` and save it, use the model's chat version, or give "
            "prompts as plain text."
        )


def warn_of_plain_text(tokenizer: Any, prompt: Any) -> None:
    """Say once that text does not go through the chat template that the model has.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompt (`str` or `list[dict]`):
            A prompt; messages are fine.
    """
    if _warned or not isinstance(prompt, str) or not getattr(tokenizer, "chat_template", None):
        return
    _warned.add(_name(tokenizer))
    logger.warning(
        "The prompts are plain text, and the chat template of '%s' is not applied to text. If it is a chat model, set "
        "`--as_user_message` (in Python `PromptFormat(as_user_message=True)`), which makes each prompt a message of "
        "the user, or give prompts as messages. If plain text is meant, nothing needs to be done.",
        _name(tokenizer),
    )


def end_token_ids(tokenizer: Any, is_chat: bool) -> list[int]:
    """What ends a finished answer: the end of the assistant's turn in a chat, else the end of the text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        is_chat (`bool`):
            Whether the prompt went through the chat template.

    Returns:
        `list[int]`: One id.

    Raises:
        `ValueError`: If the tokenizer has no such token.
    """
    if is_chat:
        # Templates close a turn as they please, so it is read off one.
        turn = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        behind = str(tokenizer.apply_chat_template(turn, tokenize=False)).rpartition("answer")[2]
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special.update(tokenizer.all_special_ids)
        found = [i for i in tokenizer(behind, add_special_tokens=False)["input_ids"] if i in special]
        if found:
            return found[:1]
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of '{_name(tokenizer)}' has no end-of-sequence token, so a finished solution cannot be "
            "told from an unfinished one. Set `tokenizer.eos_token`, or `read_end=False`."
        )
    return [int(tokenizer.eos_token_id)]


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
