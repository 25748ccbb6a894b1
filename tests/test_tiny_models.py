"""The tiny models other tests train with really train, and have the properties those tests rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response, supports_tool_calling

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward


def test_tokenizer_has_merged_delimiters_and_split_characters(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tiny_tokenizer) <= 400
    assert tiny_tokenizer.tokenize("x.\n\ny:\n\n") == ["x", ".ĊĊ", "y", ":ĊĊ"]
    assert len(tiny_tokenizer.tokenize("漢")) == 3
    text = "héllo 漢字.\n\n  x\n\n\n\ty 🎉"
    assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


def test_chat_template_supports_tools(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert supports_tool_calling(tiny_tokenizer)
    assert is_chat_template_prefix_preserving(tiny_tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    prefix = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    reply = tiny_tokenizer('now <call>{"name": "add", "arguments": {"a": 3}}</call><|end|>')["input_ids"]
    message = parse_response(tiny_tokenizer, reply, prefix=prefix)
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}]


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_stock_grpo_trains(tiny_model_path: str, tmp_path: Path, beta: float, conversational: bool) -> None:
    trainer = GRPOTrainer(
        model=tiny_model_path,
        reward_funcs=token_reward,
        args=make_grpo_args(GRPOConfig, tmp_path, beta=beta),
        train_dataset=prompt_dataset(conversational=conversational),
    )
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    assert all(float(entry["reward_std"]) > 0 for entry in logs)
    assert not before.equal(trainer.model.lm_head.weight)
