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
        (
            {"api_keys": ["a", {"b": "c"}], "access_tokens": ["d"]},
            {"api_keys": ["***", {"b": "***"}], "access_tokens": ["***"]},
        ),
        ({"stop_tokens": ["</s>"], "num_tokens": [3]}, {"stop_tokens": ["</s>"], "num_tokens": [3]}),
        ("http://me:p@ss@host/v1", "http://***@host/v1"),
        (
            "http://h/v1?access_token=abc&X-Amz-Signature=def&n=2",
            "http://h/v1?access_token=***&X-Amz-Signature=***&n=2",
        ),
        ("You sent x-api-key: abc, no good", "You sent x-api-key: ***, no good"),
        ('{"api_key": "abc", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("{'Authorization': 'Basic abc='}", "{'Authorization': 'Basic ***'}"),
        (
            "Use the key of the servers: --api_key, or fewer tokens: 3",
            "Use the key of the servers: --api_key, or fewer tokens: 3",
        ),
        ("http://h:1,http://i:2,token=abc,timeout=3", "http://h:1,http://i:2,token=***,timeout=3"),
        ("judge,family=judge,api_key=abc", "judge,family=judge,api_key=***"),
        ('{"token": "abc", "n": 1}', '{"token": "***", "n": 1}'),
        ('{"eos_token": "</s>"}', '{"eos_token": "</s>"}'),
        ("ask-and-answer, user@host, 1 < 2", "ask-and-answer, user@host, 1 < 2"),
        ("org/hf_policy_step100", "org/hf_policy_step100"),
        (f"https://host/hf_{'aB3' * 12}/v1", "https://host/hf_***/v1"),
    ],
)
def test_masked(value: Any, masked: Any) -> None:
    assert mask_secrets(value) == masked
