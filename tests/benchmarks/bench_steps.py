"""Throughput of step splitting on one core, and its share of a GRPO optimizer step.

    python -m tests.benchmarks.bench_steps
    python -m tests.benchmarks.bench_steps --seconds_per_step 60 --output json

Ids are drawn with Zipf frequencies from a byte-level vocabulary of real size (151,936), so that looking up their bytes
misses the cache as it does in training; on average every 30th token carries a line break. Time is from the two tensors
to the finished `SplitBatch`; the table of the tokenizer is built once before, and its time is printed. All times are
CPU seconds of this process with one thread, which is the time of one core also on a machine that is busy otherwise.

The share is measured in the same process: a tiny `GRPOTrainer` takes a few optimizer steps on the CPU, and the time to
split as many tokens as it samples is divided by the time of its optimizer step. A tiny model makes the share as large
as it can be; `--seconds_per_step` gives it for a training of your own, with `--batch` x `--length` tokens per step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from tests.tiny_models import make_grpo_args, prompt_dataset, save_tiny_model, token_reward
from trl_prl.steps.split import TokenPieces, get_splitter, split_completions


SPLITTERS = ["fixed", "newline", "blank_line", "sentence", "markdown", r"regex:\n\n|[.!?] ", "step_ends only"]


class ProtocolOnly:
    """A user's splitter without the fast path."""

    def step_ends(self, pieces: list[bytes]) -> list[int]:
        return get_splitter("newline").step_ends(pieces)


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level vocabulary of words of 2 to 8 letters and a few line breaks."""
    rng = np.random.default_rng(0)
    words = {"ĊĊ", ".ĊĊ", "Ċ", ".Ċ", ":ĊĊ", *pre_tokenizers.ByteLevel.alphabet()}
    while len(words) < vocab_size:
        letters = rng.integers(97, 123, (vocab_size, 8), dtype=np.uint8)
        lengths = rng.integers(2, 9, vocab_size)
        words.update("Ġ" + row[:n].tobytes().decode() for row, n in zip(letters, lengths, strict=True))
    vocab = {word: i for i, word in enumerate(sorted(words)[:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_batch(tokenizer: PreTrainedTokenizerFast, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    ids = rng.permutation(len(tokenizer))[np.minimum(rng.zipf(1.2, (batch, length)), len(tokenizer)) - 1]
    breaks = [tokenizer.convert_tokens_to_ids(token) for token in ("ĊĊ", ".ĊĊ", "Ċ", ".Ċ", ":ĊĊ")]
    ids = np.where(rng.random((batch, length)) < 1 / 30, rng.choice(breaks, (batch, length)), ids)
    return torch.from_numpy(ids), torch.ones(batch, length, dtype=torch.bool)


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


class StepTimer(TrainerCallback):
    """Times whole optimizer steps: generation, rewards, loss, backward and update."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.process_time() - self._start)


def grpo_optimizer_step(num_completions: int, length: int) -> float:
    """Median seconds of an optimizer step of a tiny real `GRPOTrainer`, the first two left out."""
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        path = str(save_tiny_model(Path(folder) / "model"))
        args = make_grpo_args(
            GRPOConfig,
            folder,
            per_device_train_batch_size=num_completions,
            num_generations=8,
            max_completion_length=length,
            generation_kwargs={"min_new_tokens": length},
            max_steps=7,
        )
        timer = StepTimer()
        trainer = GRPOTrainer(
            model=path, reward_funcs=token_reward, args=args, train_dataset=prompt_dataset(64), callbacks=[timer]
        )
        trainer.train()
    return statistics.median(timer.times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512, help="completions")
    parser.add_argument("--length", type=int, default=8192, help="tokens per completion")
    parser.add_argument("--vocab_size", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=5, help="the median is reported")
    parser.add_argument("--splitters", nargs="+", default=SPLITTERS, help="names as in the configs")
    parser.add_argument(
        "--seconds_per_step", type=float, default=None, help="optimizer step of your training; else a tiny one is run"
    )
    parser.add_argument("--output", choices=["table", "json"], default="table")
    args = parser.parse_args()
    torch.set_num_threads(1)

    tokenizer = make_tokenizer(args.vocab_size)
    token_pieces = TokenPieces(tokenizer)
    table_seconds = seconds(lambda: token_pieces.join([0]))
    ids, mask = make_batch(tokenizer, args.batch, args.length)
    results: dict[str, dict[str, float]] = {}
    for name in args.splitters:
        splitter = ProtocolOnly() if name == "step_ends only" else get_splitter(name)
        split = partial(split_completions, splitter, token_pieces, ids, mask)
        times = [seconds(split) for _ in range(args.repeats)]
        batch = split()
        results[name] = {
            "seconds": statistics.median(times),
            "tokens_per_second": ids.numel() / statistics.median(times),
            "steps_per_completion": statistics.fmean(map(len, batch.step_bytes)),
            "texts_seconds": seconds(partial(getattr, batch, "steps")),
        }
    if args.seconds_per_step is None:
        num_completions, length = 32, 256
        step_seconds = grpo_optimizer_step(num_completions, length)
        tokens = num_completions * length
        source = f"a tiny GRPOTrainer run in this process on the CPU, {num_completions} completions of {length} tokens"
    else:
        step_seconds, tokens, source = args.seconds_per_step, ids.numel(), "the given time"
    for row in results.values():
        row["share_of_optimizer_step"] = tokens / row["tokens_per_second"] / step_seconds
    if args.output == "json":
        report = {
            "arguments": vars(args),
            "table_seconds": table_seconds,
            "optimizer_step_seconds": step_seconds,
            "optimizer_step_tokens": tokens,
            "optimizer_step_source": source,
            "splitters": results,
        }
        print(json.dumps(report, indent=2))
        return
    print(f"{args.batch} completions x {args.length} tokens, vocabulary {args.vocab_size}, one thread")
    print(f"table of the tokenizer: {table_seconds:.2f} s, once")
    print(f"{'':24} {'seconds':>8} {'M tok/s':>8} {'steps':>7} {'+ texts':>8} {'share':>8}  medians of {args.repeats}")
    for name, row in results.items():
        print(
            f"{name:24} {row['seconds']:8.3f} {row['tokens_per_second'] / 1e6:8.2f} "
            f"{row['steps_per_completion']:7.1f} {row['texts_seconds']:7.3f}s {row['share_of_optimizer_step']:8.3%}"
        )
    print(f"share of a GRPOTrainer optimizer step of {step_seconds:.3f} s with {tokens} tokens ({source})")


if __name__ == "__main__":
    main()
