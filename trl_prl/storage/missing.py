"""What is said of a name that stands for nothing: neither something here nor something on the Hub."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def say_missing(what: str, name: Any, error: Exception | None = None) -> str:
    """Say what was given, where it was looked for, and which neighbour may have been meant.

    Args:
        what (`str`):
            What it should have been, such as `"model"`.
        name (`str` or `Path`):
            Name that was given.
        error (`Exception`, *optional*):
            What the Hub said; without it, only a file can have been meant.

    Returns:
        `str`: One or two sentences, without what to give instead.
    """
    path = Path(name)
    near: list[str] = []
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    hint = f" Did you mean '{path.parent / near[0]}'?" if near else ""
    hub = "" if error is None else f" nor one that can be had from the hub ({' '.join(str(error).split())})"
    start = f"The {what} '{name}' is " + ("not" if error is None else "neither a folder")
    return f"{start} here ('{path.absolute()}' does not exist){hub}.{hint}"


@contextmanager
def model_named(name: Any, what: str = "model") -> Iterator[None]:
    """Say of a model or tokenizer that cannot be loaded in the block what was given and what to give.

    Args:
        name (`str` or `Path`):
            Its folder or Hub id.
        what (`str`, *optional*, defaults to `"model"`):
            What it is.

    Raises:
        `OSError`: When the block raises one, or the name can be none on the Hub.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (OSError, HFValidationError) as error:
        start = (
            f"The {what} '{name}' cannot be loaded ({' '.join(str(error).split())})."
            if Path(name).exists()
            else say_missing(what, name, error)
        )
        raise OSError(
            f"{start} Give a folder that `save_pretrained` wrote (config.json, tokenizer, weights in safetensors "
            "format), or the id of one on the hub."
        ) from error
