"""A task that was tried and not taken: chains in modular arithmetic, against the conditions of the task of the demo.

    python tests/benchmarks/modular_trial.py --output docs/figures/modular_trial.json

The prompt is a number and operations, `5 + 7 * 12 - 3 =`, from left to right and modulo a prime; a completion is the
value after every operation. A policy of the size of the path policy imitates right chains. Then: how many chains it
solves, how many right answers come through a wrong line, and whether a verifier of the same size and training tells
wrong lines of the policy from right ones better than the policy's own log-probability does.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Results, machine_text, table
from sklearn.metrics import roc_auc_score
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification


SHORT, LONG = 4, 12


class Chains(NamedTuple):
    """Chains modulo a prime. Tokens are the numbers below it, then `+ - * =`, an end and padding."""

    modulus: int

    @property
    def equals(self) -> int:
        return self.modulus + 3

    @property
    def end(self) -> int:
        return self.modulus + 4

    @property
    def pad(self) -> int:
        return self.modulus + 5

    def follow(self, value: int, operation: int, number: int) -> int:
        return (value + number, value - number, value * number)[operation - self.modulus] % self.modulus

    def prompt(self, num_operations: int, generator: random.Random) -> list[int]:
        """No factor is 0, so that a wrong line is never mended by a right one."""
        tokens = [generator.randrange(self.modulus)]
        for _ in range(num_operations):
            tokens += [self.modulus + generator.randrange(3), generator.randrange(1, self.modulus)]
        return [*tokens, self.equals]

    def lines(self, prompt: list[int], generator: random.Random, slips: float = 0.0) -> list[int]:
        """The value after every operation; a share of them is any number, and the next follow from it."""
        found, value = [], prompt[0]
        for operation, number in zip(prompt[1:-1:2], prompt[2::2], strict=True):
            value = self.follow(value, operation, number)
            if generator.random() < slips:
                value = generator.randrange(self.modulus)
            found.append(value)
        return found

    def marks(self, prompt: list[int], lines: list[int]) -> list[bool]:
        """Whether each line follows from the line before it, be that right or wrong."""
        steps = zip([prompt[0], *lines], prompt[1:-1:2], prompt[2::2], lines, strict=False)
        return [before < self.modulus and self.follow(before, *step) == line for before, *step, line in steps]


def build(kind: Any, chains: Chains, **fields: Any) -> Any:
    config = LlamaConfig(
        vocab_size=chains.pad + 1,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=chains.end,
        pad_token_id=chains.pad,
        **fields,
    )
    return kind(config)


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def train(model: Any, chains: Chains, num_batches: int, slips: float, seed: int) -> Any:
    """Imitate right chains (`slips = 0`), or tell the lines of chains with slips apart."""
    generator = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=num_batches)
    for _ in range(num_batches):
        rows, labels = [], []
        for _ in range(64):
            prompt = chains.prompt(generator.randint(2, LONG), generator)
            lines = chains.lines(prompt, generator, slips)
            said = [int(right) for right in chains.marks(prompt, lines)] if slips else [*lines, chains.end]
            rows.append([*prompt, *lines] if slips else [*prompt, *said])
            labels.append([-100] * len(prompt) + said)
        ids = padded(rows, chains.pad)
        loss = model(input_ids=ids, attention_mask=(ids != chains.pad).long(), labels=padded(labels, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def sample(policy: Any, chains: Chains, num_operations: int, num_samples: int, seed: int) -> list[tuple[Any, Any]]:
    generator = random.Random(seed)
    torch.manual_seed(seed)
    prompts = [chains.prompt(num_operations, generator) for _ in range(num_samples)]
    ids = torch.tensor(prompts)
    output = policy.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=num_operations
    )
    return list(zip(prompts, output[:, ids.shape[1] :].tolist(), strict=True))


def measure(policy: Any, chains: Chains, num_operations: int, seed: int) -> dict[str, float]:
    """Success, and luck: the share of the right answers that came through a wrong line."""
    drawn = sample(policy, chains, num_operations, 4000, seed)
    right = [(p, lines) for p, lines in drawn if lines[-1:] == chains.lines(p, random.Random(0))[-1:]]
    lucky = sum(not all(chains.marks(prompt, lines)) for prompt, lines in right)
    return {"success": len(right) / len(drawn), "luck": lucky / max(len(right), 1)}


@torch.inference_mode()
def knows(policy: Any, verifier: Any, chains: Chains, seed: int) -> dict[str, float]:
    """AUROC of right against wrong lines that the policy wrote, by the verifier and by the policy itself."""
    drawn = [(p, lines) for p, lines in sample(policy, chains, LONG, 1000, seed) if max(lines) < chains.modulus]
    ids = torch.tensor([prompt + lines for prompt, lines in drawn])
    start = ids.shape[1] - LONG
    right = [mark for prompt, lines in drawn for mark in chains.marks(prompt, lines)]
    logits = verifier(input_ids=ids).logits[:, start:]
    logprobs = policy(input_ids=ids).logits[:, start - 1 : -1].log_softmax(-1).gather(2, ids[:, start:, None])
    return {
        "verifier": float(roc_auc_score(right, (logits[..., 1] - logits[..., 0]).flatten().tolist())),
        "policy": float(roc_auc_score(right, logprobs.flatten().tolist())),
    }


def trial(modulus: int, num_batches: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    chains = Chains(modulus)
    policy = train(build(LlamaForCausalLM, chains), chains, num_batches, 0.0, seed)
    verifier = train(build(LlamaForTokenClassification, chains, num_labels=2), chains, num_batches, 0.5, seed)
    return {
        "short": measure(policy, chains, SHORT, seed),
        "long": measure(policy, chains, LONG, seed),
        "auroc": knows(policy, verifier, chains, seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moduli", type=int, nargs="+", default=[31])
    parser.add_argument("--num_batches", type=int, nargs="+", default=[1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/modular_trial.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, rows = Results(args.output), []
    for modulus in args.moduli:
        for batches in args.num_batches:
            found = results.get(f"{modulus} {batches}", lambda m=modulus, b=batches: trial(m, b, args.seed))
            percents = [f"{100 * found[k][name]:.1f}" for k in ("short", "long") for name in ("success", "luck")]
            rows.append([modulus, batches, *percents, *(f"{value:.2f}" for value in found["auroc"].values())])
            print(rows[-1], flush=True)
    header = ["modulus", "batches", f"{SHORT} operations, % right", "of these lucky, %"]
    header += [
        f"{LONG} operations, % right",
        "of these lucky, %",
        "AUROC of a verifier",
        "of the policy's log-probability",
    ]
    text = f"{table(header, rows)}\n{machine_text(results.data['machine'])}\n"
    args.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
