"""Options behind the name of a process reward: read from a text, and handed to what takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any


# Options of models in this process, which commands pass whatever they are given.
_MODEL_OPTIONS = frozenset(
    {"family", "device", "device_map", "dtype", "load_in_4bit", "load_in_8bit", "max_batch_tokens", "revision"}
)
# What an annotation lets the text of an option be read as, and how that is called.
_READ: Mapping[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
}


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Split a text into what it names and the options behind it.

    Args:
        text (`str`):
            `"name,option=value,..."`; a path that exists is taken as it is.

    Returns:
        `tuple[str, dict]`: The name, and the texts of the options.

    Raises:
        `ValueError`: If an option is given twice.
    """
    if Path(text).exists():
        return text, {}
    first, *rest = text.split(",")
    options: dict[str, str] = {}
    for part in rest:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if part.startswith(("http://", "https://")) or not equals:
            first += f",{part}"
        elif name in options:
            raise ValueError(
                f"Got {name}={options[name]} and {name}={value} behind '{first}', which cannot both be. Give one."
            )
        else:
            options[name] = value
    return first, options


def read_options(texts: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Read the texts of options.

    Args:
        texts (`Mapping[str, str]`):
            Names and texts.
        kinds (`Mapping[str, str]`):
            Annotations of the options that are known here, as of [`annotations_of`]. Any other one is read as `true`
            or `false`, a number, or a text.

    Returns:
        `dict[str, Any]`: Names and values.

    Raises:
        `ValueError`: If a text is not what its option asks for.
    """
    options = {}
    for name, text in texts.items():
        allowed = set(kinds.get(name, "Any").split(" | "))
        read = [kind for kind in _READ if kind in allowed]
        value = _value(text) if read or "Any" in allowed else text
        if read and not any(_is(value, kind) for kind in read):
            raise ValueError(
                f"Got {name}={text}, but `{name}` is {' or '.join(_READ[kind][1] for kind in read)}. Give it as one."
            )
        options[name] = value
    return options


def _is(value: Any, kind: str) -> bool:
    # Python takes a truth value for a number.
    return isinstance(value, _READ[kind][0]) and isinstance(value, bool) == (kind == "bool")


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def annotations_of(*functions: Callable[..., Any]) -> dict[str, str]:
    """Names and annotations of the parameters of functions, whose modules have annotations as texts."""
    parameters = [one for function in functions for one in inspect.signature(function).parameters.values()]
    return {one.name: str(one.annotation) for one in parameters if one.kind is not one.VAR_KEYWORD}


def take(options: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Take out of the options those that a function has parameters for; the options are changed."""
    return {name: options.pop(name) for name in inspect.signature(function).parameters if name in options}


def for_no_model(
    function: Callable[..., Any], options: Mapping[str, Any], written: Collection[str] = ()
) -> dict[str, Any]:
    """Options of a process reward that is no model in this process; those of models say nothing to it.

    Args:
        function (`Callable`):
            What takes the options.
        options (`Mapping[str, Any]`):
            Names and values.
        written (`Collection[str]`, *optional*):
            Names that somebody wrote, and no command passed along: of models or not, they are refused.

    Returns:
        `dict[str, Any]`: Those that the function takes.

    Raises:
        `ValueError`: If the function does not take one.
    """
    names = set(inspect.signature(function).parameters)
    given = {name: value for name, value in options.items() if name not in _MODEL_OPTIONS or name in written}
    if unknown := set(given) - names:
        raise ValueError(
            f"Got the option {min(unknown)!r}, which nothing would heed. Use one of "
            f"{', '.join(sorted(names - {'self', 'urls'})) or 'none at all'}."
        )
    return given
