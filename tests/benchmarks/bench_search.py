"""Beam search by effective reward against best-of-n, votes and pass@n on arithmetic in text, at equal sampled tokens.

    python tests/benchmarks/bench_search.py --verifier runs/arithmetic_verifier --output docs/figures/search.json

The shipped policy is searched with a trained verifier, or, without one, with the exact values of the task's prover.
The verifier gives Q and, as the Best-of-K policy of its own values, A. alpha is chosen on the tuning split at K = 4;
everything else is on the test split, with problems and samples of its own for each seed. Methods over whole solutions
get as many of them as have the tokens of the beam they are compared with. Writes the results, a `.md` with the tables
and a `.png`. Finished runs are kept, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from arithmetic.prover import ArithmeticProcessReward
from arithmetic.task import arithmetic_policy_path, arithmetic_reward, read_answer, sample_problems
from common import Results, machine_text, spread, table
from search_runs import CEILING, at_tokens, difference, percent, sample_run, search_run, tokens_ratio

from trl_prl import (
    DelimiterSplitter,
    EffectiveReward,
    ProcessAdvantageVerifier,
    SamplingParams,
    TokenPieces,
    TransformersGenerator,
    beam_search,
    best_of_n_search,
)
from trl_prl.generation.rollouts import Problem
from trl_prl.report.plots import STYLES, draw_curves, new_figure, save
from trl_prl.search.best_of_n import Choice, choose


ALPHAS = (0.1, 0.2, 0.5, 1.0, 2.0)
PROVERS = (1, 2, 4, 8, 16, 32)
TUNING_SEED = 1000
SAMPLED = ("best-of-n by ORM", "weighted vote", "majority vote", CEILING)
BEAMS = ("beam, Q + alpha A", "beam, Q only")


class Bench:
    """The policy, what scores, and the finished runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results = Results(args.output)
        self.generator = TransformersGenerator.from_pretrained(arithmetic_policy_path(), dtype="float32", device="cpu")
        verifier: Any = ArithmeticProcessReward(args.error_rate)
        if args.verifier is not None:
            verifier = ProcessAdvantageVerifier.from_pretrained(args.verifier)
        self.verifier = verifier
        self.scorer = "exact" if args.verifier is None else Path(args.verifier).name

    def setting(self, split: Literal["tuning", "test"], seed: int) -> tuple[list[Problem], dict[str, Any]]:
        """Problems and arguments of a run."""
        problems = [
            Problem(row, p.prompt, tuple(self.generator.tokenizer(p.prompt).input_ids), {"answer": p.answer})
            for row, p in enumerate(sample_problems(split, self.args.problems, seed, self.args.terms))
        ]
        arguments = {
            "generator": self.generator,
            "splitter": DelimiterSplitter("\n"),
            "token_pieces": TokenPieces(self.generator.tokenizer),
            "sampling": SamplingParams(max_tokens=8 * self.args.terms, seed=seed),
        }
        return problems, arguments

    def beam(self, split: Literal["tuning", "test"], seed: int, size: int, alpha: float, k: int) -> dict[str, Any]:
        """One beam search over all problems: which were solved, at what cost per problem."""

        def compute() -> dict[str, Any]:
            problems, arguments = self.setting(split, seed)
            reward = EffectiveReward(self.verifier, alpha=alpha, best_of_k=k)
            found = beam_search(problems, process_reward=reward, beam_size=size, **arguments)
            return search_run(problems, found, check)

        shown = f"alpha {alpha:g}" + (f" K {k}" if alpha else "")
        return self.results.get(f"{self.key(split, seed)} beam {size} {shown}", compute)

    def samples(self, seed: int) -> dict[str, Any]:
        """Whole solutions of all problems: which index each method chooses among the first n, and what is right."""

        def compute() -> dict[str, Any]:
            problems, arguments = self.setting("test", seed)
            n = self.args.samples
            found = best_of_n_search(problems, process_reward=self.verifier, n=n, **arguments)
            choices: tuple[Choice, ...] = ("best_of_n", "weighted_vote", "majority_vote")
            rules = {
                method: partial(choose, choice=choice, answer_of=read_answer)
                for method, choice in zip(SAMPLED, choices, strict=False)
            }
            return sample_run(problems, found, check, rules)

        return self.results.get(f"{self.key('test', seed)} samples {self.args.samples}", compute)

    def key(self, split: str, seed: int) -> str:
        """What all runs of a kind have in common."""
        return f"{self.scorer} {self.args.terms} terms {self.args.problems} problems {split} seed {seed}"

    def tune(self) -> tuple[float, str]:
        """alpha on the tuning split, with the prover of the paper, and the table of its choice."""
        found = {alpha: self.beam("tuning", TUNING_SEED, self.args.tuning_size, alpha, 4) for alpha in (0.0, *ALPHAS)}
        shares = {alpha: 100 * statistics.fmean(run["correct"]) for alpha, run in found.items()}
        best = max(ALPHAS, key=lambda alpha: shares[alpha])
        return best, table(["alpha", "accuracy %"], [(f"{a:g}", f"{share:.1f}") for a, share in shares.items()])


def check(problem: Problem, texts: Sequence[str]) -> list[float]:
    """Outcomes of texts that answer a problem."""
    return arithmetic_reward(list(texts), [problem.columns["answer"]] * len(texts))


def compare(bench: Bench, alpha: float, k: int) -> tuple[str, str, dict[str, Any]]:
    """Accuracy of every method at the tokens of each beam, the gain of the effective reward, and the curves."""
    args = bench.args
    sampled = [bench.samples(seed) for seed in range(args.seeds)]
    rows, gains = [], []
    curves: dict[str, list[list[float]]] = {method: [] for method in (*BEAMS, *SAMPLED)}
    costs: list[float] = []
    for size in args.sizes:
        runs = {
            name: [bench.beam("test", seed, size, weight, k) for seed in range(args.seeds)]
            for name, weight in zip(BEAMS, (alpha, 0.0), strict=True)
        }
        tokens = [run["tokens"] for run in runs[BEAMS[0]]]
        found: dict[str, list[list[int]]] = {name: [run["correct"] for run in group] for name, group in runs.items()}
        for method in SAMPLED:
            pairs = [at_tokens(one, method, t) for one, t in zip(sampled, tokens, strict=True)]
            found[method] = [correct for _, correct in pairs]
        numbers = [at_tokens(one, "pass@n", t)[0] for one, t in zip(sampled, tokens, strict=True)]
        costs.append(statistics.fmean(tokens))
        for method, group in found.items():
            curves[method].append([100 * statistics.fmean(correct) for correct in group])
        scored = statistics.fmean(run["scored"] for run in runs[BEAMS[0]])
        shown = f"{statistics.fmean(numbers):.0f}"
        rows.append(
            [size, f"{costs[-1]:.0f}", f"{scored:.0f}", shown, *(percent(found[m]) for m in (*BEAMS, *SAMPLED))]
        )
        gains.append([size, *gain(found, sampled, tokens)])
    header = ["beam", "tokens", "scored tokens", "n at these tokens", *BEAMS, *SAMPLED]
    gain_header = ["beam", "effective - best-of-n, points", "effective - Q only, points", "tokens of best-of-n / beam"]
    return table(header, rows), table(gain_header, gains), {"curves": curves, "tokens": costs}


def gain(found: dict[str, list[list[int]]], sampled: list[dict[str, Any]], tokens: list[float]) -> list[str]:
    """Points over best-of-n and over Q alone, and how many times the tokens best-of-n needs for the same accuracy."""
    effective = found[BEAMS[0]]
    cells = [difference(effective, found[other]) for other in (SAMPLED[0], BEAMS[1])]
    return [*cells, tokens_ratio(sampled, SAMPLED[0], effective, tokens)]


def provers(bench: Bench, alpha: float) -> tuple[str, list[list[float]]]:
    """Accuracy by the K of the prover at one beam size: values for Q stay, A is that of their Best-of-K policy."""
    args = bench.args
    rows, curve = [], []
    for k in PROVERS:
        runs = [bench.beam("test", seed, args.prover_size, alpha, k)["correct"] for seed in range(args.seeds)]
        shares = [100 * statistics.fmean(correct) for correct in runs]
        curve.append(shares)
        rows.append([k, percent(runs), spread(shares)])
    runs = [bench.beam("test", seed, args.prover_size, 0.0, 4)["correct"] for seed in range(args.seeds)]
    rows.append(["Q only", percent(runs), spread([100 * statistics.fmean(correct) for correct in runs])])
    return table(["K", "accuracy % (interval)", "mean and range of seeds"], rows), curve


def draw(data: dict[str, Any], curve: list[list[float]], sizes: tuple[int, int], path: Path) -> None:
    """Accuracy against tokens, and against the prover's K."""
    figure, (left, right) = new_figure(2, width=6)
    names = {name: [list(run) for run in zip(*points, strict=True)] for name, points in data["curves"].items()}
    draw_curves(left, names, x=data["tokens"])
    left.set_xscale("log")
    left.set(title=f"{sizes[0]} terms", xlabel="tokens sampled per problem", ylabel="accuracy, %")
    low, high, mean = ([pick(shares) for shares in curve] for pick in (min, max, statistics.fmean))
    right.plot(PROVERS, mean, **STYLES[0])
    right.fill_between(PROVERS, low, high, color=STYLES[0]["color"], alpha=0.15)
    right.set_xscale("log", base=2)
    right.set(title=f"beam of {sizes[1]}", xlabel="K of the Best-of-K prover of A", ylabel="accuracy, %")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verifier", help="folder of a trained verifier; the task's exact values by default")
    parser.add_argument("--error_rate", type=float, default=0.1, help="of the exact values' prover, per line")
    parser.add_argument("--terms", type=int, default=8, help="terms per problem")
    parser.add_argument("--problems", type=int, default=128, help="problems per seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="beam sizes")
    parser.add_argument("--samples", type=int, default=256, help="whole solutions per problem")
    parser.add_argument("--tuning_size", type=int, default=8, help="beam size at which alpha is chosen")
    parser.add_argument("--prover_size", type=int, default=8, help="beam size of the curve over K")
    parser.add_argument("--alpha", type=float, help="weight of A, instead of choosing it")
    parser.add_argument("--best_of_k", type=int, default=4, help="prover of the comparison; the paper's is 4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/search.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    alpha, tuning = (args.alpha, "") if args.alpha is not None else bench.tune()
    comparison, gains, data = compare(bench, alpha, args.best_of_k)
    by_prover, curve = provers(bench, alpha)
    text = f"{args.terms} terms, {args.seeds} seeds of {args.problems} problems, scored by {bench.scorer} values. "
    text += f"Accuracy in %, with Wilson intervals over all; alpha = {alpha:g}, K = {args.best_of_k}\n\n"
    text += f"Tuning split, beam of {args.tuning_size}\n\n{tuning}\n" if tuning else ""
    text += f"At the tokens of each beam, per problem\n\n{comparison}\n{gains}\n"
    text += f"By the prover's K, beam of {args.prover_size}\n\n{by_prover}\n"
    text += f"{machine_text(bench.results.data['machine'])}\n"
    args.output.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(data, curve, (args.terms, args.prover_size), args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
