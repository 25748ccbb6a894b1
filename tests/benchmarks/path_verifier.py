"""Can a verifier of the path task be learned from rollouts, and what does it cost?

    python tests/benchmarks/path_verifier.py --work runs/path_verifier --output docs/figures/path_verifier.json

Each strategy says whose rollouts value how many prefixes how often; all draw about the same number of rollouts, 64
for each problem and step. Verifiers start from the policy's weights, or from scratch, and learn from a fourth, a half
or all of the problems. They are judged on solutions of the base policy to held-out problems: whether progress tells a
step towards the goal from one that leads away or is impossible (AUROC), and how well values rank prefixes by the
success of 256 further rollouts of the base policy (Spearman, over prefixes that can still succeed). Everything that is
finished is kept, and `--strategies` lets several processes share the work.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import Results, machine_text, table
from datasets import Dataset

from trl_prl.collection.output import best_of_k_row
from trl_prl.demo.path_verifier import (
    PathExam,
    collect_path_values,
    judge,
    path_exam,
    path_generator,
    train_path_verifier,
)
from trl_prl.verifier.model import ProcessAdvantageVerifier


@dataclass(frozen=True)
class Strategy:
    """Whose rollouts, of how many solutions, how many from every prefix."""

    n_cov: int
    n_mc: int
    temperature: float = 1.0
    best_of_k: int = 1
    from_scratch: bool = False
    share: float = 1.0

    @property
    def collection(self) -> str:
        return f"cov{self.n_cov}-mc{self.n_mc}-t{self.temperature:g}"

    @property
    def name(self) -> str:
        start = "scratch" if self.from_scratch else "policy"
        return f"{self.collection}-k{self.best_of_k}-{start}-{self.share:g}"


STRATEGIES = (
    Strategy(4, 16, share=0.25),
    Strategy(4, 16, share=0.5),
    Strategy(4, 16),
    Strategy(4, 16, best_of_k=4),
    Strategy(4, 16, from_scratch=True),
    Strategy(16, 4),
    Strategy(1, 64),
    Strategy(4, 16, temperature=0.5),
)


def trained(args: argparse.Namespace, strategy: Strategy, rows: Dataset) -> ProcessAdvantageVerifier:
    """The verifier of a strategy, from its share of the problems and for its prover."""
    if strategy.best_of_k > 1:
        rows = rows.map(lambda row: best_of_k_row(row, strategy.best_of_k, "unbiased"), features=rows.features)
    names = sorted(set(rows["row"]))
    last = names[int(len(names) * strategy.share) - 1]
    return train_path_verifier(
        rows.filter(lambda row: row["row"] <= last),
        args.work / "verifiers" / strategy.name,
        max_steps=args.steps,
        from_scratch=strategy.from_scratch,
        prover=strategy.name,
        seed=args.seed,
    )


def show(args: argparse.Namespace) -> None:
    """Gather what is finished, and write it with its table."""
    found, rows = {}, []
    for strategy in STRATEGIES:
        data = Results(args.work / f"{strategy.name}.json").data
        if "quality" not in data:
            continue
        found[strategy.name] = data
        quality, cost = data["quality"], data["cost"]
        prover = "the policy" if strategy.temperature == 1 else f"the policy at temperature {strategy.temperature:g}"
        rows.append(
            [
                f"Best-of-{strategy.best_of_k} of {prover}" if strategy.best_of_k > 1 else prover,
                f"{strategy.n_cov} x {strategy.n_mc}",
                "scratch" if strategy.from_scratch else "policy",
                f"{strategy.share * cost['num_sampled_tokens'] / 1e6:.2f}",
                *(f"{quality[name]:.3f}" for name in ("auroc", "spearman", "rmse")),
            ]
        )
    header = ["prover", "solutions x rollouts", "from", "M tokens", "AUROC", "Spearman", "RMSE"]
    text = f"{table(header, rows)}\n{machine_text(next(iter(found.values()))['machine'])}\n"
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/path_verifier"))
    parser.add_argument("--output", type=Path, default=Path("docs/figures/path_verifier.json"))
    parser.add_argument("--strategies", type=int, nargs="*", help="numbers of those to try; all by default")
    parser.add_argument("--problems", type=int, default=512, help="problems of a collection")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of a verifier")
    parser.add_argument("--exam_problems", type=int, default=400, help="held-out problems")
    parser.add_argument("--exam_prefixes", type=int, default=300, help="prefixes valued by 256 rollouts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    drawn = Results(args.work / "exam.json").get(
        "exam", lambda: asdict(path_exam(path_generator(), args.exam_problems, args.exam_prefixes))
    )
    exam = PathExam(**drawn)
    for strategy in STRATEGIES if args.strategies is None else [STRATEGIES[k] for k in args.strategies]:
        results, start = Results(args.work / f"{strategy.name}.json"), time.perf_counter()
        if "quality" in results.data:
            continue
        rows, cost = collect_path_values(
            args.work / strategy.collection, args.problems, n_cov=strategy.n_cov, n_mc=strategy.n_mc,
            temperature=strategy.temperature, seed=args.seed,
            on_progress=lambda progress, strategy=strategy: print(f"{strategy.collection}: {progress}", flush=True),
        )  # fmt: skip
        results.get("cost", lambda cost=cost: cost)
        results.get("quality", lambda strategy=strategy, rows=rows: judge(trained(args, strategy, rows), exam))
        print(f"{strategy.name}: {time.perf_counter() - start:.0f} s, {results.data['quality']}", flush=True)
    show(args)


if __name__ == "__main__":
    main()
