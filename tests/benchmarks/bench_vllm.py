"""Collection through vLLM against vLLM itself on the same prefixes, in one run.

    make test-vllm                                           # makes the environment
    .venv-vllm/bin/python -m tests.benchmarks.bench_vllm --model path/to/a/chat/model

`collect` is the whole estimation of step values: seeds, splitting, rollouts by `VLLMGenerator`, and the check of every
answer. What it asked the engine for is then asked of `vllm.LLM` directly: in the same calls, with `n` samples per
prefix (`raw`), and prefix by prefix (`loop`, on the first `--loop_prefixes` of them). The cache of prefixes is emptied
between the ways; tokens are sampled ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from transformers import AutoConfig

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.benchmarks.common import machine, table
from tests.vllm_runs import vllm_generator
from trl_prl.collection.monte_carlo import MonteCarloParams, estimate_step_values
from trl_prl.generation.rollouts import Problem
from trl_prl.steps.splitters import FixedLengthSplitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion, Prompt, SamplingParams


class Recorded:
    """A generator that remembers what it was asked."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.calls: list[tuple[list[Prompt], SamplingParams]] = []
        self.num_tokens = 0

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        samples = self.generator.generate(prompts, params)
        self.calls.append((prompts, params))
        self.num_tokens += sum(len(sample.token_ids) for row in samples for sample in row)
        return samples


def ask_vllm(llm: Any, prompts: list[Prompt], params: SamplingParams) -> int:
    """Sample with vLLM's own call, and return the number of tokens."""
    from vllm import SamplingParams as VLLMSamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts],
        [
            VLLMSamplingParams(n=params.n, max_tokens=prompt.max_tokens or params.max_tokens, seed=place)
            for place, prompt in enumerate(prompts)
        ],
        use_tqdm=False,
    )
    return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)


def timed(llm: Any, way: Callable[[], int]) -> tuple[float, int]:
    llm.reset_prefix_cache()
    start = time.perf_counter()
    tokens = way()
    return time.perf_counter() - start, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=arithmetic_policy_path(), help="path; a chat model gets its template")
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--n_cov", type=int, default=2)
    parser.add_argument("--n_mc", type=int, default=8)
    parser.add_argument("--step_length", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=96, help="most tokens of a solution")
    parser.add_argument("--loop_prefixes", type=int, default=12, help="prefixes that the loop is measured on")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", choices=["table", "json"], default="table")
    args = parser.parse_args()

    engine = vllm_generator(args.model, min(1024, AutoConfig.from_pretrained(args.model).max_position_embeddings))
    tokenizer = engine.llm.get_tokenizer()
    problems = []
    for row, problem in enumerate(sample_problems("train", args.problems, seed=0)):
        text = problem.prompt
        if tokenizer.chat_template:
            message = {"role": "user", "content": f"Compute {text.removesuffix('=')} step by step, and explain."}
            text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        problems.append(Problem(row, problem.prompt, ids, {"answer": problem.answer}))

    recorded = Recorded(engine)

    def collect() -> int:
        recorded.calls.clear()
        recorded.num_tokens = 0
        estimate_step_values(
            problems,
            recorded,
            lambda completions, **columns: [float(len(text) % 2) for text in completions],
            FixedLengthSplitter(args.step_length),
            TokenPieces(tokenizer),
            MonteCarloParams(args.n_cov, args.n_mc, unfinished="wrong"),
            SamplingParams(max_tokens=args.new_tokens),
        )
        return recorded.num_tokens

    def raw() -> int:
        return sum(ask_vllm(engine.llm, prompts, params) for prompts, params in recorded.calls)

    def loop() -> int:
        prefixes = [(prompt, params) for prompts, params in recorded.calls for prompt in prompts]
        return sum(ask_vllm(engine.llm, [prompt], params) for prompt, params in prefixes[-args.loop_prefixes :])

    timed(engine.llm, lambda: ask_vllm(engine.llm, [Prompt(problems[0].prompt_ids)], SamplingParams(max_tokens=4)))
    runs = [{way.__name__: timed(engine.llm, way) for way in (collect, raw, loop)} for _ in range(args.repeats)]
    # The machine may be busy with other things: the fastest run of each way counts.
    speed = {name: max(run[name][1] / run[name][0] for run in runs) for name in runs[0]}
    calls = [(len(prompts), params.n) for prompts, params in recorded.calls]
    if args.output == "json":
        print(json.dumps({"machine": machine(), "arguments": vars(args), "calls": calls, "tokens_per_second": speed}))
        return
    print(f"{machine()}\n{args.model}: calls of (prefixes, samples) {calls}, {runs[0]['collect'][1]} tokens\n")
    cells = [(name, f"{v:.0f}", f"{v / speed['raw']:.2f}", f"{v / speed['loop']:.1f}") for name, v in speed.items()]
    print(table(("", "tokens/s", "of raw", "× loop"), cells))


if __name__ == "__main__":
    main()
