"""Train, or evaluate, the base policy of the path task that ships inside the package.

    python tests/benchmarks/train_path_policy.py --output_dir trl_prl/demo/path_policy
    python tests/benchmarks/train_path_policy.py --evaluate trl_prl/demo/path_policy

The policy imitates walks between any two nodes of the train split, a tenth of them shortest paths and the others
random. It knows the edges and that a walk ends at its goal, and has much to learn about where to go.
"""

from __future__ import annotations

import argparse
import json
import random
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_prl.demo.path_prover import step_probs
from trl_prl.demo.paths import FAR, MAX_LINES, NEAR, NODES, NUM_NODES, PathProblem, is_right, problems_of
from trl_prl.demo.tokenizers import character_tokenizer


EOS, PAD = "<eos>", "<pad>"


def build_path_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with one token per character of a problem or solution, and end and padding tokens.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: 53 tokens; pads on the left.
    """
    return character_tokenizer([PAD, EOS, *NODES, ">", "=", "\n"], eos=EOS, pad=PAD)


def sample_walk(problem: PathProblem, wander: float, generator: random.Random) -> str:
    """A walk from the start, as a solution that may miss the goal.

    Args:
        problem ([`PathProblem`]):
            The problem.
        wander (`float`):
            Probability of a step to any neighbour.
        generator (`random.Random`):
            Source of randomness.

    Returns:
        `str`: Lines with their line breaks, at most `MAX_LINES`, none after the goal.
    """
    node, goal = NODES.index(problem.start), NODES.index(problem.goal)
    lines: list[str] = []
    while node != goal and len(lines) < MAX_LINES:
        (node,) = generator.choices(range(NUM_NODES), step_probs(wander)[goal, node].tolist())
        lines.append(f"{NODES[node]}\n")
    return "".join(lines)


def batch(problems, tokenizer, size: int, shortest: float, generator: random.Random):
    """Input ids and labels of walks; padding is on the right, behind the end token."""
    rows = []
    for problem in generator.choices(problems, k=size):
        wander = 0.0 if generator.random() < shortest else 1.0
        prompt = tokenizer(problem.prompt).input_ids
        rows.append(
            (
                len(prompt),
                [*prompt, *tokenizer(sample_walk(problem, wander, generator)).input_ids, tokenizer.eos_token_id],
            )
        )
    ids = torch.full((size, max(len(row) for _, row in rows)), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for place, (start, row) in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        labels[place, start : len(row)] = torch.tensor(row[start:])
    return ids, labels


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    generator = random.Random(args.seed)
    tokenizer = build_path_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).float().to(args.device)
    problems = problems_of("train", (1, 99))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.num_batches)
    start = time.perf_counter()
    for index in range(args.num_batches):
        ids, labels = batch(problems, tokenizer, args.batch_size, args.shortest, generator)
        loss = model(input_ids=ids.to(args.device), labels=labels.to(args.device)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (index + 1) % 50 == 0:
            print(f"batch {index + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    model.cpu().eval().save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


@torch.inference_mode()
def evaluate(path: str, args: argparse.Namespace) -> None:
    """Sample every problem of a split at temperature 1 and print the share of right walks, and of groups with one."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    torch.manual_seed(args.seed)
    for name, num_edges in (("near", NEAR), ("far", FAR)):
        problems = problems_of(args.split, num_edges)
        inputs = tokenizer([problem.prompt for problem in problems], padding=True, return_tensors="pt")
        output = model.generate(
            input_ids=inputs.input_ids.repeat_interleave(args.num_samples, 0),
            attention_mask=inputs.attention_mask.repeat_interleave(args.num_samples, 0),
            max_new_tokens=25,
            do_sample=True,
            temperature=1.0,
            top_k=0,
        )
        texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        right = torch.tensor([is_right(problems[i // args.num_samples].prompt, text) for i, text in enumerate(texts)])
        right = right.view(-1, args.num_samples).float()
        shown = {
            "split": args.split,
            "problems": name,
            "n": len(problems),
            "avg": right.mean().item(),
            "pass": right.amax(1).mean().item(),
        }
        print(json.dumps(shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir")
    parser.add_argument("--evaluate", metavar="PATH")
    parser.add_argument("--num_batches", type=int, default=2500)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--shortest", type=float, default=0.1, help="share of shortest paths among the walks imitated")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.output_dir:
        train(args)
    if args.evaluate or args.output_dir:
        evaluate(args.evaluate or args.output_dir, args)


if __name__ == "__main__":
    main()
