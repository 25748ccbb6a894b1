"""The whole PAV pipeline on arithmetic in text: step values from rollouts, a verifier, and training with it.

Source: [PAV](https://huggingface.co/papers/2410.08146), sections 4.2 and 5.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from transformers import AutoModelForTokenClassification, AutoTokenizer

from trl_prl.collection.config import CollectConfig
from trl_prl.collection.job import CollectWorker, collect
from trl_prl.collection.output import best_of_k_row
from trl_prl.demo.arithmetic import (
    LONG_NUM_TERMS,
    MAIN_NUM_TERMS,
    ArithmeticProblem,
    Split,
    arithmetic_dataset,
    arithmetic_policy_path,
    arithmetic_reward,
    reference_solution,
    sample_problems,
)
from trl_prl.demo.arithmetic_training import completion_length, load_arithmetic_policy
from trl_prl.demo.training import cpu_fields
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.tallies import Spending
from trl_prl.jobs.options import Tools
from trl_prl.jobs.progress import OnProgress
from trl_prl.metrics.step_values import auroc
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.types import Prompt, SamplingParams
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.trainer import PAVRewardTrainer


# Share of problems with so many terms, that of the base policy's own training. Short problems tell right from wrong
# lines by large differences in value, long ones hardly do: nearly all their values are close to 0.
NUM_TERMS_SHARES = {2: 0.10, 3: 0.20, 4: 0.40, 5: 0.10, 6: 0.10, 7: 0.05, 8: 0.05}
# Rows of the last problems are held out, to calibrate on.
HELD_OUT_SHARE = 0.1
# The problems come from the train split, drawn with other seeds than those of any training run.
COLLECTION_SEED = 7001


@dataclass(frozen=True)
class VerifierData:
    """What a verifier is trained on, and what it cost.

    Attributes:
        rows ([`~datasets.Dataset`]):
            Stepwise rows; labels are values of the base policy itself.
        spending ([`Spending`]):
            Rollouts and tokens drawn for them.
    """

    rows: Dataset
    spending: Spending


def verifier_problems(num_problems: int, seed: int) -> Dataset:
    """Problems of the train split with two to eight terms, in random order.

    Args:
        num_problems (`int`):
            Number of problems.
        seed (`int`):
            Seed.

    Returns:
        [`~datasets.Dataset`]: Columns `prompt` and `answer`.
    """
    parts = [
        arithmetic_dataset("train", round(share * num_problems), COLLECTION_SEED + seed, num_terms)
        for num_terms, share in NUM_TERMS_SHARES.items()
    ]
    return concatenate_datasets(parts).shuffle(seed=seed)


def collect_arithmetic(
    folder: Path,
    num_problems: int,
    n_cov: int = 4,
    n_mc: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> VerifierData:
    """Estimate values of steps of the shipped base policy, or go on with an interrupted estimate.

    Args:
        folder (`Path`):
            Folder of the collection job.
        num_problems (`int`):
            Problems of the train split.
        n_cov (`int`, *optional*, defaults to `4`):
            Seed rollouts per problem.
        n_mc (`int`, *optional*, defaults to `4`):
            Rollouts per prefix.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the rollouts. Below 1 the prover is not the policy, whose seeds are drawn at 1, but a
            stronger one of the same weights.
        seed (`int`, *optional*, defaults to `0`):
            Seed of problems and rollouts.
        on_progress (`Callable`, *optional*):
            Called at the start and after every unit of problems.

    Returns:
        [`VerifierData`]: The rows and their cost.
    """
    tokenizer = AutoTokenizer.from_pretrained(arithmetic_policy_path())
    config = CollectConfig(
        model="trl_prl/demo/arithmetic_policy",
        dataset="trl_prl.demo.arithmetic",
        output_dir=str(folder),
        reward="trl_prl.demo.arithmetic:arithmetic_reward",
        n_cov=n_cov,
        n_mc=n_mc,
        splitter="newline",
        max_completion_length=completion_length(LONG_NUM_TERMS),
        temperature=temperature,
        seed_temperature=None if temperature == 1.0 else 1.0,
        problems_per_unit=64,
        seed=seed,
    )
    problems = verifier_problems(num_problems, seed)

    def make_worker() -> CollectWorker:
        generator = TransformersGenerator(load_arithmetic_policy(), tokenizer)
        made: dict[str, Any] = {"tokenizer": tokenizer, "generator": generator, "reward": arithmetic_reward}
        return CollectWorker(config, problems, Tools(config, **made))

    collected = collect(config, problems, make_worker, on_progress=on_progress)
    if collected is None:
        raise ValueError(f"{folder} is shared with processes that are not through. Wait for them, then call again.")
    rows = load_dataset("parquet", data_files=str(collected.path), split="train")
    return VerifierData(rows, collected.spending)


def train_arithmetic_verifier(
    rows: Dataset,
    output_dir: Path,
    *,
    prover: str = "the arithmetic policy",
    best_of_k: int = 1,
    epochs: float = 8.0,
    learning_rate: float = 3e-4,
    seed: int = 0,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> tuple[ProcessAdvantageVerifier, dict[str, float]]:
    """Train a verifier from the base policy's weights, calibrate it on held-out problems and save it.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows of [`collect_arithmetic`].
        output_dir (`Path`):
            Where to save it.
        prover (`str`, *optional*):
            Whose values the labels are, to be stored with the verifier.
        best_of_k (`int`, *optional*, defaults to `1`):
            The values to learn are those of the Best-of-K prover (eq. 30), without bias from few rollouts.
        epochs (`float`, *optional*, defaults to `8.0`), learning_rate (`float`, *optional*, defaults to `3e-4`):
            Passes over the rows, and learning rate.
        seed (`int`, *optional*, defaults to `0`):
            Seed of order and head.
        on_log (`Callable`, *optional*):
            Called with every log entry.

    Returns:
        `tuple`: The verifier, and its metrics on the held-out rows.
    """
    if best_of_k > 1:
        rows = rows.map(lambda row: best_of_k_row(row, best_of_k, "unbiased"), features=rows.features)
    train, held_out = _hold_out(rows)
    path, fields = arithmetic_policy_path(), cpu_fields(str(output_dir))
    del fields["temperature"]  # nothing is sampled here
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    args = PAVRewardConfig(
        **{**fields, "logging_steps": 20},
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        balance_classes=False,  # told right lines from wrong ones no better with it, in trials on the tuning split
        max_length=64,
        prover=f"Best-of-{best_of_k} of {prover}" if best_of_k > 1 else prover,
        seed=seed,
    )
    trainer = PAVRewardTrainer(model, args, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)
    trainer.train()
    metrics, settings = trainer.evaluate(), args.verifier_settings()
    verifier = ProcessAdvantageVerifier(trainer.model, tokenizer, settings)
    verifier.calibrate(held_out["prompt"], held_out["completions"], held_out["labels"])
    verifier.save_pretrained(output_dir)
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return verifier, metrics


def _hold_out(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Rows to train on and to evaluate on. A problem that comes up twice must not be on both sides."""
    problems = sorted(set(rows["row"]))
    first_held_out = problems[int(len(problems) * (1 - HELD_OUT_SHARE))]
    prompts = {row["prompt"] for row in rows if row["row"] >= first_held_out}
    return rows.filter(lambda row: row["prompt"] not in prompts), rows.filter(lambda row: row["prompt"] in prompts)


def right_lines_auroc(verifier: ProcessAdvantageVerifier, split: Split, num_problems: int = 256) -> dict[str, float]:
    """How well a verifier tells prefixes without a mistake from others, on solutions of the base policy.

    Args:
        verifier ([`ProcessAdvantageVerifier`]):
            The verifier.
        split (`str`):
            Split of the problems.
        num_problems (`int`, *optional*, defaults to `256`):
            Problems of each length, one solution each.

    Returns:
        `dict[str, float]`: Chance that a right prefix has the higher value, mean over step positions, for problems of
        ordinary (`main`) and of long (`long`) length. Positions at which all are right, or wrong, are left out.
    """
    tokenizer = AutoTokenizer.from_pretrained(arithmetic_policy_path())
    generator = TransformersGenerator(load_arithmetic_policy(), tokenizer)
    splitter = get_splitter("newline")
    found = {}
    for name, num_terms in (("main", MAIN_NUM_TERMS), ("long", LONG_NUM_TERMS)):
        problems = sample_problems(split, num_problems, 0, num_terms)
        prompts = [Prompt(tuple(tokenizer(problem.prompt)["input_ids"])) for problem in problems]
        drawn = generator.generate(prompts, SamplingParams(max_tokens=completion_length(num_terms)))
        steps = [split_text(splitter, samples[0].text) for samples in drawn]
        values = verifier([problem.prompt for problem in problems], steps)
        by_position: dict[int, tuple[list[Any], list[bool]]] = defaultdict(lambda: ([], []))
        for problem, texts, row in zip(problems, steps, values, strict=True):
            for position, value in enumerate(row):
                by_position[position][0].append(value)
                by_position[position][1].append(is_right_prefix(problem, texts[: position + 1]))
        scores = [auroc(scored, right) for scored, right in by_position.values()]
        found[name] = statistics.fmean(score for score in scores if not math.isnan(score))
    return found


def is_right_prefix(problem: ArithmeticProblem, steps: Sequence[str]) -> bool:
    """Whether every line so far is what the right solution has there."""
    text = "".join(steps)
    # With its line break, so that 1 is not taken for the start of 12.
    return f"{reference_solution(problem)}\n".startswith(text if text.endswith("\n") else f"{text}\n")
