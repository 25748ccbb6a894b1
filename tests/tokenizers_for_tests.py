"""Small tokenizers of every kind that step splitting has to understand, trained in memory on a few sentences."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


# Delimiters right after punctuation are frequent, so that byte-level BPE merges them (`.\n\n`) as real tokenizers do.
CORPUS = [
    "First we add 12 and 30.\n\nThen we get 42.\n\nSo the answer is 42.\n\n",
    "Let x = 3.\nThen 2x = 6:\n\n\\[ 2x = 6 \\]\n\nDone!\n\nNext step:\n\nhello world hello world.\n\n",
    "Step 1: think about it.\nStep 2: write it down.\n\n\nCafé 数学 😀 naïve. Done.\n\n",
] * 20

# The pre-tokenizer of GPT-4 and its descendants: punctuation takes the line breaks that follow it.
_GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    wrapped.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    wrapped.add_tokens([AddedToken("<|im_end|>", special=True, normalized=False)], special_tokens=True)
    return wrapped


@cache
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges such as `.\\n\\n`, as in Qwen and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GPT4_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrap(tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")


@cache
def sentencepiece_bpe_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback and a space before the text, as in Llama 2: no token for a newline."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]+|\n"), behavior="isolated")
    lines = [" " + line for text in CORPUS for line in text.splitlines()]
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=160, show_progress=False))
    model = _model_json(trained)
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *_BYTE_TOKENS])}
    for token in model["vocab"]:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _model_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Model part of a tokenizer's JSON."""
    return json.loads(tokenizer.to_str())["model"]


@cache
def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece Unigram with byte fallback and a Metaspace decoder that always prepends a space."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line for text in CORPUS for line in text.splitlines()]
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    trained.train_from_iterator(lines, trainer)
    scored = [tuple(entry) for entry in _model_json(trained)["vocab"]]
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((token, -20.0) for token in _BYTE_TOKENS)]
    vocab += [entry for entry in scored if entry[0] not in ("<unk>", "</s>")]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _wrap(tokenizer, unk_token="<unk>", eos_token="</s>")


@cache
def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece with lower-casing, as in BERT: it does not keep the text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    )
    return _wrap(tokenizer, unk_token="[UNK]", sep_token="[SEP]")


@cache
def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, with a decoder that only joins."""
    characters = sorted(set("".join(CORPUS)))
    vocab = {token: i for i, token in enumerate(["<unk>", "<eos>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, unk_token="<unk>", eos_token="<eos>")


def all_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """Every tokenizer by kind."""
    return {
        "byte_level": byte_level_tokenizer(),
        "sentencepiece_bpe": sentencepiece_bpe_tokenizer(),
        "unigram": unigram_tokenizer(),
        "wordpiece": wordpiece_tokenizer(),
        "character": character_tokenizer(),
    }
