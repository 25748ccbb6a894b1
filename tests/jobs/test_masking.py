"""Secrets are masked by name and by look, at any depth; tokens of a vocabulary are none."""

from __future__ import annotations

from typing import Any

import pytest

from trl_prl.jobs.masking import mask_secrets


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ({"hub_token": "abc", "api_key": "x"}, {"hub_token": "***", "api_key": "***"}),
        ({"init": [{"token": "abc", "n": 1}]}, {"init": [{"token": "***", "n": 1}]}),
        ({"Authorization": "Basic q", "db-password": "p"}, {"Authorization": "***", "db-password": "***"}),
        ({"token": True, "api_key": None, "hub_token": ""}, {"token": True, "api_key": None, "hub_token": ""}),
        ({"eos_token": "</s>", "max_tokens": 5}, {"eos_token": "</s>", "max_tokens": 5}),
        ("http://me:secret@host:8000/v1", "http://***@host:8000/v1"),
        ("http://host/v1?api_key=abc&n=2", "http://host/v1?api_key=***&n=2"),
        ("Incorrect API key provided: sk-abcdefgh1234.", "Incorrect API key provided: sk-***."),
        (["hf_abcdefghij", ("Bearer abcdef123",)], ["hf_***", ["Bearer ***"]]),
        ("ask-and-answer, user@host, 1 < 2", "ask-and-answer, user@host, 1 < 2"),
    ],
)
def test_masked(value: Any, masked: Any) -> None:
    assert mask_secrets(value) == masked
