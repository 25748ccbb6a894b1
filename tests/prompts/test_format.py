"""Prompts by options, and as token ids: the same as TRL's GRPO trainer gives them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import CHAT_TEMPLATE, build_model, build_tokenizer, make_grpo_args, token_reward
from trl_prl import PromptFormat
from trl_prl.prompts import chat
from trl_prl.prompts.chat import content_text, end_token_ids, prompt_token_ids


USER = [{"role": "user", "content": "1+1="}]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@pytest.fixture(autouse=True)
def forget_warnings() -> None:
    chat._warned.clear()


def test_by_default_nothing_is_changed() -> None:
    assert PromptFormat().prompt_of({"prompt": "1+1="}) == "1+1="
    assert PromptFormat("question").prompt_of({"question": USER, "prompt": "other"}) == USER
    assert not PromptFormat(chat_template_kwargs={"a": 1}).changes_prompts


def test_template_role_and_system_prompt() -> None:
    options = PromptFormat(prompt_template="Q: {prompt} \\boxed{{}}", system_prompt="Be brief.", as_user_message=True)
    wanted = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: 1+1= \\boxed{}"}]
    assert options.prompt_of({"prompt": "1+1="}) == wanted
    assert options.prompt_of({"prompt": USER}) == wanted
    assert USER == [{"role": "user", "content": "1+1="}]  # not changed in place


def test_a_system_message_of_the_data_stays_and_the_last_question_is_asked() -> None:
    talk = [
        {"role": "system", "content": "Own."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second"},
    ]
    found = PromptFormat(prompt_template="{prompt}!", system_prompt="Other.").apply(talk)
    assert [message["content"] for message in found] == ["Own.", "first", "yes", "second!"]


@pytest.mark.parametrize(
    ("options", "prompt", "message"),
    [
        ({"prompt_template": "no field"}, None, "fields are none"),
        ({"prompt_template": "{prompt} {answer}"}, None, "'answer', 'prompt'"),
        ({"prompt_template": "{prompt} \\boxed{}"}, None, "braces"),
        ({"prompt_template": "{prompt"}, None, "braces"),
        ({"chat_template_kwargs": "{enable"}, None, "not JSON"),
        ({"chat_template_kwargs": "[1]"}, None, "names no arguments"),
        ({"system_prompt": "a"}, "text", "as_user_message"),
        (
            {"prompt_template": "{prompt}!"},
            [{"role": "user", "content": [{"type": "image"}]}],
            "no message of the user",
        ),
        ({"prompt_template": "{prompt}!"}, 3, "neither text nor messages"),
        ({"as_user_message": True}, [], "neither text nor messages"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptFormat(**options).apply(prompt)
    with pytest.raises(ValueError, match="not 'prompt'"):
        PromptFormat().prompt_of({"question": "a"})


def test_options_survive_json() -> None:
    options = PromptFormat("q", "{prompt}?", "s", True, '{"enable_thinking": false}')
    assert options.chat_template_kwargs == {"enable_thinking": False}
    assert PromptFormat.from_dict({**options.to_dict(), "model": "x"}) == options


@given(text=TEXTS, before=TEXTS, after=TEXTS, system=TEXTS)
def test_what_was_applied_is_found_in_the_prompt(text: str, before: str, after: str, system: str) -> None:
    template = "{}{{prompt}}{}".format(*(part.replace("{", "{{").replace("}", "}}") for part in (before, after)))
    options = PromptFormat(prompt_template=template, system_prompt=system, as_user_message=True)
    prompt = options.apply(text)
    assert options.missing_in(prompt) == []
    assert prompt[-1]["content"] == before + text + after
    other = PromptFormat(prompt_template="§" + template, system_prompt=system + "§")
    assert "system_prompt" in other.missing_in(prompt)


# ---- token ids ----


TALKS: list[Any] = [
    USER,
    [{"role": "system", "content": "Add."}, *USER],
    # TRL begins a new turn here, too.
    [*USER, {"role": "assistant", "content": "It is"}],
]


def test_ids_are_those_that_trl_gives_the_policy(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        CHAT_TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<t>{% endif %}"
    )
    arguments = {"enable_thinking": False}

    def double(x: int) -> int:
        """Doubles.

        Args:
            x: A number.
        """
        return 2 * x

    for prompts, tools in ((TALKS, None), (TALKS, [double]), (["1+1=", "Add 2."], None)):
        trainer = GRPOTrainer(
            build_model(tokenizer),
            token_reward,
            make_grpo_args(GRPOConfig, tmp_path, chat_template_kwargs=arguments),
            Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            tools=tools,
        )
        expected = trainer._tokenize_prompts(prompts)[0]
        options = PromptFormat(chat_template_kwargs=arguments)
        for prompt, ids in zip(prompts, expected, strict=True):
            extra = {} if isinstance(prompt, str) else {"tools": tools, "chat_template": trainer.chat_template}
            assert list(options.token_ids(tokenizer, prompt, **extra)) == ids


def test_text_with_a_chat_model_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = build_tokenizer()
    with caplog.at_level(logging.WARNING, "trl_prl.prompts.chat"):
        for _ in range(3):
            prompt_token_ids(tokenizer, "1+1=")
        prompt_token_ids(tokenizer, USER)
    assert caplog.text.count("--as_user_message") == 1


def test_nothing_warns_without_a_template_and_messages_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    assert prompt_token_ids(tokenizer, "1+1=") == tuple(tokenizer("1+1=")["input_ids"])
    assert not caplog.records
    with pytest.raises(ValueError, match="has no chat template"):
        prompt_token_ids(tokenizer, USER)


def test_what_ends_a_turn_is_read_off_the_template() -> None:
    tokenizer = build_tokenizer()
    eos, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|start|>")
    assert end_token_ids(tokenizer, is_chat=True) == end_token_ids(tokenizer, is_chat=False) == [eos]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|start|>\n{% endfor %}"
    assert end_token_ids(tokenizer, is_chat=True) == [start]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert end_token_ids(tokenizer, is_chat=True) == [eos]
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        end_token_ids(tokenizer, is_chat=False)


def test_text_of_parts_that_have_none() -> None:
    parts = [
        {"type": "image", "text": None, "image": "x.png"},
        {"type": "text", "text": "What is it?"},
        {"type": None, "text": None},
    ]
    assert content_text(parts) == "[image]What is it?[other]"
    assert content_text(None) == ""
    assert content_text("a") == "a"
