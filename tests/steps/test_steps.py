"""Splitting sampled completions into steps: lossless, exact at the token, blind to padding and tool output."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.tokenizers_for_tests import (
    all_tokenizers,
    byte_level_tokenizer,
    sentencepiece_bpe_tokenizer,
    wordpiece_tokenizer,
)
from trl_prl.steps.markdown import protected_spans
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import (
    DelimiterSplitter,
    FixedLengthSplitter,
    MarkdownSplitter,
    RegexSplitter,
    SentenceSplitter,
    SplitBatch,
    TokenPieces,
    TurnSplitter,
    get_splitter,
    split_completions,
    step_ids_from_ends,
)
from trl_prl.types import StepSplitter


KINDS = list(all_tokenizers())
NAMES = [
    "fixed",
    "newline",
    "blank_line",
    "sentence",
    "markdown",
    "turn",
    r"regex:(?=^Step)|[;:]\s*",
    "delimiter:###",
    "delimiter:数学",
]
TEXT_NAMES = [name for name in NAMES if name not in ("fixed", "turn")]
TAGS = re.compile(r"</?(?:think|thinking|thought|reasoning|answer)>")

# Text made of what splitters look at, and any Unicode.
FRAGMENTS = [
    *["\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", " ", "\t", "\n \n", "\0", "\u3000", "\u00a0", "\u2028"],
    *["<think>", "</think>", "<answer>", "</answer>", "<", "think>"],
    *["$$", r"\[", r"\]", r"\\[2pt]", r"\begin{align*}", r"\end{align*}", r"\begin{cases}", r"\end{cases}", r"\\"],
    *["```", "```py\n", "\n```\n", "~~~", "| a | b |\n", "|---|:-:|\n", "--- | ---\n", "|"],
    *["Dr. ", "e.g. ", "3.14", ". ", "! ", "?", "。", "1. ", "- item", "# Head", "###", "####", "Step 2", ";"],
    *["数学", "é", "e\u0301", "👩‍👩‍👧", "🧮", "word", "Then ", "x = 6", "a", "B"],
]
FRAGMENT_TEXT = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)
TEXT = FRAGMENT_TEXT | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PIECES = st.lists(
    st.sampled_from(FRAGMENTS).map(str.encode)
    | st.binary(max_size=3)
    | st.sampled_from([b"", b".\n\n", b"\n", b" the"]),
    max_size=40,
)


class CharacterCountSplitter:
    """A user's own splitter: only the protocol's one method."""

    def step_ends(self, pieces: Sequence[bytes]) -> list[int]:
        return sorted({*range(4, len(pieces), 4), len(pieces)} - {0})


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _is_blank(step: bytes) -> bool:
    return not TAGS.sub("", step.decode("utf-8", "surrogateescape")).strip()


def _chunks(pieces: Sequence[bytes], ends: list[int]) -> list[bytes]:
    return [b"".join(pieces[a:b]) for a, b in pairwise([0, *ends])]


def _split_ids(name: str, tokenizer: PreTrainedTokenizerFast, ids: list[int], length: int = 256) -> SplitBatch:
    row = torch.tensor([ids], dtype=torch.int64).reshape(1, len(ids))
    splitter = get_splitter(name, step_length=length)
    return split_completions(splitter, TokenPieces(tokenizer), row, torch.ones_like(row, dtype=torch.bool))


def _split(name: str, text: str, tokenizer: PreTrainedTokenizerFast | None = None) -> list[str]:
    tokenizer = tokenizer or byte_level_tokenizer()
    return _split_ids(name, tokenizer, _ids(tokenizer, text)).steps[0]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Completions of random ids (not canonical tokenisations) under random masks, holes and empty rows included."""
    tokenizer = byte_level_tokenizer()
    num_rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    delimiters = [i for i in range(len(tokenizer)) if "Ċ" in str(tokenizer.convert_ids_to_tokens(i))]
    an_id = st.integers(0, len(tokenizer) + 3) | st.sampled_from(delimiters)
    ids = draw(st.lists(st.lists(an_id, min_size=length, max_size=length), min_size=num_rows, max_size=num_rows))
    a_row = st.lists(st.booleans(), min_size=length, max_size=length) | st.just([True] * length)
    mask = draw(st.lists(a_row, min_size=num_rows, max_size=num_rows))
    return torch.tensor(ids), torch.tensor(mask)


# --- the protocol ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_named_splitters_follow_the_protocol(name: str) -> None:
    splitter = get_splitter(name)
    assert isinstance(splitter, StepSplitter)
    assert splitter.step_ends([]) == []
    assert splitter.step_ends([b"x"]) == [1]
    assert splitter == get_splitter(name)
    assert hash(splitter) == hash(get_splitter(name))


@pytest.mark.parametrize("name", NAMES)
@given(pieces=PIECES, length=st.integers(1, 5))
def test_ends_partition_the_pieces_without_blank_steps(name: str, pieces: list[bytes], length: int) -> None:
    ends = get_splitter(name, step_length=length).step_ends(pieces)
    assert all(a < b for a, b in pairwise([0, *ends]))
    assert ends[-1:] == ([len(pieces)] if pieces else [])
    steps = _chunks(pieces, ends)
    assert len(steps) <= 1 or not any(map(_is_blank, steps))


@pytest.mark.parametrize("name", TEXT_NAMES)
@given(text=TEXT, data=st.data())
def test_ends_do_not_depend_on_how_text_is_cut_into_tokens(name: str, text: str, data: st.DataObject) -> None:
    """A boundary is at the first token end at or after the boundary of the finest cut, one byte per token."""
    raw = text.encode()
    fine = np.array(get_splitter(name).boundaries(raw), dtype=np.int64)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(raw) - 1, 1)), max_size=20)) | {len(raw)})
    pieces = [raw[a:b] for a, b in pairwise([0, *cuts])]
    ends = np.cumsum([len(piece) for piece in pieces])
    expected = sorted({int(np.searchsorted(ends, offset)) + 1 for offset in fine if offset > 0} | {len(pieces)})
    got = get_splitter(name).step_ends(pieces)
    assert set(got) <= set(expected)
    steps = _chunks(pieces, expected)
    if not any(map(_is_blank, [raw, *steps])):
        assert got == expected


@pytest.mark.parametrize("name", ["newline", "blank_line", "fixed", "delimiter:###", "sentence"])
@given(text=st.lists(st.sampled_from(["a", "\n", "\n\n", ". ", "###", "The", "é"]), max_size=20).map("".join))
def test_truncation_moves_no_earlier_step_end(name: str, text: str) -> None:
    pieces = [character.encode() for character in text]
    full = get_splitter(name, step_length=3).step_ends(pieces)
    for length in range(1, len(pieces)):
        ends = get_splitter(name, step_length=3).step_ends(pieces[:length])
        assert set(ends[:-1]) <= set(full)


@given(text=FRAGMENT_TEXT)
def test_delimiter_splitter_equals_a_plain_loop(text: str) -> None:
    for delimiter, breaks in (("\n", 1), ("\n\n", 2)):
        ends, position = [], 0
        while (first := text.find("\n", position)) >= 0:
            end, count, probe = first + 1, 1, first + 1
            while probe < len(text) and text[probe] in " \t\r\n":
                probe += 1
                if text[probe - 1] == "\n":
                    end, count = probe, count + 1
            if count >= breaks:
                ends.append(len(text[:end].encode()))
            position = end
        assert DelimiterSplitter(delimiter).boundaries(text.encode()) == ends


@given(data=st.binary(max_size=40))
def test_regex_offsets_are_bytes_also_in_invalid_utf8(data: bytes) -> None:
    assert RegexSplitter("\n").boundaries(data) == [i + 1 for i, byte in enumerate(data) if byte == 10]


# --- batches --------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(name=st.sampled_from(NAMES), batch=batches())
def test_steps_partition_the_action_mask_in_order(name: str, batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    token_pieces = TokenPieces(byte_level_tokenizer())
    out = split_completions(get_splitter(name, step_length=3), token_pieces, ids, mask)
    assert out.step_ids.dtype == torch.int64
    assert out.step_ids.shape == ids.shape
    assert torch.equal(out.step_ids >= 0, mask)
    for i in range(len(ids)):
        on_mask = out.step_ids[i][mask[i]].tolist()
        assert sorted(set(on_mask)) == list(range(len(out.step_bytes[i])))
        assert on_mask == sorted(on_mask)
        pieces = token_pieces.pieces(ids[i][mask[i]].tolist())
        assert b"".join(out.step_bytes[i]) == b"".join(pieces)
        for step, raw in enumerate(out.step_bytes[i]):
            own = [piece for piece, s in zip(pieces, on_mask, strict=True) if s == step]
            assert b"".join(own) == raw
            assert raw.decode("utf-8", "replace") == out.steps[i][step]
        assert len(out.step_bytes[i]) <= 1 or not any(map(_is_blank, out.step_bytes[i]))


@settings(max_examples=200)
@given(name=st.sampled_from(NAMES), batch=batches(), left=st.integers(0, 3), right=st.integers(0, 3), data=st.data())
def test_padding_amount_side_and_content_change_nothing(
    name: str, batch: tuple[Tensor, Tensor], left: int, right: int, data: st.DataObject
) -> None:
    ids, mask = batch
    splitter, token_pieces = get_splitter(name, step_length=3), TokenPieces(byte_level_tokenizer())
    out = split_completions(splitter, token_pieces, ids, mask)
    filler = data.draw(st.sampled_from([0, -100, *_ids(byte_level_tokenizer(), ".\n\n")]))
    padded_ids = torch.nn.functional.pad(ids.masked_fill(~mask, filler), (left, right), value=filler)
    padded_mask = torch.nn.functional.pad(mask, (left, right), value=False)
    padded = split_completions(splitter, token_pieces, padded_ids, padded_mask)
    assert torch.equal(padded.step_ids[:, left : left + ids.shape[1]], out.step_ids)
    assert padded.step_bytes == out.step_bytes


@settings(max_examples=200)
@given(name=st.sampled_from(NAMES), batch=batches(), data=st.data())
def test_permuting_rows_permutes_steps(name: str, batch: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    ids, mask = batch
    order = data.draw(st.permutations(range(len(ids))))
    splitter, token_pieces = get_splitter(name, step_length=3), TokenPieces(byte_level_tokenizer())
    out = split_completions(splitter, token_pieces, ids, mask)
    permuted = split_completions(splitter, token_pieces, ids[order], mask[order])
    assert torch.equal(permuted.step_ids, out.step_ids[order])
    assert permuted.step_bytes == [out.step_bytes[i] for i in order]


@given(batch=batches())
def test_custom_splitter_needs_only_step_ends(batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    token_pieces = TokenPieces(byte_level_tokenizer())
    out = split_completions(CharacterCountSplitter(), token_pieces, ids, mask)
    assert torch.equal(out.step_ids >= 0, mask)
    for i in range(len(ids)):
        assert b"".join(out.step_bytes[i]) == b"".join(token_pieces.pieces(ids[i][mask[i]].tolist()))


@pytest.mark.parametrize(
    ("ends", "message"),
    [([2], "every token belongs"), ([2, 2, 4], "increase strictly"), ([3, 9], "increase"), ([], "gave the step ends")],
)
def test_custom_splitter_with_wrong_ends_raises(ends: list[int], message: str) -> None:
    class Wrong:
        def step_ends(self, pieces: Sequence[bytes]) -> list[int]:
            return ends

    ids = torch.tensor([_ids(byte_level_tokenizer(), "word word word")[:4]])
    with pytest.raises(ValueError, match=message):
        split_completions(Wrong(), TokenPieces(byte_level_tokenizer()), ids, torch.ones_like(ids, dtype=torch.bool))


def test_mask_of_integers_is_a_mask() -> None:
    ids = torch.tensor([_ids(byte_level_tokenizer(), "one.\n\ntwo.\n\n")])
    token_pieces = TokenPieces(byte_level_tokenizer())
    out = split_completions(DelimiterSplitter(), token_pieces, ids, torch.ones_like(ids))
    assert out.steps == [["one.\n\n", "two.\n\n"]]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) .* shape \(2,\)"):
        split_completions(
            DelimiterSplitter(),
            TokenPieces(byte_level_tokenizer()),
            torch.zeros(2, 3),
            torch.ones(2, dtype=torch.bool),
        )


def test_batch_without_rows_or_columns() -> None:
    token_pieces = TokenPieces(byte_level_tokenizer())
    for shape in ((0, 5), (3, 0)):
        ids = torch.zeros(shape, dtype=torch.int64)
        out = split_completions(DelimiterSplitter(), token_pieces, ids, ids.bool())
        assert out.step_ids.shape == shape
        assert out.steps == [[] for _ in range(shape[0])]


def test_step_ids_from_ends() -> None:
    step_ids = step_ids_from_ends([[2, 3], [], [4], [1, 2, 3, 4]], 4)
    assert step_ids.tolist() == [[0, 0, 1, -1], [-1] * 4, [0] * 4, [0, 1, 2, 3]]
    assert step_ids.dtype == torch.int64
    for bad in ([0, 2], [2, 2], [3, 5]):
        with pytest.raises(ValueError, match="increase strictly"):
            step_ids_from_ends([bad], 4)


# --- plain text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@given(text=TEXT)
def test_text_splits_as_its_tokens(name: str, kind: str, text: str) -> None:
    tokenizer = all_tokenizers()[kind]
    splitter = get_splitter(name, step_length=5)
    steps = split_text(splitter, text, tokenizer)
    assert "".join(steps) == text
    assert all(steps)
    if kind == "byte_level":
        out = split_completions(
            splitter,
            TokenPieces(tokenizer),
            torch.tensor([_ids(tokenizer, text)], dtype=torch.int64),
            torch.ones(1, len(_ids(tokenizer, text)), dtype=torch.bool),
        )
        if not any("\ufffd" in step for step in out.steps[0]):
            assert steps == out.steps[0]


@pytest.mark.parametrize("name", TEXT_NAMES)
@given(text=TEXT)
def test_text_splits_without_a_tokenizer(name: str, text: str) -> None:
    splitter = get_splitter(name)
    steps = split_text(splitter, text)
    assert "".join(steps) == text
    assert [step.encode() for step in steps] == _chunks(
        [c.encode() for c in text], splitter.step_ends([c.encode() for c in text])
    )


def test_text_that_spells_a_special_token_is_kept() -> None:
    text = "one.\n\ntwo<|im_end|>\n\nthree<|im_end|>"
    assert split_text(DelimiterSplitter(), text, byte_level_tokenizer()) == [
        "one.\n\n",
        "two<|im_end|>\n\n",
        text[-15:],
    ]


def test_lone_surrogates_split_without_a_tokenizer() -> None:
    assert split_text(DelimiterSplitter("\n"), "a\ud800\nb") == ["a\ud800\n", "b"]


def test_fixed_length_needs_a_tokenizer_for_text() -> None:
    with pytest.raises(ValueError, match="counts tokens, but plain text has none"):
        split_text(FixedLengthSplitter(4), "some text")


def test_lossy_tokenizer_still_gives_the_text_back() -> None:
    text = "Café  Done!   Then WE get 42."
    steps = split_text(FixedLengthSplitter(2), text, wordpiece_tokenizer())
    assert "".join(steps) == text
    assert len(steps) > 1


# --- get_splitter ---------------------------------------------------------------------------------------------------


def test_get_splitter_names() -> None:
    assert get_splitter("fixed") == FixedLengthSplitter(256)
    assert get_splitter("fixed", step_length=7) == FixedLengthSplitter(7)
    assert get_splitter("newline") == DelimiterSplitter("\n")
    assert get_splitter("blank_line") == DelimiterSplitter("\n\n")
    assert get_splitter("sentence") == SentenceSplitter()
    assert get_splitter("turn") == TurnSplitter()
    assert get_splitter("markdown") == MarkdownSplitter()
    assert get_splitter("markdown_newline") == MarkdownSplitter(newline=True)
    assert get_splitter(r"regex:a:b") == RegexSplitter("a:b")
    assert get_splitter(r"delimiter:\n---\n") == DelimiterSplitter("\n---\n")
    custom = CharacterCountSplitter()
    assert get_splitter(custom) is custom


@pytest.mark.parametrize("name", ["", "lines", "fixed:3", "Newline", "markdown:", "delimiter"])
def test_get_splitter_rejects_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"The step splitter is .* no splitter has that name\. Use 'fixed'"):
        get_splitter(name)


def test_get_splitter_rejects_other_objects() -> None:
    with pytest.raises(TypeError, match="is a int, which has no"):
        get_splitter(256)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["regex:", "regex:(", "delimiter:"])
def test_empty_or_broken_patterns_raise(name: str) -> None:
    with pytest.raises(ValueError, match=r", but |, so |, which "):
        get_splitter(name)


@pytest.mark.parametrize("length", [0, -1])
def test_fixed_length_below_one_raises(length: int) -> None:
    with pytest.raises(ValueError, match="a step has at least one token"):
        get_splitter("fixed", step_length=length)


# --- the traps ------------------------------------------------------------------------------------------------------


def test_delimiter_merged_into_a_longer_token_is_found() -> None:
    tokenizer = byte_level_tokenizer()
    ids = _ids(tokenizer, "Then we get 42.\n\nDone!")
    assert ".ĊĊ" in tokenizer.convert_ids_to_tokens(ids)
    assert _split_ids("blank_line", tokenizer, ids).steps[0] == ["Then we get 42.\n\n", "Done!"]


def test_delimiter_spread_over_tokens_is_found() -> None:
    tokenizer = byte_level_tokenizer()
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    ids = [*_ids(tokenizer, "a"), newline, newline, newline, *_ids(tokenizer, "b")]
    out = _split_ids("blank_line", tokenizer, ids)
    assert out.steps[0] == ["a\n\n\n", "b"]
    assert out.step_ids[0].tolist() == [0, 0, 0, 0, 1]
    llama = sentencepiece_bpe_tokenizer()
    assert llama.convert_tokens_to_ids("\n\n") == llama.unk_token_id
    assert _split("blank_line", "a\n\nb", llama) == [" a\n\n", "b"]


def test_a_start_token_added_by_encode_is_no_delimiter() -> None:
    tokenizer = byte_level_tokenizer()
    ids = [tokenizer.bos_token_id, *_ids(tokenizer, "a b"), tokenizer.bos_token_id, *_ids(tokenizer, "c")]
    assert len(_split_ids("blank_line", tokenizer, ids).steps[0]) == 1


@pytest.mark.parametrize("name", ["newline", "blank_line", "markdown", "sentence", "delimiter:.\n\n", "regex:\\n\\n"])
def test_trailing_delimiter_makes_no_empty_step(name: str) -> None:
    tokenizer = byte_level_tokenizer()
    ids = [*_ids(tokenizer, "First we add.\n\nThen we get 42.\n\n"), tokenizer.eos_token_id]
    out = _split_ids(name, tokenizer, ids)
    assert out.steps[0] == ["First we add.\n\n", "Then we get 42.\n\n"]
    assert out.step_ids[0, -1] == 1


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_completion_truncated_at_a_delimiter_has_one_score_per_step(name: str) -> None:
    tokenizer = byte_level_tokenizer()
    ids = _ids(tokenizer, "First we add.\n\nThen we get 42.\n\nSo the answer is 42.")
    for length in range(1, len(ids) + 1):
        out = _split_ids(name, tokenizer, ids[:length])
        assert len(out.steps[0]) == out.step_ids.max() + 1
        assert "".join(out.steps[0]) == tokenizer.decode(ids[:length])
        assert out.step_ids[0, -1] == len(out.steps[0]) - 1


def test_step_text_is_the_sampled_text() -> None:
    text = "  1) first,\t \n\n 3) third  \n\n\n\n- x  \n"
    assert "".join(_split("newline", text)) == text
    assert _split("newline", text) == ["  1) first,\t \n\n", " 3) third  \n\n\n\n", "- x  \n"]


def test_step_ends_never_tokenise() -> None:
    class NoEncoding:
        def __getattr__(self, name: str):
            assert not name.startswith(("encode", "decode", "batch_", "_encode", "apply_"))
            return getattr(byte_level_tokenizer(), name)

        def __len__(self) -> int:
            return len(byte_level_tokenizer())

    ids = torch.tensor([_ids(byte_level_tokenizer(), "one.\n\ntwo")])
    out = split_completions(DelimiterSplitter(), TokenPieces(NoEncoding()), ids, torch.ones_like(ids))
    assert out.steps == [["one.\n\n", "two"]]


def test_sampled_ids_that_are_no_canonical_tokenisation() -> None:
    tokenizer = byte_level_tokenizer()
    characters = [tokenizer.convert_tokens_to_ids(c) for c in ["T", "h", "e", "n", ".", "Ċ", "Ċ", "w", "e"]]
    assert characters != _ids(tokenizer, "Then.\n\nwe")
    out = _split_ids("blank_line", tokenizer, characters)
    assert out.step_ids[0].tolist() == [0] * 7 + [1] * 2


def test_delimiter_in_padding_is_not_seen() -> None:
    tokenizer = byte_level_tokenizer()
    (delimiter,) = _ids(tokenizer, "\n\n")
    text = _ids(tokenizer, "one two")
    ids = torch.tensor([[*text, *[delimiter] * 4]])
    mask = torch.tensor([[True] * len(text) + [False] * 4])
    out = split_completions(DelimiterSplitter(), TokenPieces(tokenizer), ids, mask)
    assert out.steps == [["one two"]]
    assert out.step_ids[0, -4:].tolist() == [-1] * 4


def test_delimiter_in_tool_output_is_not_seen_and_a_tool_call_ends_a_step() -> None:
    tokenizer = byte_level_tokenizer()
    call, output, rest = (_ids(tokenizer, text) for text in ("call it", "a.\n\nb.\n\n", " so.\n\nDone!"))
    mask = torch.tensor([[True] * len(call) + [False] * len(output) + [True] * len(rest)])
    ids = torch.tensor([[*call, *output, *rest]])
    out = split_completions(DelimiterSplitter(), TokenPieces(tokenizer), ids, mask)
    assert out.steps == [["call it", " so.\n\n", "Done!"]]
    half = split_completions(FixedLengthSplitter(1000), TokenPieces(tokenizer), ids, mask)
    assert half.steps == [["call it", " so.\n\nDone!"]]


def test_delimiter_cut_by_tool_output_is_no_delimiter() -> None:
    tokenizer = byte_level_tokenizer()
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    a, b = _ids(tokenizer, "ab")
    ids = torch.tensor([[a, newline, b, newline, a]])
    mask = torch.tensor([[True, True, False, True, True]])
    out = split_completions(DelimiterSplitter(), TokenPieces(tokenizer), ids, mask)
    assert out.steps == [["a\n", "\na"]]


def test_run_without_content_joins_a_neighbour() -> None:
    tokenizer = byte_level_tokenizer()
    eos, a, hole = tokenizer.eos_token_id, _ids(tokenizer, "a")[0], 5
    token_pieces = TokenPieces(tokenizer)

    def step_ids(ids: list[int]) -> list[int]:
        row = torch.tensor([ids])
        return split_completions(DelimiterSplitter(), token_pieces, row, row != hole).step_ids[0].tolist()

    assert step_ids([a, hole, eos, hole, a]) == [0, -1, 0, -1, 1]
    assert step_ids([eos, hole, eos, eos, hole, a, hole, a]) == [0, -1, 0, 0, -1, 0, -1, 1]
    assert step_ids([eos, hole, eos]) == [0, -1, 0]


def test_turn_splitter_makes_one_step_of_every_turn() -> None:
    tokenizer = byte_level_tokenizer()
    call, output, answer = (_ids(tokenizer, text) for text in ("First.\n\nCall it.", "a.\n\nb.", "So.\n\nDone!"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [*call, end, *output, *call, end, *output, *answer, end]
    mask = [True] * (len(call) + 1) + [False] * len(output)
    mask = [*mask, *mask, *[True] * (len(answer) + 1)]
    padded_ids, padded_mask = [end, *ids, end, end], [False, *mask, False, False]
    for row, row_mask in ((ids, mask), (padded_ids, padded_mask)):
        out = split_completions(
            get_splitter("turn"), TokenPieces(tokenizer), torch.tensor([row]), torch.tensor([row_mask])
        )
        assert out.steps == [["First.\n\nCall it.", "First.\n\nCall it.", "So.\n\nDone!"]]
        expected = np.repeat(
            [0, -1, 1, -1, 2], [len(call) + 1, len(output), len(call) + 1, len(output), len(answer) + 1]
        )
        assert out.step_ids[0][torch.tensor(row_mask)].tolist() == expected[expected >= 0].tolist()
    assert out.step_ids[0, 1:-2].tolist() == expected.tolist()


def test_turn_without_content_joins_a_neighbour_and_text_is_one_turn() -> None:
    tokenizer = byte_level_tokenizer()
    eos, a, hole = tokenizer.eos_token_id, _ids(tokenizer, "a")[0], 5
    row = torch.tensor([[eos, hole, a, hole, eos, hole, a, a]])
    out = split_completions(get_splitter("turn"), TokenPieces(tokenizer), row, row != hole)
    assert out.step_ids.tolist() == [[0, -1, 0, -1, 0, -1, 1, 1]]
    assert split_text(get_splitter("turn"), "One.\n\nTwo.") == ["One.\n\nTwo."]


def test_last_token_with_holes_and_empty_rows() -> None:
    tokenizer = byte_level_tokenizer()
    word = _ids(tokenizer, "word")[0]
    ids = torch.full((3, 5), word)
    mask = torch.tensor([[True, False, True, False, False], [False] * 5, [False, False, False, False, True]])
    out = split_completions(DelimiterSplitter(), TokenPieces(tokenizer), ids, mask)
    assert out.step_ids.tolist() == [[0, -1, 1, -1, -1], [-1] * 5, [-1] * 4 + [0]]
    assert list(map(len, out.steps)) == [2, 0, 1]


def test_completion_of_one_token() -> None:
    tokenizer = byte_level_tokenizer()
    for name in NAMES:
        for text in ("a", ".\n\n", "\n\n", "<think>"):
            out = _split_ids(name, tokenizer, _ids(tokenizer, text)[:1], length=1)
            assert out.step_ids.tolist() == [[0]]
        assert _split_ids(name, tokenizer, [tokenizer.eos_token_id]).steps == [[""]]


def test_multibyte_characters_split_over_tokens_do_no_harm() -> None:
    tokenizer = byte_level_tokenizer()
    text = "🧮🧮é.\n\n👩‍👩‍👧 then.\n\nDone"
    ids = _ids(tokenizer, text)
    assert len(tokenizer.decode(ids[:1])) == 1
    assert _split("blank_line", text) == ["🧮🧮é.\n\n", "👩‍👩‍👧 then.\n\n", "Done"]
    one_each = _split_ids("fixed", tokenizer, ids, length=1)
    assert b"".join(one_each.step_bytes[0]) == text.encode()
    assert "\ufffd" in one_each.steps[0][0]


def test_special_tokens_move_no_offset() -> None:
    tokenizer = byte_level_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    first, second = _ids(tokenizer, "one.\n\n"), _ids(tokenizer, "two")
    out = _split_ids("blank_line", tokenizer, [end, end, *first, end, *second, end, tokenizer.eos_token_id])
    assert out.steps == [["one.\n\n", "two"]]
    assert out.step_ids[0].tolist() == [0, 0, *[0] * len(first), *[1] * (len(second) + 3)]


def test_leading_space_normalisation_moves_no_offset() -> None:
    llama = sentencepiece_bpe_tokenizer()
    assert _split("newline", "then we\nget 42.\n", llama) == [" then we\n", "get 42.\n"]
    assert split_text(DelimiterSplitter("\n"), "then we\nget 42.\n", llama) == ["then we\n", "get 42.\n"]


@pytest.mark.parametrize("name", ["newline", "blank_line", "markdown", "sentence"])
def test_think_tags_make_no_empty_steps(name: str) -> None:
    text = "<think>\n\nFirst we add.\n\nThen we get 42.\n\n</think>\n\nDone!"
    expected = ["<think>\n\nFirst we add.\n\n", "Then we get 42.\n\n</think>\n\n", "Done!"]
    assert _split(name, text) == expected
    assert split_text(get_splitter(name), text) == expected
    assert _split(name, "<think>\n\n</think>\n\nDone!") == ["<think>\n\n</think>\n\nDone!"]
    assert _split(name, "Done!\n\n<think>\n\n</think>") == ["Done!\n\n<think>\n\n</think>"]
    assert _split(name, "A!\n\n</think>\n\n<answer>\n\n42") == ["A!\n\n</think>\n\n", "<answer>\n\n42"]


def test_step_of_special_tokens_joins_the_step_before() -> None:
    assert FixedLengthSplitter(1).step_ends([b"x", b"", b"y"]) == [2, 3]
    assert FixedLengthSplitter(2).step_ends([b"", b"", b"x", b"y", b"", b"", b"", b"z", b""]) == [6, 9]


def test_tag_cut_by_a_fixed_length_is_one_step() -> None:
    assert _split("fixed", "<answer>") == ["<answer>"]
    ids = _ids(byte_level_tokenizer(), "<answer>")
    assert len(_split_ids("fixed", byte_level_tokenizer(), ids, length=2).steps[0]) == 1
    pieces = TokenPieces(byte_level_tokenizer()).pieces(ids)
    assert FixedLengthSplitter(2).step_ends(pieces) == [len(ids)]


def test_code_fence_is_not_cut() -> None:
    block = "````py\nx = 1\n\n```\n\ny = 2\n````"
    text = f"Code:\n\n{block}\n\nDone."
    assert _split("markdown", text) == ["Code:\n\n", f"{block}\n\n", "Done."]
    tilde = "~~~\n\n```\n\n~~~\n\n"
    assert _split("markdown", f"a\n\n{tilde}b") == ["a\n\n", tilde, "b"]


def test_open_code_fence_runs_to_the_end() -> None:
    assert _split("markdown", "Code:\n\n```py\nx = 1\n\ny = 2\n\n") == ["Code:\n\n", "```py\nx = 1\n\ny = 2\n\n"]


@pytest.mark.parametrize(
    "block",
    [
        "$$\nx\n\ny\n$$",
        "\\[\nx\n\n\\]",
        "\\begin{align*}\nx \\\\[2pt]\n\n\\begin{cases} 1\n\n\\end{cases}\n\n\\end{align*}",
        "\\begin{cases}\n\n\\begin{cases}\n\n\\end{cases}\n\n\\end{cases}",
        "\\[ a \\\\[2pt]\n\n b \\]",
    ],
)
def test_latex_block_is_not_cut(block: str) -> None:
    text = f"Let us see.\n\n{block}\n\nDone."
    assert _split("markdown", text) == ["Let us see.\n\n", f"{block}\n\n", "Done."]


@pytest.mark.parametrize("opener", ["$$", "\\[", "\\begin{align}", "\\begin{a}\\begin{b}\\end{a"])
def test_open_latex_block_runs_to_the_next_blank_line(opener: str) -> None:
    text = f"It costs {opener}5\nor so.\n\nThen\n\nDone."
    assert _split("markdown", text) == [f"It costs {opener}5\nor so.\n\n", "Then\n\n", "Done."]
    assert split_text(MarkdownSplitter(newline=True), text) == [f"It costs {opener}5\nor so.\n\n", "Then\n\n", "Done."]


def test_table_is_not_cut() -> None:
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n"
    assert split_text(MarkdownSplitter(newline=True), f"See:\n{table}Done.\n") == ["See:\n", table, "Done.\n"]
    assert split_text(MarkdownSplitter(newline=True), "See:\n\n|---|---|\nx") == ["See:\n\n", "|---|---|\n", "x"]
    bare = "a | b\n--|--\n1 | 2\n"
    assert split_text(MarkdownSplitter(newline=True), f"See:\n{bare}\nDone.") == ["See:\n", f"{bare}\n", "Done."]


@given(text=FRAGMENT_TEXT, newline=st.booleans())
def test_markdown_never_cuts_inside_a_block(text: str, newline: bool) -> None:
    raw = text.encode()
    spans = protected_spans(raw)
    ends = MarkdownSplitter(newline).boundaries(raw)
    assert all(a < b for a, b in spans)
    assert all(b <= c for (_, b), (c, _) in pairwise(spans))
    assert not [(end, span) for end in ends for span in spans if span[0] < end < span[1]]
    assert set(ends) <= set(DelimiterSplitter("\n" if newline else "\n\n").boundaries(raw))


@pytest.mark.parametrize("unit", ["\\[ ", "$$ ", "```\n", "\\begin{a} ", "a|b\n-|-\n", "\n\n", "\\end{a}", "```a\n"])
@pytest.mark.timeout(20)
def test_many_stray_openers_stay_linear(unit: str) -> None:
    raw = (unit * 100_000).encode()
    assert isinstance(MarkdownSplitter(newline=True).boundaries(raw), list)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["\n", " ", "\n ", "\r", "<think>", ".", "A. ", "1. ", "</", "\u3000"])
def test_runs_of_delimiters_stay_linear(name: str, unit: str) -> None:
    pieces = [unit.encode()] * 50_000
    assert get_splitter(name).step_ends(pieces)[-1] == 50_000


# --- single splitters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Pi is 3.14. It is 2.5x. Yes", ["Pi is 3.14.", " It is 2.5x.", " Yes"]),
        ("Dr. Smith and Mrs. Jones, e.g. Bob, came. They left.", None),
        ("See Fig. 3 and Eq. (2). No. It is not. No. 5 is.", None),
        ("J. Smith met George R. R. Martin. They spoke.", ["J. Smith met George R. R. Martin.", " They spoke."]),
        ("The answer is B. Next we check.", ["The answer is B.", " Next we check."]),
        ('He said "Go!" Then (he left.) Done', ['He said "Go!"', " Then (he left.)", " Done"]),
        ("Wait... Is it? Yes!! OK", ["Wait...", " Is it?", " Yes!!", " OK"]),
        ("1. First we add.\n2. Then we stop.\n\nDone.", ["1. First we add.\n", "2. Then we stop.\n\n", "Done."]),
        ("The list\n- one\n- two\n# Head\nx", ["The list\n", "- one\n", "- two\n", "# Head\nx"]),
        ("水は100度。次は？はい", ["水は100度。", "次は？", "はい"]),
        # Marks in a row, and what closes behind them.
        (
            "本当！？はい。。。「行く。」と言う。（終わり。）次",
            ["本当！？", "はい。。。", "「行く。」", "と言う。", "（終わり。）", "次"],
        ),
        ("答案是5。”他说。**完。**\n下", ["答案是5。”", "他说。", "**完。**\n", "下"]),
        ("圆周率３．１４。共３．下一步", ["圆周率３．１４。", "共３．", "下一步"]),
        ("半角｡次", ["半角｡", "次"]),
        ("राम आया। वह गया।। क्या? हाँ॥", ["राम आया।", " वह गया।।", " क्या?", " हाँ॥"]),
        ("১। প্রথম।\n২। শেষ।", ["১। প্রথম।\n", "২। শেষ।"]),
        ("ما اسمك؟ أنا علي. «نعم؟» قال", ["ما اسمك؟", " أنا علي.", " «نعم؟»", " قال"]),
        ('قال: "كم؟" ثم ذهب؟! نعم', ['قال: "كم؟"', " ثم ذهب؟!", " نعم"]),
        ("وہ آیا۔ وہ گیا۔", ["وہ آیا۔", " وہ گیا۔"]),
        ("ሰላም። እንዴት ነህ፧ ደህና", ["ሰላም።", " እንዴት ነህ፧", " ደህና"]),
        ("Բարև։ Այո։", ["Բարև։", " Այո։"]),
        ("សួស្តី។ បាទ៕", ["សួស្តី។", " បាទ៕"]),
        ("မင်္ဂလာပါ။ ဟုတ်ကဲ့။", ["မင်္ဂလာပါ။", " ဟုတ်ကဲ့။"]),
        ("བཀྲ་ཤིས། བདེ་ལེགས།", ["བཀྲ་ཤིས།", " བདེ་ལེགས།"]),
        ("Это т. е. ответ. Дальше. Сумма 5. всё", ["Это т. е. ответ.", " Дальше.", " Сумма 5. всё"]),
        ("Er sagt: „Ja.“ Dann geht er.", ["Er sagt: „Ja.“", " Dann geht er."]),
        ("we add approx. five and x is 3. so what", None),
        ("**Answer.** So $x = 3$. Then", ["**Answer.**", " So $x = 3$.", " Then"]),
    ],
)
def test_sentences(text: str, steps: list[str] | None) -> None:
    expected = {
        "Dr.": ["Dr. Smith and Mrs. Jones, e.g. Bob, came.", " They left."],
        "See": ["See Fig. 3 and Eq. (2).", " No.", " It is not.", " No. 5 is."],
        "we ": [text],
    }
    assert split_text(SentenceSplitter(), text) == (steps or expected[text[:3]])


def test_delimiter_runs_and_line_breaks() -> None:
    text = "a\r\n\r\nb\n \t\nc\nd\n\n\n\n  e"
    assert split_text(DelimiterSplitter("\n\n"), text) == ["a\r\n\r\n", "b\n \t\n", "c\nd\n\n\n\n", "  e"]
    assert split_text(DelimiterSplitter("\n"), text) == ["a\r\n\r\n", "b\n \t\n", "c\n", "d\n\n\n\n", "  e"]
    assert split_text(DelimiterSplitter("---"), "a--b-----c---d") == ["a--b-----", "c---", "d"]
    assert split_text(DelimiterSplitter(" ки"), "a ки ки b ки") == ["a ки ки", " b ки"]


def test_regex_look_ahead_ends_a_step_before_its_marker() -> None:
    steps = split_text(RegexSplitter(r"(?=^Step \d)"), "Step 1: é\nStep 2: 数\nend")
    assert steps == ["Step 1: é\n", "Step 2: 数\nend"]


def test_fixed_length_is_the_token_index_over_the_length() -> None:
    ids = torch.tensor([_ids(byte_level_tokenizer(), "Then we get 42 and then we get 42 and so on")[:10]])
    out = split_completions(FixedLengthSplitter(4), TokenPieces(byte_level_tokenizer()), ids, torch.ones_like(ids))
    assert out.step_ids[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


# --- real outputs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_outputs(shared_data: Path) -> list[str]:
    with gzip.open(shared_data / "outputs" / "model_outputs.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["completion"] for line in file]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["newline", "blank_line", "sentence", "markdown"])
def test_real_outputs_split_losslessly(real_outputs: list[str], name: str) -> None:
    splitter = get_splitter(name)
    tokenizer = byte_level_tokenizer()
    for text in real_outputs[::4]:
        steps = split_text(splitter, text)
        assert "".join(steps) == text
        assert len(steps) <= 1 or not any(_is_blank(step.encode()) for step in steps)
    for text in real_outputs[::40]:
        assert split_text(splitter, text, tokenizer) == _split(name, text)


@pytest.mark.shared_data
def test_real_outputs_markdown_only_joins_blank_line_steps(real_outputs: list[str]) -> None:
    joined = 0
    for text in real_outputs:
        raw = text.encode()
        blank_line, markdown = DelimiterSplitter().boundaries(raw), MarkdownSplitter().boundaries(raw)
        assert set(markdown) <= set(blank_line)
        joined += len(blank_line) - len(markdown)
    assert joined > 0
