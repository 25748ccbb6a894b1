"""Stepwise rows as tokens and labels: positions of steps, soft labels, batches."""

from __future__ import annotations

import itertools
import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tokenizers_for_tests as tokenizers
from tests.benchmarks.arithmetic.task import build_arithmetic_tokenizer
from tests.tiny_models import build_tokenizer
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.verifier.batches import StepwiseCollator, gather_positions
from trl_prl.verifier.dataset import prepare_row
from trl_prl.verifier.rows import (
    clean_labels,
    cut_after_first_error,
    render_prompt,
    tokenize_stepwise,
)
from trl_prl.verifier.settings import VerifierSettings


SETTINGS = VerifierSettings()
ALL = {
    "byte-level": tokenizers.byte_level_tokenizer,
    "sentencepiece": tokenizers.sentencepiece_bpe_tokenizer,
    "wordpiece": tokenizers.wordpiece_tokenizer,
    "tiny": build_tokenizer,
    "characters": build_arithmetic_tokenizer,
}
TEXT = st.text(st.sampled_from("ab1 \n.é数😀"), max_size=12)


@cache
def cached(name: str) -> tuple[Any, TokenPieces]:
    tokenizer = ALL[name]()
    return tokenizer, TokenPieces(tokenizer)


def covered_text(tokenizer: Any, ids: list[int], position: int) -> str:
    """Text of the tokens up to a position."""
    return tokenizer.decode(ids[: position + 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)


# ---- positions ----


def test_steps_are_read_at_the_token_of_their_last_character() -> None:
    tokenizer = build_arithmetic_tokenizer()
    tokens = tokenize_stepwise(tokenizer, "1+2-4=", ["3\n", "-1\n", "#-1"], SETTINGS)
    assert [covered_text(tokenizer, tokens.input_ids, p) for p in tokens.positions] == [
        "1+2-4=",
        "1+2-4=3\n",
        "1+2-4=3\n-1\n",
        "1+2-4=3\n-1\n#-1",
    ]
    assert tokens.num_merged == tokens.num_truncated == 0


def test_text_is_tokenised_whole_and_not_step_by_step() -> None:
    # Step by step, the merged token ".\n\n" could not arise where a step ends between its characters.
    tokenizer = tokenizers.byte_level_tokenizer()
    steps = ["Then we get 42.", "\n\n", "So the answer is 42."]
    tokens = tokenize_stepwise(tokenizer, "First we add.\n\n", steps, SETTINGS)
    natural = tokenizer("First we add.\n\n" + "".join(steps), add_special_tokens=False)["input_ids"]
    apart = [i for step in steps for i in tokenizer(step, add_special_tokens=False)["input_ids"]]
    assert tokens.input_ids == natural
    assert tokens.input_ids[-len(apart) :] != apart


def test_two_steps_that_end_in_one_token_share_its_position_and_are_counted() -> None:
    tokenizer = tokenizers.byte_level_tokenizer()
    tokens = tokenize_stepwise(tokenizer, "Add.\n\n", ["Then we get 42.", "\n\n", "So"], SETTINGS)
    assert tokens.positions[1] == tokens.positions[2] < tokens.positions[3]
    assert tokens.num_merged == 1


def test_an_empty_step_shares_the_position_before_it() -> None:
    tokens = tokenize_stepwise(build_arithmetic_tokenizer(), "1+2=", ["", "3\n", ""], SETTINGS)
    assert tokens.positions == [3, 3, 5, 5]
    assert tokens.num_merged == 2


def test_value_of_the_prompt_does_not_depend_on_the_solution() -> None:
    # The solution starts with a character that merges with the prompt's last one.
    tokenizer = tokenizers.byte_level_tokenizer()
    alone = tokenize_stepwise(tokenizer, "First we add 12.\n\nhello", [], SETTINGS)
    for steps in (["\n\nThen"], [" world"], ["o"], ["é"], ["\n"]):
        followed = tokenize_stepwise(tokenizer, "First we add 12.\n\n", steps, SETTINGS)
        end = followed.positions[0] + 1
        assert followed.input_ids[:end] == alone.input_ids[:end]


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=50)
@given(prompt=TEXT.map(lambda text: "1=" + text), steps=st.lists(TEXT, max_size=5))
def test_positions_for_every_tokenizer_and_text(name: str, prompt: str, steps: list[str]) -> None:
    tokenizer, pieces_of = cached(name)
    # A first token that reaches into the solution leaves the prompt without one; here it never does.
    tokens = tokenize_stepwise(tokenizer, prompt, steps, SETTINGS, pieces_of)
    assert len(tokens.positions) == len(steps) + 1
    assert all(a <= b for a, b in itertools.pairwise(tokens.positions))
    assert tokens.positions[-1] < len(tokens.input_ids)
    if name in ("byte-level", "tiny"):
        # Exact for byte-level tokenizers: the tokens up to a position hold the prefix, those before it do not.
        text, pieces = prompt, tokenizer.convert_ids_to_tokens(tokens.input_ids)
        sizes = [len(piece) for piece in pieces]  # one character of the alphabet per byte
        for step, position in zip(steps, tokens.positions[1:], strict=True):
            text += step
            assert sum(sizes[: position + 1]) >= len(text.encode())
            assert sum(sizes[:position]) < len(text.encode())


def test_a_character_spread_over_tokens_ends_at_its_last_token() -> None:
    tokenizer = build_tokenizer()
    tokens = tokenize_stepwise(tokenizer, "a😀", ["b😀", "c"], SETTINGS)
    assert len(tokens.input_ids) == 1 + 4 + 1 + 4 + 1
    assert tokens.positions == [4, 9, 10]


def test_offsets_are_used_where_the_tokenizer_changes_the_text() -> None:
    tokenizer = tokenizers.wordpiece_tokenizer()
    tokens = tokenize_stepwise(tokenizer, "hello world.", [" Hello  WORLD.\n\n", "Done."], SETTINGS)
    words = tokenizer.convert_ids_to_tokens(tokens.input_ids)
    assert len(words) == tokens.positions[2] + 1
    assert "".join(words[: tokens.positions[1] + 1]).lower().replace("##", "").count("world") == 2


def test_a_start_token_is_added_where_the_tokenizer_adds_one() -> None:
    tokenizer = build_arithmetic_tokenizer()
    plain = tokenize_stepwise(tokenizer, "1+2=", ["3"], SETTINGS)

    class WithStart:
        is_fast = True
        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True, **kwargs: Any) -> Any:
            encoding = tokenizer(text, add_special_tokens=False, **kwargs)
            if add_special_tokens:
                encoding["input_ids"] = [1, *encoding["input_ids"], 1]
            return encoding

        def __getattr__(self, name: str) -> Any:
            return getattr(build_arithmetic_tokenizer(), name)

        def __len__(self) -> int:
            return len(tokenizer)

    started = tokenize_stepwise(WithStart(), "1+2=", ["3"], SETTINGS)
    # What it adds at the end would stand behind the last step.
    assert started.input_ids == [1, *plain.input_ids]
    assert started.positions == [position + 1 for position in plain.positions]


def test_solutions_beyond_the_length_keep_their_head() -> None:
    tokenizer = build_arithmetic_tokenizer()
    full = tokenize_stepwise(tokenizer, "1+2-4=", ["3\n", "-1\n", "#-1"], SETTINGS)
    cut = tokenize_stepwise(tokenizer, "1+2-4=", ["3\n", "-1\n", "#-1"], VerifierSettings(max_length=9))
    assert cut.input_ids == full.input_ids[:9]
    assert cut.positions == [5, 7, -1, -1]
    assert cut.num_truncated == 2
    nothing = tokenize_stepwise(tokenizer, "1+2-4=", ["3\n"], VerifierSettings(max_length=4))
    assert nothing.positions == [-1, -1]


# ---- prompts ----


def test_plain_and_conversational_prompts_read_the_same() -> None:
    tokenizer = build_tokenizer()
    messages = [{"role": "user", "content": "Add 1."}]
    for prompt_format in ("text", "chat"):
        chosen = VerifierSettings(prompt_format=prompt_format, prompt_suffix="\n")
        assert render_prompt(tokenizer, messages, chosen) == render_prompt(tokenizer, "Add 1.", chosen)
    assert render_prompt(tokenizer, messages, SETTINGS) == "Add 1."
    chat = VerifierSettings(prompt_format="chat")
    assert render_prompt(tokenizer, messages, chat) == "<|start|>user\nAdd 1.<|end|><|start|>assistant\n"


def test_prompts_that_cannot_be_read_raise() -> None:
    with pytest.raises(ValueError, match="no chat template"):
        render_prompt(build_arithmetic_tokenizer(), "1+2=", VerifierSettings(prompt_format="chat"))
    with pytest.raises(ValueError, match="reads text only"):
        render_prompt(build_tokenizer(), [{"role": "user", "content": [{"type": "image"}]}], SETTINGS)
    with pytest.raises(ValueError, match="reads text only"):
        render_prompt(build_tokenizer(), None, SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no token of its own"):
        tokenize_stepwise(build_tokenizer(), "", ["a"], SETTINGS)


@pytest.mark.parametrize(
    "bad",
    [{"prompt_format": "html"}, {"best_of_k": 0}, {"max_length": 0}, {"temperature": 0.0}, {"offset": math.nan}],
)
def test_settings_out_of_range_raise(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`"):
        VerifierSettings(**bad)


def test_settings_of_a_later_version_are_read() -> None:
    saved = VerifierSettings(prover="bo4", best_of_k=4)
    assert VerifierSettings.from_dict({**saved.to_dict(), "unknown": 1}) == saved


# ---- labels ----


def test_soft_labels_are_not_floored() -> None:
    assert clean_labels([0.7, 0.999, 0.0, 1.0], 4) == [0.7, 0.999, 0.0, 1.0]


def test_booleans_and_integers_are_labels() -> None:
    assert clean_labels([True, False, 1, 0], 4) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("mark", [None, math.nan, -100, -100.0])
def test_no_label_is_neither_true_nor_zero(mark: Any) -> None:
    cleaned = clean_labels([0.5, mark], 2)
    assert cleaned[0] == 0.5
    assert math.isnan(cleaned[1])


@pytest.mark.parametrize("label", [-1, 1.5, math.inf, 100])
def test_labels_out_of_range_raise(label: float) -> None:
    with pytest.raises(ValueError, match="probabilities of success"):
        clean_labels([label], 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completions": "ab"}, "no list of steps"),
        ({"completions": [["a"], ["b"]]}, "a step is a text"),
        ({"completions": ["a", "b\ud800"]}, "no tokenizer reads"),
        ({"labels": [1, -1]}, "A step has a label that is -1"),
        ({"labels": ["yes", "no"]}, "no number"),
        ({"initial_value": 50}, "The initial value is 50"),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_named(changes: dict[str, Any], message: str) -> None:
    row = {"prompt": "q\n", "completions": ["a", "b"], "labels": [1, 0.3], **changes}
    args = SimpleNamespace(settings=SETTINGS, step_separator="", cut_at_first_error=False)
    with pytest.raises(ValueError, match=f"Row 7 of the train data set cannot be used: .*{message}"):
        prepare_row(row, 7, build_tokenizer(), args, "train")


def test_one_label_per_step() -> None:
    with pytest.raises(ValueError, match="2 labels for 3 steps"):
        clean_labels([1, 0], 3)


def test_cut_keeps_the_first_error_and_drops_the_rest() -> None:
    steps = ["a", "b", "c", "d"]
    assert cut_after_first_error(steps, [1.0, math.nan, 0.0, 1.0]) == (
        ["a", "b", "c"],
        [1.0, pytest.approx(math.nan, nan_ok=True), 0.0],
    )
    assert cut_after_first_error(steps, [1.0, 0.2, 0.1, 1.0])[0] == steps


# ---- batches ----


def test_collator_masks_by_length_and_never_by_token_id() -> None:
    # The padding is also the end token of the first row.
    rows = [
        {"input_ids": [5, 6, 0], "positions": [1, 2], "labels": [math.nan, 0.25]},
        {"input_ids": [7], "positions": [0, -1, -1], "labels": [1.0, 0.5, math.nan]},
    ]
    batch = StepwiseCollator(pad_token_id=0, pad_to_multiple_of=4)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 0, 0], [7, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["position_mask"].tolist() == [[True, True, False], [True, False, False]]
    assert batch["label_mask"].tolist() == [[False, True, False], [True, False, False]]
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].isfinite().all()
    assert batch["labels"][batch["label_mask"]].tolist() == [0.25, 1.0]


def test_logits_are_read_at_positions_also_where_they_underflow() -> None:
    # Selecting by `probs != 0` would lose the step whose probability underflows, and shift all after it.
    logits = torch.tensor([[[-200.0], [3.0], [-200.0], [1.0]]])
    found = gather_positions(logits, torch.tensor([[0, 2, 3, 3]]))
    assert found.tolist() == [[-200.0, -200.0, 1.0, 1.0]]
    assert torch.sigmoid(found)[0, 0] == 0.0


def test_two_labels_are_one_logit() -> None:
    logits = torch.randn(2, 5, 2, dtype=torch.float64)
    found = torch.sigmoid(gather_positions(logits, torch.tensor([[0, 4], [2, 3]])))
    expected = logits.softmax(-1)[..., 1]
    torch.testing.assert_close(found[0], expected[0, [0, 4]])
    torch.testing.assert_close(found[1], expected[1, [2, 3]])
    # What is not computed in float64 has values in float32.
    assert gather_positions(logits.bfloat16(), torch.tensor([[0, 4], [2, 3]])).dtype == torch.float32
