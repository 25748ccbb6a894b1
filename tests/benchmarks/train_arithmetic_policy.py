"""Train, or evaluate, the base policy of the arithmetic task that tests start from.

    python tests/benchmarks/train_arithmetic_policy.py --output_dir tests/benchmarks/arithmetic/policy
    python tests/benchmarks/train_arithmetic_policy.py --evaluate tests/benchmarks/arithmetic/policy

The policy imitates solutions of a prover that slips on some lines, on problems of the train split with two to eight
terms. It stops early, so it knows the format, is right often enough to learn from, and has much left to learn. Long
problems are rare in its data.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from arithmetic.prover import continue_solution
from arithmetic.task import (
    LONG_NUM_TERMS,
    MAIN_NUM_TERMS,
    arithmetic_reward,
    build_arithmetic_tokenizer,
    sample_problems,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


NUM_TERMS_SHARES = {2: 0.10, 3: 0.20, 4: 0.40, 5: 0.10, 6: 0.10, 7: 0.05, 8: 0.05}


def batches(args: argparse.Namespace, tokenizer, num_batches: int, seed: int):
    """Yield input ids and labels; the problems of a batch have one number of terms, so there is little padding."""
    generator = np.random.default_rng(seed)
    num_terms = generator.choice(list(NUM_TERMS_SHARES), size=num_batches, p=list(NUM_TERMS_SHARES.values()))
    pools = {
        terms: iter(sample_problems("train", count * args.batch_size, seed, terms))
        for terms, count in Counter(num_terms.tolist()).items()
    }
    for terms in num_terms.tolist():
        problems = [next(pools[terms]) for _ in range(args.batch_size)]
        prompts = [tokenizer(problem.prompt).input_ids for problem in problems]
        solutions = [
            [*tokenizer(continue_solution(problem, "", args.error_rate, generator)).input_ids, tokenizer.eos_token_id]
            for problem in problems
        ]
        width = max(len(p) + len(s) for p, s in zip(prompts, solutions, strict=True))
        ids = torch.full((args.batch_size, width), tokenizer.pad_token_id)
        labels = torch.full((args.batch_size, width), -100)
        for row, (prompt, solution) in enumerate(zip(prompts, solutions, strict=True)):
            end = len(prompt) + len(solution)
            ids[row, :end] = torch.tensor(prompt + solution)
            labels[row, len(prompt) : end] = torch.tensor(solution)
        yield ids, labels


def train_cycle(args: argparse.Namespace, model: LlamaForCausalLM, data, num_batches: int) -> None:
    """Train for one cycle of the learning rate, up from and down to almost zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=num_batches)
    start = time.perf_counter()
    for index, (ids, labels) in enumerate(data):
        # Padding is on the right, so causal attention never reaches it from a position that has a label.
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (index + 1) % 50 == 0:
            print(f"batch {index + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    tokenizer = build_arithmetic_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).float()
    for cycle, num_batches in enumerate(args.num_batches):
        train_cycle(args, model, batches(args, tokenizer, num_batches, args.seed + cycle), num_batches)
    # The generation config holds the sampling that training uses, so that `generate` needs no further argument.
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    model.eval().save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


@torch.inference_mode()
def evaluate(path: str, args: argparse.Namespace) -> list[dict]:
    """Sample every problem `num_samples` times at temperature 1 and report avg@n, pass@n and the format."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    torch.manual_seed(args.seed)
    rows = []
    for num_terms in args.num_terms:
        problems = sample_problems(args.split, args.num_problems, args.seed, num_terms)
        inputs = tokenizer([problem.prompt for problem in problems], padding=True, return_tensors="pt")
        output = model.generate(
            input_ids=inputs.input_ids.repeat_interleave(args.num_samples, 0),
            attention_mask=inputs.attention_mask.repeat_interleave(args.num_samples, 0),
            max_new_tokens=8 * num_terms,
            do_sample=True,
            temperature=1.0,
            top_k=0,
        )
        texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        answers = [problem.answer for problem in problems for _ in range(args.num_samples)]
        right = np.array(arithmetic_reward(texts, answers)).reshape(-1, args.num_samples)
        well_formed = [text.count("\n") == num_terms - 1 and "#" in text.split("\n")[-1] for text in texts]
        tokens = [len(ids) for ids in tokenizer(texts).input_ids]
        rows.append(
            {
                "split": args.split,
                "num_terms": num_terms,
                f"avg@{args.num_samples}": round(float(right.mean()), 4),
                "standard error": round(float(right.mean(1).std() / math.sqrt(len(right))), 4),
                f"pass@{args.num_samples}": round(float(right.any(1).mean()), 4),
                "well formed": round(float(np.mean(well_formed)), 4),
                "tokens (mean)": round(float(np.mean(tokens)), 1),
                "tokens (max)": max(tokens),
                "problems": len(problems),
                "seed": args.seed,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="arithmetic_policy")
    parser.add_argument("--evaluate", metavar="FOLDER", help="evaluate this policy instead of training one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_batches", type=int, nargs="+", default=[1200], help="one entry per cycle")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument(
        "--error_rate", type=float, default=0.15, help="share of wrong lines in the imitated solutions"
    )
    parser.add_argument("--split", default="test", choices=["train", "tuning", "test"])
    parser.add_argument("--num_terms", type=int, nargs="+", default=[MAIN_NUM_TERMS, LONG_NUM_TERMS])
    parser.add_argument("--num_problems", type=int, default=500)
    parser.add_argument("--num_samples", type=int, default=8)
    args = parser.parse_args()
    if args.evaluate:
        evaluate(args.evaluate, args)
    else:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        train(args)
        evaluate(args.output_dir, args)


if __name__ == "__main__":
    main()
