"""The options that make a prompt out of a row, the same for every stage."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .chat import is_messages, prompt_token_ids


@dataclass(frozen=True)
class PromptFormat:
    """How a row becomes a prompt, and a prompt token ids: the same at every stage, by default as in TRL.

    Args:
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompts, text or messages.
        prompt_template (`str`, *optional*):
            Python format string with `{prompt}`, put around a text, or around the last message of the user.
        system_prompt (`str`, *optional*):
            First message, for prompts that are messages and have no message of the system.
        as_user_message (`bool`, *optional*, defaults to `False`):
            Whether text becomes one message of the user, as chat models need it. As in TRL, only messages go through
            the chat template.
        chat_template_kwargs (`dict` or `str`, *optional*):
            Arguments of the chat template, such as `{"enable_thinking": False}`; a text is read as JSON.

    Raises:
        `ValueError`: If the template has no `{prompt}` or further fields, or the arguments are none.

    Example:

    ```python
    >>> prompts = PromptFormat(prompt_template="{prompt} Think step by step.", as_user_message=True)
    >>> prompts.prompt_of({"prompt": "1+1=", "answer": "2"})
    [{"role": "user", "content": "1+1= Think step by step."}]
    ```
    """

    prompt_column: str = "prompt"
    prompt_template: str | None = None
    system_prompt: str | None = None
    as_user_message: bool = False
    chat_template_kwargs: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prompt_template is not None:
            check_template(self.prompt_template)
        object.__setattr__(self, "chat_template_kwargs", _arguments(self.chat_template_kwargs))

    @property
    def changes_prompts(self) -> bool:
        """Whether a prompt is anything else than what its column holds."""
        return self.prompt_template is not None or self.system_prompt is not None or self.as_user_message

    def prompt_of(self, row: Mapping[str, Any]) -> Any:
        """Prompt of a row.

        Args:
            row (`Mapping`):
                The row.

        Returns:
            `str` or `list[dict]`: Its prompt, text or messages.

        Raises:
            `ValueError`: If the row has no such column, or the options do not fit what it holds.
        """
        if self.prompt_column not in row:
            raise ValueError(
                f"The row has the columns {', '.join(map(str, row))} and not {self.prompt_column!r}, so it has no "
                "prompt. Name the column of the prompts with prompt_column."
            )
        return self.apply(row[self.prompt_column])

    def apply(self, prompt: Any) -> Any:
        """Put template, role and system prompt around what a column holds.

        Args:
            prompt (`str` or `list[dict]`):
                Text or messages.

        Returns:
            `str` or `list[dict]`: Text or messages; never changed in place.

        Raises:
            `ValueError`: If the options do not fit it.
        """
        if not self.changes_prompts:
            return prompt
        if not is_messages(prompt):
            text = prompt if self.prompt_template is None else self.prompt_template.format(prompt=prompt)
            if self.as_user_message:
                return self._with_system([{"role": "user", "content": text}])
            if self.system_prompt is not None:
                raise ValueError(
                    "`system_prompt` was given, but the prompts are plain text, which has no message of the system. "
                    "Set `as_user_message` (--as_user_message), or write the text into `prompt_template`."
                )
            return text
        messages = list(prompt)
        if self.prompt_template is not None:
            place = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
            content = None if place is None else messages[place].get("content")
            if place is None or not isinstance(content, str):
                raise ValueError(
                    f"`prompt_template` was given, but the prompt {prompt!r:.120} has no message of the user that is "
                    "plain text, so there is nothing to put it around. Leave it out for these prompts."
                )
            messages[place] = {**messages[place], "content": self.prompt_template.format(prompt=content)}
        return self._with_system(messages)

    def _with_system(self, messages: list[Any]) -> list[Any]:
        if self.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def token_ids(self, tokenizer: Any, prompt: Any, **template_args: Any) -> tuple[int, ...]:
        """Ids of a prompt, see [`prompt_token_ids`](chat.py).

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the model.
            prompt (`str` or `list[dict]`):
                A prompt as [`~PromptFormat.prompt_of`] returns it.
            **template_args:
                `tools` and `chat_template`, where there are any.

        Returns:
            `tuple[int, ...]`: Ids.
        """
        return prompt_token_ids(tokenizer, prompt, **template_args, **self.chat_template_kwargs)

    def missing_in(self, prompt: Any) -> list[str]:
        """Options of these that a finished prompt shows no trace of.

        Args:
            prompt (`str` or `list[dict]`):
                A prompt that another stage made.

        Returns:
            `list[str]`: Names among `prompt_template` and `system_prompt`.
        """
        missing = []
        messages = list(prompt) if is_messages(prompt) else [{"role": "user", "content": prompt}]
        if self.prompt_template is not None:
            filled = self.prompt_template.format(prompt="\0")
            before, after = filled.partition("\0")[0], filled.rpartition("\0")[2]
            asked = next((str(m.get("content")) for m in reversed(messages) if m["role"] == "user"), "")
            if not (asked.startswith(before) and asked.endswith(after)):
                missing.append("prompt_template")
        if self.system_prompt is not None and messages[0].get("content") != self.system_prompt:
            missing.append("system_prompt")
        return missing

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptFormat:
        """Read options from any settings that hold them, such as those of a job; other names are left out."""
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def check_template(template: str) -> None:
    """Refuse a format string that has another field than the prompt, or not even that.

    Args:
        template (`str`):
            The format string.

    Raises:
        `ValueError`: If it is such a one.
    """
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        names = {str(error)}
    if names != {"prompt"}:
        raise ValueError(
            f"`prompt_template` is {template!r}, whose fields are {', '.join(sorted(map(repr, names))) or 'none'}, "
            "but there is only the prompt to put in. Write {prompt} where it belongs, and {{ and }} for braces, as in "
            "'{prompt} Put the answer within \\\\boxed{{}}.'"
        )


def _arguments(given: Any) -> dict[str, Any]:
    if isinstance(given, str) and given:
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`chat_template_kwargs` is {given!r}, which is not JSON ({error}). Write a JSON object, such as "
                '{"enable_thinking": false}.'
            ) from error
    if given and not isinstance(given, Mapping):
        raise ValueError(
            f"`chat_template_kwargs` is {given!r}, which names no arguments. Write a JSON object, such as "
            '{"enable_thinking": false}.'
        )
    return dict(given or {})
