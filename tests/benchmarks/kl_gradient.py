"""Which credit is the gradient of a KL penalty, how far policies drift under each, and how noisy each is.

    PYTHONPATH=. python tests/benchmarks/kl_gradient.py

A softmax policy with a parameter for every prefix (3 tokens, 6 tokens long) has 729 completions, so expectations are
sums over all of them. Writes docs/figures/kl_gradient.json and docs/figures/kl_gradient.md, the same at every run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import table
from torch import Tensor

from tests.tabular_policy import TabularPolicy, cosine
from trl_prl.credit.groups import from_positions, leave_one_out, to_positions
from trl_prl.credit.kl import kl_to_go


BETA = 0.2
NUM_GENERATIONS = 8
NUM_GROUPS = 1500
POLICY = TabularPolicy(vocab_size=3, length=6)
REFERENCE = POLICY.logits(seed=0)
# One completion in ten is right.
REWARDS = (torch.rand(len(POLICY.tokens), generator=torch.Generator().manual_seed(1)) < 0.1).double()

FORMS: dict[str, dict[str, Any]] = {
    "`token`": {"level": "token"},
    "`step`, 2 tokens": {"level": "step", "step_length": 2},
    "`step`, 3 tokens": {"level": "step", "step_length": 3},
    "`step`, 6 tokens": {"level": "step", "step_length": 6},
    "`step_end`, 2 tokens": {"level": "step_end", "step_length": 2},
    "`step_end`, 3 tokens": {"level": "step_end", "step_length": 3},
    "`step_end`, 6 tokens": {"level": "step_end", "step_length": 6},
    "`token`, `kl_inclusive=False`": {"level": "token", "inclusive": False},
}
IN_LOSS, NO_KL = "in the loss (GRPO, k3)", "no KL"


def kl_weights(logits: Tensor, step_length: int = 1, **options: Any) -> Tensor:
    """KL to go of every completion, of shape (N, T)."""
    logps, ref_logps = POLICY.logps(logits), POLICY.logps(REFERENCE)
    return kl_to_go(logps, ref_logps, POLICY.fixed_steps(step_length), **options)


def kl_gradient(name: str, logits: Tensor) -> Tensor:
    """What a form makes of the gradient of −KL."""
    if name == NO_KL:
        return torch.zeros_like(logits)
    if name == IN_LOSS:
        # Differentiated through the log-probability of the token alone, k3 pulls with weight 1 − u.
        growth = torch.expm1(POLICY.logps(REFERENCE) - POLICY.logps(logits))
        return POLICY.expected_gradient(logits, growth)
    return POLICY.expected_gradient(logits, -kl_weights(logits, **FORMS[name]))


def true_gradient(logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-POLICY.kl(logits, REFERENCE), logits)
    return gradient


def ascend(name: str, num_steps: int = 1000, learning_rate: float = 5.0) -> Tensor:
    """Parameters after ascent along the exact expectation of reward and KL part, from the reference."""
    logits = REFERENCE.clone()
    outcome = REWARDS.unsqueeze(1).expand(-1, POLICY.length)
    for _ in range(num_steps):
        logits += learning_rate * (POLICY.expected_gradient(logits, outcome) + BETA * kl_gradient(name, logits))
    return logits


def best_logits() -> Tensor:
    """The best policy in closed form: pi proportional to pi_ref·exp(r / beta)."""
    weights = POLICY.probabilities(REFERENCE) * (REWARDS / BETA).exp()
    totals = torch.zeros(REFERENCE.numel(), dtype=torch.float64)
    entries = POLICY.states * POLICY.vocab_size + POLICY.tokens
    for depth in range(POLICY.length):
        totals.index_add_(0, entries[:, depth], weights)
    return totals.view_as(REFERENCE).log()


def outcome_of(logits: Tensor) -> dict[str, float]:
    kl = float(POLICY.kl(logits, REFERENCE))
    reward = float((POLICY.probabilities(logits) * REWARDS).sum())
    return {"kl": kl, "reward": reward, "objective": reward - BETA * kl}


def variances(logits: Tensor, values: Tensor, step_length: int, seed: int = 0) -> dict[str, float]:
    """Variance of the mean gradient of a group, without and with the baseline, over the squared true gradient."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = NUM_GROUPS * NUM_GENERATIONS
    rows = torch.multinomial(POLICY.probabilities(logits), num_rows, replacement=True, generator=generator)
    step_ids = POLICY.fixed_steps(step_length)[rows]
    plain = values[rows].float()
    baseline = from_positions(leave_one_out(to_positions(plain, step_ids), NUM_GENERATIONS), step_ids)
    squared = float(POLICY.expected_gradient(logits, values).square().sum())
    found = {}
    for name, weights in (("none", plain), ("group", plain - baseline)):
        gradients = POLICY.sample_gradients(logits, rows, weights).reshape(NUM_GROUPS, NUM_GENERATIONS, -1).mean(1)
        found[name] = float(gradients.var(dim=0).sum()) / squared
    return found


def progress_values(logits: Tensor) -> Tensor:
    """Progress of every token under the best of four samples of the reference, of shape (N, T)."""
    reference, length = POLICY.probabilities(REFERENCE), POLICY.length
    values = torch.empty(len(POLICY.tokens), length + 1, dtype=torch.float64)
    codes = torch.zeros(len(POLICY.tokens), dtype=torch.long)
    for depth in range(length + 1):
        if depth:
            codes = codes * POLICY.vocab_size + POLICY.tokens[:, depth - 1]
        size = POLICY.vocab_size**depth
        right = torch.zeros(size, dtype=torch.float64).index_add_(0, codes, reference * REWARDS)
        total = torch.zeros(size, dtype=torch.float64).index_add_(0, codes, reference)
        values[:, depth] = 1 - (1 - (right / total)[codes]) ** 4
    return values.diff(dim=1)


def measure() -> dict[str, Any]:
    reference = REFERENCE.log_softmax(1)
    way = best_logits().log_softmax(1) - reference
    halfway = reference + 0.5 * way
    truth = true_gradient(halfway)
    names = [*FORMS, IN_LOSS]
    results: dict[str, Any] = {
        "beta": BETA,
        "reward_of_the_reference": float((POLICY.probabilities(REFERENCE) * REWARDS).sum()),
        "kl_where_compared": float(POLICY.kl(halfway, REFERENCE)),
        "cosine": {name: cosine(kl_gradient(name, halfway), truth) for name in names},
        "optimum": outcome_of(best_logits()),
        "ascent": {name: outcome_of(ascend(name)) for name in [*names, NO_KL]},
        "variance": {},
    }
    for drift in (0.1, 0.5, 1.0):
        logits = reference + drift * way
        kl = f"{float(POLICY.kl(logits, REFERENCE)):.2f}"
        for level, step_length in (("token", 1), ("step", 3)):
            for estimator in ("k1", "k3"):
                values = -kl_weights(logits, step_length, level=level, estimator=estimator)
                key = f"KL to go, `{level}`" + (", 3 tokens" if step_length > 1 else "")
                results["variance"][f"{key}|{estimator}|{kl}"] = variances(logits, values, step_length)
        progress = progress_values(logits)
        results["variance"][f"progress, best of 4||{kl}"] = variances(logits, progress, 1)
    return results


def markdown(results: dict[str, Any]) -> str:
    ascent, best = results["ascent"], results["optimum"]
    rows = [
        (
            name,
            f"{results['cosine'][name]:.2f}" if name in results["cosine"] else "",
            *(f"{ascent[name][key]:.2f}" for key in ("kl", "reward", "objective")),
        )
        for name in ascent
    ]
    rows.append(("optimum, closed form", "", *(f"{best[key]:.2f}" for key in ("kl", "reward", "objective"))))
    gradient = table(
        ("KL part", "cosine with the gradient of −KL", "KL after ascent", "reward", "reward − 0.2 · KL"), rows
    )
    noise = table(
        ("credit", "estimator", "KL of the policy", "without baseline", '`process_baseline="group"`', "ratio"),
        [
            (*key.split("|"), f"{found['none']:.3g}", f"{found['group']:.3g}", f"{found['group'] / found['none']:.2f}")
            for key, found in results["variance"].items()
        ],
    )
    return (
        f"Cosines at a policy {results['kl_where_compared']:.2f} nats from the reference; ascent with exact gradients "
        f"at beta {BETA}, from the reference, whose reward is {results['reward_of_the_reference']:.2f}.\n\n"
        f"{gradient}\n"
        f"Variance of the mean gradient over {NUM_GENERATIONS} completions, as a multiple of the squared norm of the "
        f"expected gradient ({NUM_GROUPS} groups).\n\n{noise}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="folder for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = measure()
    (args.output / "kl_gradient.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    (args.output / "kl_gradient.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
