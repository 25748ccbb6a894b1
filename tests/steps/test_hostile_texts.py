"""Splitting takes time in proportion to the text, whatever the text; a user's pattern takes no more than its limit.

A quadratic pattern needs minutes for the larger of these texts, a linear one some hundredths of a second, so a limit
of four times the proportional one, and of seconds, tells them apart on a busy machine too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.steps.adversarial import MOTIFS, SPLITTERS, random_motif, repeated
from tests.tokenizers_for_tests import byte_level_tokenizer
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter, split_completions
from trl_prl.steps.splitters import ByteSplitter, RegexSplitter
from trl_prl.steps.token_pieces import TokenPieces


SMALL, LARGE = 4_000, 64_000
RATIO = LARGE // SMALL
# What a machine does besides.
NOISE = 0.2


def split_seconds(name: str, text: bytes, bytes_per_token: int = 1) -> float:
    """Processor seconds of the better of two tries."""
    splitter = get_splitter(name, step_length=3)
    assert isinstance(splitter, ByteSplitter)
    byte_ends = np.minimum(np.arange(bytes_per_token, len(text) + bytes_per_token, bytes_per_token), len(text))
    times = []
    for _ in range(2):
        start = time.process_time()
        ends = splitter.step_ends_from_bytes(text, byte_ends)
        times.append(time.process_time() - start)
        assert ends[-1] == len(byte_ends)
        if times[-1] < NOISE:
            break
    return min(times)


def assert_linear(name: str, motif: tuple[str, str, str], small: int, large: int) -> None:
    # Without a line break the Markdown splitter has nothing to do.
    tail = b"\n\nx" if name.startswith("markdown") else b""
    seconds = split_seconds(name, repeated(motif, large) + tail)
    if seconds > NOISE:
        assert seconds < 4 * large / small * split_seconds(name, repeated(motif, small) + tail) + NOISE, (name, motif)
    assert seconds < 20e-6 * large + NOISE, (name, motif)


@pytest.mark.parametrize("name", SPLITTERS)
@pytest.mark.timeout(60)
def test_hostile_texts_split_in_linear_time(name: str) -> None:
    for motif in MOTIFS:
        assert_linear(name, motif, SMALL, LARGE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.timeout(60)
def test_random_motifs_split_in_linear_time(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        motif = random_motif(rng)
        for name in SPLITTERS:
            assert_linear(name, motif, SMALL, LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLITTERS)
@pytest.mark.timeout(600)
def test_time_per_byte_is_the_same_from_a_kilobyte_to_a_megabyte(name: str) -> None:
    for motif in MOTIFS:
        assert_linear(name, motif, 16_000, 1_000_000)
        assert_linear(name, motif, 1_000, 16_000)


class WidePieces(TokenPieces):
    """Every id but 0 is a thousand line breaks."""

    def join(self, ids: Sequence[int] | np.ndarray) -> tuple[bytes, np.ndarray]:
        pieces = [b"\n" * 1_000 if i else b"x" for i in ids]
        return b"".join(pieces), np.cumsum([len(piece) for piece in pieces])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("first", [0, 1])
def test_many_runs_of_the_mask_split_in_linear_time(first: int) -> None:
    """Runs without content between holes of the mask, all of which join one step."""

    def seconds(num_runs: int) -> float:
        ids = torch.ones(1, 2 * num_runs, dtype=torch.int64)
        ids[0, 0] = first
        mask = (torch.arange(2 * num_runs) % 2 == 0)[None]
        start = time.process_time()
        out = split_completions(get_splitter("newline"), WidePieces(None), ids, mask)
        assert [len(step) for step in out.step_bytes[0]] == [1_000 * num_runs - (0 if first else 999)]
        return time.process_time() - start

    assert seconds(16_000) < 4 * 16 * seconds(1_000) + NOISE


@pytest.mark.parametrize("name", SPLITTERS)
def test_hostile_texts_split_losslessly(name: str) -> None:
    tokenizer = byte_level_tokenizer()
    token_pieces = TokenPieces(tokenizer)
    splitter = get_splitter(name, step_length=3)
    rng = random.Random(0)
    for motif in [*MOTIFS, *(random_motif(rng) for _ in range(50))]:
        text = repeated(motif, 200)
        ids = torch.tensor([tokenizer(text.decode(), add_special_tokens=False)["input_ids"]])
        mask = torch.tensor([[rng.random() < 0.8 for _ in range(ids.shape[1])]])
        for a_mask in (torch.ones_like(mask), mask):
            out = split_completions(splitter, token_pieces, ids, a_mask)
            assert b"".join(out.step_bytes[0]) == b"".join(token_pieces.pieces(ids[a_mask].tolist()))
            assert torch.equal(out.step_ids >= 0, a_mask)
            on_mask = out.step_ids[a_mask].tolist()
            assert all(b - a in (0, 1) for a, b in pairwise([0, *on_mask]))
            assert sorted(set(on_mask)) == list(range(len(out.step_bytes[0])))
        if name != "fixed":
            assert "".join(split_text(splitter, text.decode())) == text.decode()


def test_a_pattern_that_runs_away_is_stopped() -> None:
    splitter = RegexSplitter(r"(?:a|aa)+b", timeout=0.2)
    with pytest.raises(TimeoutError, match=r"'\(\?:a\|aa\)\+b', .* after 0\.2 s .* 5000 .*'aaa.* repeats inside"):
        splitter.step_ends([b"a"] * 5000)
    assert splitter.step_ends([b"aab", b"aab"]) == [1, 2]


@pytest.mark.parametrize("pattern", [r"\n\n|[.!?] ", r"(?=^Step \d+)", r"\[a*\]", "[]*]", "x{2}", r"a\*"])
def test_limit_changes_no_match(pattern: str) -> None:
    text = "Step 1: [aaa] a*] xx\n\nStep 2? []b! x"
    assert get_splitter(f"regex:{pattern}") == RegexSplitter(pattern)
    assert split_text(RegexSplitter(pattern, timeout=100.0), text) == split_text(RegexSplitter(pattern), text)
