"""Rollouts per second of `TransformersGenerator` against two ways of using `model.generate`, in one run.

    python -m tests.benchmarks.bench_generation
    python -m tests.benchmarks.bench_generation --model Qwen/Qwen2.5-0.5B --device cuda --dtype bfloat16

- `loop`: one call of `model.generate` per prefix with `num_return_sequences`, as collectors usually do it.
- `one batch`: one call with every prefix padded and repeated for each of its samples, and nothing else to do: the
  throughput that plain generation reaches.
- `continuous batching`: `model.generate_batch` with paged attention and shared blocks, where the library has it
  (`--continuous`; slow on a CPU).

Every way decodes exactly `--new_tokens` tokens per sample (the end-of-sequence token is left out), so tokens per
second can be compared; wall-clock time, the best of `--repeats`, measured in turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.benchmarks.common import machine, table
from tests.tiny_models import build_tokenizer
from trl_prl.generation.local import TransformersGenerator
from trl_prl.types import Prompt, SamplingParams


def small_model(path: Path, hidden_size: int, num_layers: int) -> str:
    """A random Llama of about the size of the arithmetic task's policy."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="path or Hub id; a random Llama by default")
    parser.add_argument("--hidden_size", type=int, default=128, help="of the random Llama")
    parser.add_argument("--num_layers", type=int, default=4, help="of the random Llama")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prefixes", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--prefix_tokens", type=int, nargs=2, default=(16, 48), help="shortest and longest prefix")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--continuous", action="store_true", help="also run continuous batching")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = args.model or small_model(Path(folder), args.hidden_size, args.num_layers)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).to(args.device).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
    # No sample may end early, or the ways would decode different numbers of tokens.
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    low, high = args.prefix_tokens
    lengths = torch.linspace(low, high, args.prefixes).int().tolist()
    rng = torch.Generator().manual_seed(0)
    prefixes = [torch.randint(5, len(tokenizer), (n,), generator=rng).tolist() for n in lengths]
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=args.new_tokens,
        num_return_sequences=args.samples,
        pad_token_id=0,
        eos_token_id=None,
    )
    generator = TransformersGenerator(model, tokenizer, max_batch_tokens=1 << 30)

    def loop() -> int:
        total = 0
        for prefix in prefixes:
            ids = torch.tensor([prefix], device=args.device)
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
            total += output[:, len(prefix) :].numel()
        return total

    def one_batch() -> int:
        longest = max(lengths)
        ids = torch.tensor([[0] * (longest - len(prefix)) + prefix for prefix in prefixes], device=args.device)
        mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=args.device)
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return output[:, longest:].numel()

    def ours() -> int:
        params = SamplingParams(n=args.samples, max_tokens=args.new_tokens)
        samples = generator.generate([Prompt(tuple(p), key=str(i)) for i, p in enumerate(prefixes)], params)
        return sum(len(completion.token_ids) for row in samples for completion in row)

    def continuous() -> int:
        repeated = [prefix for prefix in prefixes for _ in range(args.samples)]
        settings = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=args.new_tokens, eos_token_id=-1)
        outputs = model.generate_batch(inputs=repeated, generation_config=settings, progress_bar=False)
        return sum(len(output.generated_tokens) for output in outputs.values())

    ways: dict[str, Callable[[], int]] = {"loop": loop, "one batch": one_batch, "TransformersGenerator": ours}
    if args.continuous:
        ways["continuous batching"] = continuous
    with torch.no_grad():
        times = {name: [timed(way) for _ in range(args.repeats)] for name, way in ways.items()}
    best = {name: min(runs) for name, runs in times.items()}
    rows = {
        name: {
            "seconds": seconds,
            "rollouts_per_second": args.prefixes * args.samples / seconds,
            "tokens_per_second": tokens / seconds,
            "speed_against_loop": best["loop"][0] / seconds,
            "speed_against_one_batch": best["one batch"][0] / seconds,
        }
        for name, (seconds, tokens) in best.items()
    }
    if args.output == "json":
        print(json.dumps({"machine": machine(), "arguments": vars(args), "ways": rows}, indent=1))
        return
    print(f"{args.prefixes} prefixes of {low} to {high} tokens x {args.samples} samples of {args.new_tokens} tokens")
    print(f"{machine()}\n")
    cells = [
        (
            name,
            f"{row['seconds']:.2f}",
            f"{row['rollouts_per_second']:.0f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['speed_against_loop']:.2f}",
            f"{row['speed_against_one_batch']:.2f}",
        )
        for name, row in rows.items()
    ]
    print(table(("", "seconds", "rollouts/s", "tokens/s", "× loop", "× one batch"), cells))


def timed(way: Callable[[], int]) -> tuple[float, int]:
    start = time.perf_counter()
    tokens = way()
    return time.perf_counter() - start, tokens


if __name__ == "__main__":
    main()
