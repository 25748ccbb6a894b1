"""A task that was tried and not taken: chains in modular arithmetic, against the conditions of the task of the demo.

    python tests/benchmarks/modular_trial.py --output docs/figures/modular_trial.json

The prompt is a number and operations, `5 + 7 * 12 - 3 =`, from left to right and modulo 31; a completion is the value
after every operation. A policy of the size of the path policy is trained until it solves 20 to 40 % of short chains.
Then: how many right answers come through a wrong line, how many long chains it solves, how much of the variance of a
step's progress is between right steps, and whether a verifier of the same size and training knows a wrong line better
than the policy avoids one.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from common import Results, machine_text, table
from sklearn.metrics import roc_auc_score
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification


MODULUS = 31
PLUS, MINUS, TIMES, EQUALS, END, PAD = range(MODULUS, MODULUS + 6)
SHORT, LONG = 4, 12


def apply(value: int, operation: int, number: int) -> int:
    return {PLUS: value + number, MINUS: value - number, TIMES: value * number}[operation] % MODULUS


def chain(num_operations: int, generator: random.Random) -> tuple[list[int], list[int]]:
    """A prompt, and its completion. No factor is 0, so that every operation can be undone."""
    value = generator.randrange(MODULUS)
    prompt, completion = [value], []
    for _ in range(num_operations):
        operation, number = generator.choice((PLUS, MINUS, TIMES)), generator.randrange(1, MODULUS)
        value = apply(value, operation, number)
        prompt += [operation, number]
        completion.append(value)
    return [*prompt, EQUALS], completion


def right_lines(prompt: list[int], lines: list[int]) -> list[bool]:
    """Whether each line follows from the line before, right or wrong."""
    before = [prompt[0], *lines]
    operations = zip(prompt[1:-1:2], prompt[2::2], strict=True)
    return [b < MODULUS and apply(b, *o) == line for b, o, line in zip(before, operations, lines, strict=False)]


def model_of(kind: Any, **fields: Any) -> Any:
    config = LlamaConfig(
        vocab_size=PAD + 1, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=END, pad_token_id=PAD, **fields,
    )  # fmt: skip
    return kind(config)


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def with_slips(prompt: list[int], generator: random.Random, rate: float) -> list[int]:
    """A completion in which a line is wrong with some probability, and the next follows from it."""
    lines, value = [], prompt[0]
    for operation, number in zip(prompt[1:-1:2], prompt[2::2], strict=True):
        value = apply(value, operation, number)
        if generator.random() < rate:
            value = generator.randrange(MODULUS)
        lines.append(value)
    return lines


def train(model: Any, num_batches: int, verifier: bool, seed: int) -> Any:
    """Imitate right chains, or tell right lines from wrong ones in chains half of whose lines are wrong."""
    generator = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=num_batches)
    for _ in range(num_batches):
        rows, labels = [], []
        for _ in range(64):
            prompt, lines = chain(generator.randint(2, LONG), generator)
            if verifier:
                lines = with_slips(prompt, generator, 0.5)
                said = [int(right) for right in right_lines(prompt, lines)]
            else:
                lines = [*lines, END]
                said = lines
            rows.append(prompt + lines)
            labels.append([-100] * len(prompt) + said)
        ids = padded(rows, PAD)
        loss = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=padded(labels, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def sample(model: Any, num_operations: int, num_samples: int, seed: int) -> list[tuple[list[int], list[int]]]:
    generator = random.Random(seed)
    torch.manual_seed(seed)
    prompts = [chain(num_operations, generator)[0] for _ in range(num_samples)]
    ids = torch.tensor(prompts)
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=num_operations
    )
    return list(zip(prompts, output[:, ids.shape[1] :].tolist(), strict=True))


def measure(model: Any, num_operations: int, seed: int) -> dict[str, float]:
    """Success, luck, and the share of wrong lines."""
    drawn = sample(model, num_operations, 2000, seed)
    solved = [lines for prompt, lines in drawn if lines[-1] == with_slips(prompt, random.Random(0), 0.0)[-1]]
    marks = [right_lines(prompt, lines) for prompt, lines in drawn]
    lucky = sum(
        not all(mark) for (prompt, lines), mark in zip(drawn, marks, strict=True)
        if lines[-1] == with_slips(prompt, random.Random(0), 0.0)[-1]
    )  # fmt: skip
    wrong = sum(not line for mark in marks for line in mark) / sum(map(len, marks))
    return {"success": len(solved) / len(drawn), "luck": lucky / max(len(solved), 1), "wrong_lines": wrong}


@torch.inference_mode()
def verifier_auroc(policy: Any, verifier: Any, seed: int) -> float:
    """Of lines that the policy wrote, right against wrong."""
    drawn = sample(policy, LONG, 1000, seed)
    ids = torch.tensor([prompt + lines for prompt, lines in drawn])
    start = ids.shape[1] - LONG
    logits = verifier(input_ids=ids).logits[:, start:]
    scores = (logits[..., 1] - logits[..., 0]).flatten().tolist()
    return float(roc_auc_score([m for prompt, lines in drawn for m in right_lines(prompt, lines)], scores))


def trial(num_batches: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    policy = train(model_of(LlamaForCausalLM), num_batches, False, seed)
    verifier = train(model_of(LlamaForTokenClassification, num_labels=2), num_batches, True, seed)
    return {
        "short": measure(policy, SHORT, seed),
        "long": measure(policy, LONG, seed),
        "verifier_auroc": verifier_auroc(policy, verifier, seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_batches", type=int, nargs="+", default=[1000, 1500, 2000, 3000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/modular_trial.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, rows = Results(args.output), []
    for num_batches in args.num_batches:
        found = results.get(f"{num_batches}", lambda num_batches=num_batches: trial(num_batches, args.seed))
        percents = [found[k][name] for k in ("short", "long") for name in ("success", "luck", "wrong_lines")]
        rows.append([num_batches, *(f"{100 * value:.1f} %" for value in percents), f"{found['verifier_auroc']:.3f}"])
        print(rows[-1], flush=True)
    header = ["batches", *(f"{k}: {name}" for k in ("short", "long") for name in ("success", "luck", "wrong lines"))]
    text = f"{table([*header, 'AUROC of a verifier'], rows)}\n{machine_text(results.data['machine'])}\n"
    args.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
