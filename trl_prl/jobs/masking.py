"""Secrets stay out of manifests, records and messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


MASK = "***"

# Names whose text is a secret. Tokens of a vocabulary have such names too, and are none.
_SECRET_NAME = re.compile(
    r"(^|[_-])(tokens?|(api|access|private|secret|signing)[_-]?keys?|secrets?|passwords?|passwd|authorization"
    r"|credentials?)$",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(
    r"(^|[_-])(bos|eos|pad|unk|sep|cls|mask|image|audio|video|stop|special)_tokens?$", re.IGNORECASE
)
# User and password of an address, and what keys of well-known services look like.
_IN_TEXT = (
    (re.compile(r"(?<=://)[^/?#\s]+(?=@)"), MASK),
    # Not behind a slash: `org/hf_policy_step100` and `org/hf_policy_step200` are two models, and no keys.
    (re.compile(r"(?<![\w/])(hf_|sk-)[\w*-]{6,}"), r"\1" + MASK),
    (re.compile(r"\b(hf_)[A-Za-z0-9]{30,}"), r"\1" + MASK),
    (re.compile(r"\b(Bearer\s+)\S+"), r"\1" + MASK),
    (re.compile(r"(?i)([?&][\w.-]*(?:token|key|password|passwd|secret|auth|sig|signature)=)[^&#\s]+"), r"\1" + MASK),
    # As in the options behind the name of a process reward.
    (re.compile(r"(?i)(,\s*[\w.-]*(?:token|key|password|passwd|secret)=)[^,\s]+"), r"\1" + MASK),
    # As in JSON.
    (
        re.compile(
            r"(?i)([\"'](?:(?:hf|hub|access|auth)[_-])?(?:token|password|passwd|secret)[\"']\s*:\s*([\"']))(?:(?!\2).)*"
        ),
        r"\1" + MASK,
    ),
    # As in headers, settings and JSON that somebody repeats.
    (
        re.compile(
            r"(?i)(\b(?:x-)?(?:api[_-]?key|(?:access|auth|hub|hf)[_-]token)[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&}]+"
        ),
        r"\1" + MASK,
    ),
    (re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?)[^\s\"',;}]+"), r"\1" + MASK),
)


def mask_secrets(value: Any) -> Any:
    """Copy of a value in which tokens, keys and passwords are masked, at any depth.

    Args:
        value (`Any`):
            Settings: mappings and lists of them are searched. Texts under a name such as `hub_token` or `api_keys` are
            masked whole; in any other text, user and password of addresses and what looks like a key are.

    Returns:
        `Any`: The copy.
    """
    if isinstance(value, Mapping):
        return {name: _mask_all(item) if _is_secret(str(name)) else mask_secrets(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_secrets(item) for item in value]
    if isinstance(value, str):
        for pattern, masked in _IN_TEXT:
            value = pattern.sub(masked, value)
    return value


def _mask_all(value: Any) -> Any:
    """Texts masked, whatever they say: there are settings with several keys under one name."""
    if isinstance(value, Mapping):
        return {name: _mask_all(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask_all(item) for item in value]
    return MASK if value and isinstance(value, str) else value


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and _NO_SECRET.search(name) is None
