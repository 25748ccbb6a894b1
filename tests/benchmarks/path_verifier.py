"""Can a verifier of the path task be learned from rollouts, and what does it cost?

    python tests/benchmarks/path_verifier.py --work runs/path_verifier --output docs/figures/path_verifier.json

Each strategy says whose rollouts value the prefixes of how many solutions how often. Verifiers start from the policy's
weights, or from scratch. They are judged on solutions of the base policy to held-out problems: whether progress tells
a step towards the goal from one that leads away or is impossible (AUROC), and how well values rank prefixes by the
success of 256 further rollouts of the base policy (Spearman, over prefixes that can still succeed). Everything that is
finished is kept, and `--strategies` lets several processes share the work; without a number it makes the table and the
figure from what is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import Results, machine_text, spread, table
from datasets import Dataset, load_dataset
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

from trl_prl.collection.config import CollectConfig
from trl_prl.collection.job import CollectWorker, collect
from trl_prl.collection.output import best_of_k_row
from trl_prl.demo.path_values import PathExam, judge, path_exam, path_generator, verifier_problems
from trl_prl.demo.paths import MAX_COMPLETION_LENGTH, path_policy_path, path_reward
from trl_prl.demo.training import cpu_fields, train_quietly
from trl_prl.jobs.options import Tools
from trl_prl.report.plots import draw_line, new_figure, save
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.trainer import PAVRewardTrainer


@dataclass(frozen=True)
class Strategy:
    """Whose rollouts, for how many problems, of how many solutions, how many from every prefix."""

    n_cov: int
    n_mc: int
    temperature: float = 1.0
    best_of_k: int = 1
    width: int = 0  # of a model from scratch, the policy's is 128; 0 starts from the policy's weights
    problems: int = 1115  # all of the train split
    steps: int = 2000
    used: int = 0  # only the first so many of the solutions of a problem; 0 for all
    seed: int = 0  # of weights and batches
    sampling: str = "iid"  # or "first_pit" or "adaptive"

    @property
    def collection(self) -> str:
        sampling = "" if self.sampling == "iid" else f"-{self.sampling}"
        return f"{self.problems}x{self.n_cov}x{self.n_mc}-t{self.temperature:g}{sampling}"

    @property
    def start(self) -> str:
        return f"scratch{f' of width {self.width}' * (self.width != 128)}" if self.width else "policy"

    @property
    def name(self) -> str:
        ends = f"-first{self.used}" * bool(self.used), f"-seed{self.seed}" * bool(self.seed)
        start = self.start.replace(" ", "_")
        return f"{self.collection}{ends[0]}-k{self.best_of_k}-{start}-{self.steps}{ends[1]}"

    @property
    def prover(self) -> str:
        who = "the path policy" if self.temperature == 1 else f"the path policy at temperature {self.temperature:g}"
        return f"Best-of-{self.best_of_k} of {who}" if self.best_of_k > 1 else who


STRATEGIES = (
    Strategy(8, 2, temperature=0.3),
    Strategy(8, 2),
    Strategy(8, 2, temperature=0.3, steps=500),
    Strategy(8, 2, temperature=0.3, steps=4000),
    Strategy(8, 2, temperature=0.3, width=128),
    Strategy(4, 4, best_of_k=4),  # without bias from K rollouts or more
    Strategy(1, 16, temperature=0.3),
    # What fewer tokens buy, with as many passes over the solutions.
    *(Strategy(8, 2, temperature=t, used=used, steps=250 * used) for t in (0.3, 1.0) for used in (1, 2, 4)),
    Strategy(8, 2, temperature=0.3, used=2),
    *(Strategy(8, 2, temperature=t, seed=1) for t in (0.3, 1.0)),
    Strategy(8, 2, temperature=0.3, sampling="first_pit"),
    Strategy(3, 8, temperature=0.3, sampling="adaptive"),
    *(Strategy(8, 2, temperature=0.3, width=width) for width in (64, 192)),
    Strategy(8, 2, temperature=0.3, sampling="first_pit", seed=1),
)


# Fields of `CollectConfig`.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "iid": {},
    "first_pit": {"strategy": "first_pit", "n_probe": 2},
    "adaptive": {"adaptive": True, "n_probe": 2, "tolerance": 0.1},
}

QUALITIES = {
    "auroc": "AUROC of progress",
    "spearman": "Spearman of values",
}


def collect_values(work: Path, strategy: Strategy) -> tuple[Dataset, dict[str, Any]]:
    """Value the steps of the shipped policy's solutions by rollouts, if that is not done; the rows and their cost."""
    config = CollectConfig(
        model="trl_prl/demo/path_policy", dataset="trl_prl.demo.paths", reward="trl_prl.demo.paths:path_reward",
        output_dir=str(work / strategy.collection), n_cov=strategy.n_cov, n_mc=strategy.n_mc, splitter="newline",
        temperature=strategy.temperature, seed_temperature=None if strategy.temperature == 1.0 else 1.0,
        max_completion_length=MAX_COMPLETION_LENGTH, problems_per_unit=32, **SAMPLINGS[strategy.sampling],
    )  # fmt: skip
    dataset = verifier_problems("train", strategy.problems, seed=0)

    def make_worker() -> CollectWorker:
        generator = path_generator()
        made: dict[str, Any] = {"tokenizer": generator.tokenizer, "generator": generator, "reward": path_reward}
        return CollectWorker(config, dataset, Tools(config, **made))

    def on_progress(progress: Any) -> None:
        print(f"{strategy.collection}: {progress}", flush=True)

    found = collect(config, dataset, make_worker, on_progress=on_progress)
    if found is None:
        raise RuntimeError(f"Other processes have shares of {config.output_dir} to do. Start this in one process.")
    return load_dataset("parquet", data_files=str(found.path), split="train"), asdict(found.spending)


def train_verifier(work: Path, strategy: Strategy, rows: Dataset) -> ProcessAdvantageVerifier:
    """Train a verifier on collected values, calibrate it on a tenth of their problems, and save it."""
    if strategy.best_of_k > 1:
        rows = rows.map(lambda row: best_of_k_row(row, strategy.best_of_k, "unbiased"), features=rows.features)
    names = sorted(set(rows["row"]))
    cut = names[int(0.9 * len(names))]
    fit, held_out = rows.filter(lambda row: row["row"] < cut), rows.filter(lambda row: row["row"] >= cut)
    torch.manual_seed(strategy.seed)
    path, folder, width = path_policy_path(), str(work / "verifiers" / strategy.name), strategy.width
    if width:
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "head_dim": width // 4}
        model = AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(path, num_labels=1, **sizes))
    else:
        model = AutoModelForTokenClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    tokenizer, fields = AutoTokenizer.from_pretrained(path), cpu_fields(folder)
    config = PAVRewardConfig(
        **{**fields, "logging_steps": 10}, per_device_train_batch_size=64, per_device_eval_batch_size=256,
        max_steps=strategy.steps, learning_rate=1e-3 if width else 7e-4, lr_scheduler_type="cosine",
        warmup_steps=20, balance_classes=False, max_length=64, prover=strategy.prover, seed=strategy.seed,
    )  # fmt: skip
    trainer = PAVRewardTrainer(model, config, train_dataset=fit, eval_dataset=held_out, processing_class=tokenizer)
    train_quietly(trainer, None, "loss")
    verifier = ProcessAdvantageVerifier(trainer.model, tokenizer, config.verifier_settings())
    verifier.calibrate(held_out["prompt"], held_out["completions"], held_out["labels"])
    verifier.save_pretrained(folder)
    return verifier


def first_solutions(rows: Dataset, num_solutions: int, cost: dict[str, Any]) -> tuple[Dataset, dict[str, Any]]:
    """The first solutions of every problem, and what they cost: a prefix is valued once for all solutions."""
    seen: Counter[int] = Counter()
    kept, all_rollouts, used_rollouts = [], {}, {}
    for index, row in enumerate(rows):
        seen[row["row"]] += 1
        found = {(row["row"], *row["completions"][: k + 1]): n for k, n in enumerate(row["num_rollouts"])}
        all_rollouts |= found
        if seen[row["row"]] <= num_solutions:
            kept.append(index)
            used_rollouts |= found
    share = sum(used_rollouts.values()) / sum(all_rollouts.values())
    return rows.select(kept), {name: round(share * value) for name, value in cost.items()}


def uncalibrated_rmse(folder: Path, exam: PathExam) -> float:
    """Error of a verifier's values before they were calibrated."""
    verifier = ProcessAdvantageVerifier.from_pretrained(folder)
    verifier.settings = replace(verifier.settings, temperature=1.0, offset=0.0)
    return judge(verifier, exam)["rmse"]


def show(args: argparse.Namespace) -> None:
    """Add what is finished to what was kept, and write it with its table and figure."""
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    done = {one.name: Results(args.work / f"{one.name}.json").data for one in STRATEGIES}
    found |= {name: data for name, data in done.items() if "quality" in data}
    found = {one: found[one.name] for one in STRATEGIES if one.name in found}
    rows = []
    for strategy in (one for one in found if one.seed == 0):
        seeds = [data for other, data in found.items() if replace(other, seed=0) == strategy]
        scores = [[data["quality"][name] for data in seeds] for name in ("auroc", "spearman", "rmse")]
        scores.append([data.get("uncalibrated_rmse", math.nan) for data in seeds])
        sampling = "" if strategy.sampling == "iid" else f", {strategy.sampling.replace('_', ' ')}"
        rows.append(
            [
                strategy.prover,
                f"{strategy.problems} x {strategy.used or strategy.n_cov} x {strategy.n_mc}{sampling}",
                f"{strategy.start}, {strategy.steps} steps",
                f"{seeds[0]['cost']['num_sampled_tokens'] / 1e6:.2f}",
                *(spread(one, 3) for one in scores),
            ]
        )
    header = ["prover", "problems x solutions x rollouts", "trained from", "M tokens"]
    header += ["AUROC", "Spearman", "RMSE", "uncalibrated"]
    text = f"{table(header, rows)}\n{machine_text(next(iter(found.values()))['machine'])}\n"
    args.output.write_text(json.dumps({one.name: data for one, data in found.items()}, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(text)
    draw(found, args.output)
    print(text)


def draw(found: dict[Strategy, Any], output: Path) -> None:
    """Quality against tokens: a line for every prover of equally many passes, a mark for every other strategy."""
    figure, axes = new_figure(2)
    for axis, (name, label) in zip(axes, QUALITIES.items(), strict=True):
        lines: dict[str, dict[float, list[float]]] = {}
        for strategy, data in found.items():
            tokens, value = data["cost"]["num_sampled_tokens"] / 1e6, data["quality"][name]
            plain = strategy.steps == 250 * (strategy.used or strategy.n_cov) and not strategy.width
            plain &= strategy.sampling == "iid"
            if plain and strategy.best_of_k == 1:
                lines.setdefault(strategy.prover, {}).setdefault(tokens, []).append(value)
            else:
                axis.plot(tokens, value, "x", color="#999999")
        for index, (prover, points) in enumerate(lines.items()):
            tokens, values = zip(*sorted(points.items()), strict=True)
            band = [min(some) for some in values], [max(some) for some in values]
            draw_line(axis, index, prover, tokens, [fmean(some) for some in values], band)
        axis.set(xlabel="million tokens of rollouts", ylabel=label)
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, output.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/path_verifier"))
    parser.add_argument("--output", type=Path, default=Path("docs/figures/path_verifier.json"))
    parser.add_argument("--strategies", type=int, nargs="*", help="numbers of those to try; all by default")
    parser.add_argument("--exam_problems", type=int, default=400, help="held-out problems")
    parser.add_argument("--exam_prefixes", type=int, default=300, help="prefixes valued by 256 rollouts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    strategies = STRATEGIES if args.strategies is None else [STRATEGIES[k] for k in args.strategies]
    if strategies:
        drawn = Results(args.work / "exam.json").get(
            "exam", lambda: asdict(path_exam(path_generator(), args.exam_problems, args.exam_prefixes))
        )
        exam = PathExam(**drawn)
    for strategy in strategies:
        results, start = Results(args.work / f"{strategy.name}.json"), time.perf_counter()
        if "quality" not in results.data:
            rows, cost = collect_values(args.work, strategy)
            if strategy.used:
                rows, cost = first_solutions(rows, strategy.used, cost)
            results.get("cost", lambda cost=cost: cost)
            results.get(
                "quality", lambda strategy=strategy, rows=rows: judge(train_verifier(args.work, strategy, rows), exam)
            )
            print(f"{strategy.name}: {time.perf_counter() - start:.0f} s, {results.data['quality']}", flush=True)
        folder = args.work / "verifiers" / strategy.name
        results.get("uncalibrated_rmse", lambda folder=folder: uncalibrated_rmse(folder, exam))
    show(args)


if __name__ == "__main__":
    main()
