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
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Results, machine_text, table
from datasets import Dataset, load_dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from trl_prl.collection.config import CollectConfig
from trl_prl.collection.job import CollectWorker, collect
from trl_prl.collection.output import best_of_k_row
from trl_prl.demo.path_training import MAX_COMPLETION_LENGTH
from trl_prl.demo.paths import distances, is_right, parse_problem, path_policy_path, path_reward, problems_of, start_of
from trl_prl.demo.training import cpu_fields
from trl_prl.generation.local import TransformersGenerator
from trl_prl.jobs.options import Tools
from trl_prl.metrics.step_values import auroc
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.types import Prompt, SamplingParams
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.trainer import PAVRewardTrainer


EDGES = (2, 9)


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


def problems(split: Any, number: int, seed: int) -> Dataset:
    """Problems of all distances, as often as they come."""
    known = problems_of(split, EDGES)
    rows = random.Random(seed).sample(known, min(number, len(known)))
    return Dataset.from_dict({"prompt": [row.prompt for row in rows], "goal": [row.goal for row in rows]})


def collected(args: argparse.Namespace, strategy: Strategy) -> tuple[Dataset, dict[str, Any]]:
    """Rows of a collection and their cost, from the finished units or anew."""
    config = CollectConfig(
        model="trl_prl/demo/path_policy", dataset="trl_prl.demo.paths", reward="trl_prl.demo.paths:path_reward",
        output_dir=str(args.work / strategy.collection), n_cov=strategy.n_cov, n_mc=strategy.n_mc,
        splitter="newline", max_completion_length=MAX_COMPLETION_LENGTH, temperature=strategy.temperature,
        seed_temperature=None if strategy.temperature == 1.0 else 1.0, problems_per_unit=32, seed=args.seed,
    )  # fmt: skip
    dataset, tokenizer = problems("train", args.problems, args.seed), AutoTokenizer.from_pretrained(path_policy_path())

    def make_worker() -> CollectWorker:
        made: dict[str, Any] = {"tokenizer": tokenizer, "generator": generator(tokenizer), "reward": path_reward}
        return CollectWorker(config, dataset, Tools(config, **made))

    def tell(progress: Any) -> None:
        print(f"{strategy.collection}: {progress}", flush=True)

    found = collect(config, dataset, make_worker, on_progress=tell)
    assert found is not None
    return load_dataset("parquet", data_files=str(found.path), split="train"), found.spending.as_dict()


def generator(tokenizer: Any) -> TransformersGenerator:
    model = AutoModelForCausalLM.from_pretrained(path_policy_path(), dtype=torch.float32)
    return TransformersGenerator(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)


def train(args: argparse.Namespace, strategy: Strategy, rows: Dataset) -> ProcessAdvantageVerifier:
    """Train to convergence on the evaluation loss, and calibrate on the held-out rows."""
    if strategy.best_of_k > 1:
        rows = rows.map(lambda row: best_of_k_row(row, strategy.best_of_k, "unbiased"), features=rows.features)
    names = sorted(set(rows["row"]))
    names = names[: int(len(names) * strategy.share)]
    cut = names[int(0.9 * len(names))]
    fit, held_out = rows.filter(lambda row: row["row"] < cut), rows.filter(lambda row: cut <= row["row"] <= names[-1])
    torch.manual_seed(args.seed)
    path, folder = path_policy_path(), args.work / "verifiers" / strategy.name
    if strategy.from_scratch:
        model = AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(path, num_labels=1))
    else:
        model = AutoModelForTokenClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    tokenizer, fields = AutoTokenizer.from_pretrained(path), cpu_fields(str(folder))
    del fields["temperature"]
    config = PAVRewardConfig(
        **{**fields, "logging_steps": 50, "save_strategy": "no"}, per_device_train_batch_size=64,
        per_device_eval_batch_size=256, max_steps=args.steps, learning_rate=1e-3 if strategy.from_scratch else 5e-4,
        lr_scheduler_type="cosine", warmup_steps=20, balance_classes=False, max_length=64, prover=strategy.name,
        seed=args.seed,
    )  # fmt: skip
    trainer = PAVRewardTrainer(model, config, train_dataset=fit, eval_dataset=held_out, processing_class=tokenizer)
    trainer.train()
    verifier = ProcessAdvantageVerifier(trainer.model, tokenizer, config.verifier_settings())
    verifier.calibrate(held_out["prompt"], held_out["completions"], held_out["labels"])
    verifier.save_pretrained(folder)
    return verifier


def exam(args: argparse.Namespace) -> dict[str, Any]:
    """Solutions of the base policy to test problems, which of their steps are right, and the values of prefixes."""
    tokenizer = AutoTokenizer.from_pretrained(path_policy_path())
    draw, splitter = generator(tokenizer), get_splitter("newline")
    prompts = list(problems("test", args.exam_problems, 0)["prompt"])
    asked = [Prompt(tuple(tokenizer(prompt)["input_ids"]), key=prompt) for prompt in prompts]
    drawn = draw.generate(asked, SamplingParams(max_tokens=MAX_COMPLETION_LENGTH, seed=1))
    solutions = [split_text(splitter, row[0].text) for row in drawn]
    right, places, prefixes = [], [], []
    for i, (prompt, steps) in enumerate(zip(prompts, solutions, strict=True)):
        walk, marks = start_of(parse_problem(prompt)), []
        apart = float(distances()[walk.node, walk.goal])
        for j, step in enumerate(steps):
            walk = walk.go(step.strip())
            before, apart = apart, math.inf if walk.node is None else float(distances()[walk.node, walk.goal])
            # Closer to the goal is right, farther or impossible is wrong, and a detour of equal length neither.
            marks.append(None if apart == before < math.inf else apart < before)
            if walk.node is not None and walk.node != walk.goal and step.endswith("\n"):
                text = prompt + "".join(steps[: j + 1])
                ids = tuple(tokenizer(text)["input_ids"])
                places.append((i, j))
                prefixes.append(Prompt(ids, key=text, max_tokens=MAX_COMPLETION_LENGTH - len(ids) + 4))
        right.append(marks)
    keep = random.Random(0).sample(range(len(places)), min(args.exam_prefixes, len(places)))
    rollouts = draw.generate([prefixes[k] for k in keep], SamplingParams(n=256, seed=2))
    values = []
    for k, samples in zip(keep, rollouts, strict=True):
        i, j = places[k]
        start = "".join(solutions[i][: j + 1])
        values.append(sum(is_right(prompts[i], start + sample.text) for sample in samples) / 256)
    return {
        "prompts": prompts, "solutions": solutions, "right": right,
        "places": [places[k] for k in keep], "values": values,
    }  # fmt: skip


def judge(verifier: ProcessAdvantageVerifier, found: Mapping[str, Any]) -> dict[str, float]:
    """AUROC of progress, right steps against wrong ones, rank correlation and root-mean-square error of values."""
    from scipy.stats import spearmanr

    scores = verifier(found["prompts"], found["solutions"])
    starts = verifier.initial_values(found["prompts"])
    progress = [
        (value - before, right)
        for start, values, marks in zip(starts, scores, found["right"], strict=True)
        for before, value, right in zip([start, *values[:-1]], values, marks, strict=True)
        if right is not None
    ]
    learned = [scores[i][j] for i, j in found["places"]]
    error = sum((a - b) ** 2 for a, b in zip(learned, found["values"], strict=True)) / len(learned)
    return {
        "auroc": auroc(*zip(*progress, strict=True)),
        "spearman": float(spearmanr(learned, found["values"]).statistic),
        "rmse": error**0.5,
    }


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
    paper = Results(args.work / "exam.json").get("exam", lambda: exam(args))
    for strategy in STRATEGIES if args.strategies is None else [STRATEGIES[k] for k in args.strategies]:
        results, start = Results(args.work / f"{strategy.name}.json"), time.perf_counter()
        if "quality" in results.data:
            continue
        rows, cost = collected(args, strategy)
        results.get("cost", lambda cost=cost: cost)
        results.get("quality", lambda strategy=strategy, rows=rows: judge(train(args, strategy, rows), paper))
        print(f"{strategy.name}: {time.perf_counter() - start:.0f} s, {results.data['quality']}", flush=True)
    show(args)


if __name__ == "__main__":
    main()
