"""Token pieces: exact bytes of sampled ids, for every kind of tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tokenizers_for_tests import (
    all_tokenizers,
    byte_level_tokenizer,
    character_tokenizer,
    sentencepiece_bpe_tokenizer,
    unigram_tokenizer,
    wordpiece_tokenizer,
)
from trl_prl.steps.token_pieces import TokenPieces


KINDS = list(all_tokenizers())
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "ab1. \n\r\t\0é数😀🧮\u0301\u200d<>|think/▁Ġ$", max_size=40
)


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@given(text=TEXT)
def test_byte_level_pieces_join_to_the_text(text: str) -> None:
    tokenizer = byte_level_tokenizer()
    pieces = TokenPieces(tokenizer).pieces(_ids(tokenizer, text))
    assert b"".join(pieces) == text.encode()


@given(text=TEXT.filter(lambda text: "▁" not in text))
def test_sentencepiece_pieces_join_to_the_text_after_a_space(text: str) -> None:
    tokenizer = sentencepiece_bpe_tokenizer()
    joined = b"".join(TokenPieces(tokenizer).pieces(_ids(tokenizer, text)))
    # Tags are cut out before the normalizer runs, and each part between them gets a space of its own.
    assert joined.replace(b" ", b"") == text.replace(" ", "").encode()
    if "<" not in text and text:
        assert joined == b" " + text.encode()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_random_ids_agree_with_decode(kind: str, data: st.DataObject) -> None:
    tokenizer = all_tokenizers()[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    joined = b"".join(TokenPieces(tokenizer).pieces(ids))
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    text = joined.decode("utf-8", "replace")
    # The decoders replace invalid UTF-8 in their own ways and trim the start of a text; all else is equal.
    if kind == "byte_level":
        assert text == decoded
    elif "\ufffd" not in text:
        assert text.lstrip(" ").removeprefix("##") == decoded.lstrip(" ").removeprefix("##")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_join_equals_pieces(kind: str, data: st.DataObject) -> None:
    token_pieces = TokenPieces(all_tokenizers()[kind])
    ids = data.draw(st.lists(st.integers(-5, len(token_pieces) + 50), max_size=30))
    pieces = token_pieces.pieces(ids)
    text, byte_ends = token_pieces.join(np.array(ids, dtype=np.int64))
    assert text == b"".join(pieces)
    assert byte_ends.tolist() == [len(b"".join(pieces[: i + 1])) for i in range(len(ids))]


def test_multibyte_character_split_over_tokens() -> None:
    tokenizer = byte_level_tokenizer()
    pieces = TokenPieces(tokenizer).pieces(_ids(tokenizer, "🧮"))
    assert len(pieces) > 1
    assert b"".join(pieces) == "🧮".encode()


def test_byte_fallback_tokens_are_bytes() -> None:
    for tokenizer in (sentencepiece_bpe_tokenizer(), unigram_tokenizer()):
        ids = tokenizer.convert_tokens_to_ids(["<0xF0>", "<0x9F>", "<0x0A>"])
        assert TokenPieces(tokenizer).pieces(ids) == [b"\xf0", b"\x9f", b"\n"]


def test_leading_space_is_kept_at_the_start_of_a_completion() -> None:
    tokenizer = sentencepiece_bpe_tokenizer()
    ids = _ids(tokenizer, "then we")
    assert b"".join(TokenPieces(tokenizer).pieces(ids)) == b" then we"
    assert tokenizer.decode(ids) == "then we"


def test_wordpiece_continuations_have_no_space() -> None:
    tokenizer = wordpiece_tokenizer()
    vocab = tokenizer.get_vocab()
    assert TokenPieces(tokenizer).pieces([vocab["the"], vocab["##n"], vocab["."]]) == [b" the", b"n", b"."]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_contribute_nothing_and_think_tags_their_text(kind: str) -> None:
    tokenizer = all_tokenizers()[kind]
    token_pieces = TokenPieces(tokenizer)
    special = [*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert token_pieces.pieces(special) == [b""] * len(special)
    tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert [piece.strip() for piece in token_pieces.pieces(tags)] == [b"<think>", b"</think>"]
    assert token_pieces.literal_pieces(special[-1:]) == [b"<|im_end|>"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_vocabulary_contribute_nothing(kind: str) -> None:
    token_pieces = TokenPieces(all_tokenizers()[kind])
    beyond = [len(token_pieces), len(token_pieces) + 1000, 2**31, -1, -100]
    assert token_pieces.pieces(beyond) == [b""] * 5


def test_added_token_is_text_not_byte_alphabet() -> None:
    tokenizer = byte_level_tokenizer()
    copy = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    copy.add_tokens(["é"])
    assert TokenPieces(copy).pieces([copy.convert_tokens_to_ids("é")]) == ["é".encode()]


def test_table_is_built_once_and_on_first_use() -> None:
    class Counting:
        calls = 0

        def __getattr__(self, name: str):
            return getattr(byte_level_tokenizer(), name)

        def __len__(self) -> int:
            return len(byte_level_tokenizer())

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            Counting.calls += len(ids) > 10
            return byte_level_tokenizer().convert_ids_to_tokens(ids)

    token_pieces = TokenPieces(Counting())
    assert Counting.calls == 0
    for _ in range(3):
        token_pieces.pieces([1, 2, 3])
    assert Counting.calls == 1


def test_processor_is_accepted() -> None:
    class Processor:
        tokenizer = byte_level_tokenizer()

    ids = _ids(Processor.tokenizer, "Then we")
    assert TokenPieces(Processor()).pieces(ids) == TokenPieces(Processor.tokenizer).pieces(ids)


def test_tokenizer_without_decoder_joins_words_with_spaces() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), behavior="removed")
    assert TokenPieces(PreTrainedTokenizerFast(tokenizer_object=tokenizer)).pieces([1, 2]) == [b" one", b" two"]


def test_byte_level_is_found_without_a_decoder() -> None:
    copy = Tokenizer.from_str(byte_level_tokenizer().backend_tokenizer.to_str())
    copy.decoder = None
    ids = _ids(byte_level_tokenizer(), "数 🧮\n")
    assert b"".join(TokenPieces(PreTrainedTokenizerFast(tokenizer_object=copy)).pieces(ids)) == "数 🧮\n".encode()


def test_bpe_word_suffix_becomes_a_space() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "a</w>": 1}, []))
    tokenizer.decoder = decoders.BPEDecoder()
    assert TokenPieces(PreTrainedTokenizerFast(tokenizer_object=tokenizer)).pieces([0, 1]) == [b"a", b"a "]


@pytest.mark.parametrize(
    "decoder", [decoders.CTC(), decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")])], ids=["ctc", "fused"]
)
def test_unsupported_decoder_raises(decoder: object) -> None:
    copy = Tokenizer.from_str(character_tokenizer().backend_tokenizer.to_str())
    copy.decoder = decoder
    with pytest.raises(ValueError, match=r"its decoder .* cannot be told\. Use a tokenizer with"):
        TokenPieces(PreTrainedTokenizerFast(tokenizer_object=copy)).pieces([0])


def test_python_tokenizers() -> None:
    class SentencePieceLike:
        sp_model = object()
        all_special_ids = (0,)
        added_tokens_decoder: dict = {}  # noqa: RUF012
        tokens = ("</s>", "▁So", "<0x0A>", "x")

        def __len__(self) -> int:
            return len(self.tokens)

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [self.tokens[i] for i in ids]

    assert TokenPieces(SentencePieceLike()).pieces([0, 1, 2, 3, 4]) == [b"", b" So", b"\n", b"x", b""]

    class ByteLevelLike(SentencePieceLike):
        byte_decoder = object()
        tokens = ("</s>", "ĠSo", "Ċ", "ð")

    del SentencePieceLike.sp_model
    assert TokenPieces(ByteLevelLike()).pieces([0, 1, 2, 3]) == [b"", b" So", b"\n", b"\xf0"]
    with pytest.raises(ValueError, match="neither a `tokenizers` backend"):
        TokenPieces(SentencePieceLike()).pieces([0])
