"""Secrets stay out of manifests, records and messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


MASK = "***"

# Names whose text is a secret. Tokens of a vocabulary have such names too, and are none.
_SECRET_NAME = re.compile(
    r"(^|[_-])(token|(api|access|private|secret|signing)[_-]?key|secret|password|passwd|authorization|credentials?)$",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"(^|[_-])(bos|eos|pad|unk|sep|cls|mask|image|audio|video|stop)_token$", re.IGNORECASE)
# User and password of an address, and what keys of well-known services look like.
_IN_TEXT = (
    (re.compile(r"(?<=://)[^/?#@\s]+(?=@)"), MASK),
    (re.compile(r"\b(hf_|sk-)[\w*-]{6,}"), r"\1" + MASK),
    (re.compile(r"\b(Bearer\s+)\S+"), r"\1" + MASK),
    (re.compile(r"(?i)([?&](?:token|api_?key|key|password|secret)=)[^&#\s]+"), r"\1" + MASK),
)


def mask_secrets(value: Any) -> Any:
    """Copy of a value in which tokens, keys and passwords are masked, at any depth.

    Args:
        value (`Any`):
            Settings: mappings and lists of them are searched. A text under a name such as `hub_token` or `api_key` is
            masked whole; in any other text, user and password of addresses and what looks like a key are.

    Returns:
        `Any`: The copy.
    """
    if isinstance(value, Mapping):
        return {
            name: MASK if item and isinstance(item, str) and _is_secret(str(name)) else mask_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_secrets(item) for item in value]
    if isinstance(value, str):
        for pattern, masked in _IN_TEXT:
            value = pattern.sub(masked, value)
    return value


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and _NO_SECRET.search(name) is None
