"""A verifier of the path task, learned from rollouts of the shipped policy: collecting, training, and judging it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

from trl_prl.collection.config import CollectConfig
from trl_prl.collection.job import CollectWorker, collect
from trl_prl.generation.local import TransformersGenerator
from trl_prl.jobs.options import Tools
from trl_prl.jobs.progress import OnProgress
from trl_prl.metrics.step_values import auroc
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.types import Prompt, SamplingParams
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.trainer import PAVRewardTrainer

from .paths import (
    MAX_COMPLETION_LENGTH,
    Split,
    distances,
    is_right,
    parse_problem,
    path_policy_path,
    path_reward,
    problems_of,
    start_of,
)
from .training import OnStep, cpu_fields, train_quietly


ALL_DISTANCES = (2, 9)


def verifier_problems(split: Split, number: int, seed: int) -> Dataset:
    """Problems of all distances, as often as they come, none twice."""
    known = problems_of(split, ALL_DISTANCES)
    rows = random.Random(seed).sample(known, min(number, len(known)))
    return Dataset.from_dict({"prompt": [row.prompt for row in rows], "goal": [row.goal for row in rows]})


def path_generator() -> TransformersGenerator:
    """The shipped policy, ready to sample: on a GPU if there is one, else on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TransformersGenerator.from_pretrained(path_policy_path(), dtype="float32", device=device)


def collect_path_values(
    output_dir: Path,
    num_problems: int,
    *,
    n_cov: int = 4,
    n_mc: int = 16,
    temperature: float = 1.0,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Value the steps of the shipped policy's solutions by its rollouts, or read what is collected.

    Args:
        output_dir (`Path`):
            Folder of the collection, which may be unfinished.
        num_problems (`int`):
            Problems of the train split.
        n_cov (`int`, *optional*, defaults to `4`), n_mc (`int`, *optional*, defaults to `16`):
            Solutions per problem, sampled at temperature 1, and rollouts of every prefix.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the rollouts, the prover's.
        seed (`int`, *optional*, defaults to `0`):
            Seed of problems and samples.
        on_progress (`Callable`, *optional*):
            As in [`collect`].

    Returns:
        `tuple`: Rows with `prompt`, `completions` (steps) and `labels`, and what they cost.
    """
    config = CollectConfig(
        model="trl_prl/demo/path_policy", dataset="trl_prl.demo.paths", reward="trl_prl.demo.paths:path_reward",
        output_dir=str(output_dir), n_cov=n_cov, n_mc=n_mc, splitter="newline", temperature=temperature,
        max_completion_length=MAX_COMPLETION_LENGTH, seed_temperature=None if temperature == 1.0 else 1.0,
        problems_per_unit=32, seed=seed,
    )  # fmt: skip
    dataset = verifier_problems("train", num_problems, seed)

    def make_worker() -> CollectWorker:
        generator = path_generator()
        made: dict[str, Any] = {"tokenizer": generator.tokenizer, "generator": generator, "reward": path_reward}
        return CollectWorker(config, dataset, Tools(config, **made))

    found = collect(config, dataset, make_worker, on_progress=on_progress)
    if found is None:
        raise RuntimeError(f"Other processes have shares of {output_dir} to do. Start this in one process.")
    return load_dataset("parquet", data_files=str(found.path), split="train"), found.spending.as_dict()


def train_path_verifier(
    rows: Dataset,
    output_dir: Path,
    *,
    max_steps: int = 600,
    from_scratch: bool = False,
    prover: str = "the shipped policy",
    seed: int = 0,
    on_step: OnStep | None = None,
) -> ProcessAdvantageVerifier:
    """Train a verifier on collected values, and calibrate it on a tenth of their problems.

    Args:
        rows (`Dataset`):
            Of [`collect_path_values`].
        output_dir (`Path`):
            Folder to save the verifier in.
        max_steps (`int`, *optional*, defaults to `600`):
            Optimizer steps of 64 solutions.
        from_scratch (`bool`, *optional*, defaults to `False`):
            Whether to start from random weights instead of the shipped policy's.
        prover (`str`, *optional*):
            Whose values these are, for the verifier's settings.
        seed (`int`, *optional*, defaults to `0`):
            Seed of weights and batches.
        on_step (`Callable`, *optional*):
            Called with every optimizer step's number and metrics.

    Returns:
        [`ProcessAdvantageVerifier`]: The verifier, saved.
    """
    names = sorted(set(rows["row"]))
    cut = names[int(0.9 * len(names))]
    fit, held_out = rows.filter(lambda row: row["row"] < cut), rows.filter(lambda row: row["row"] >= cut)
    torch.manual_seed(seed)
    path, fields = path_policy_path(), cpu_fields(str(output_dir))
    if from_scratch:
        model = AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(path, num_labels=1))
    else:
        model = AutoModelForTokenClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    del fields["temperature"]
    config = PAVRewardConfig(
        **{**fields, "logging_steps": 10}, per_device_train_batch_size=64, per_device_eval_batch_size=256,
        max_steps=max_steps, learning_rate=1e-3 if from_scratch else 7e-4, lr_scheduler_type="cosine",
        warmup_steps=20, balance_classes=False, max_length=64, prover=prover, seed=seed,
    )  # fmt: skip
    trainer = PAVRewardTrainer(model, config, train_dataset=fit, eval_dataset=held_out, processing_class=tokenizer)
    train_quietly(trainer, on_step, "loss")
    verifier = ProcessAdvantageVerifier(trainer.model, tokenizer, config.verifier_settings())
    verifier.calibrate(held_out["prompt"], held_out["completions"], held_out["labels"])
    verifier.save_pretrained(output_dir)
    return verifier


@dataclass(frozen=True)
class PathExam:
    """Solutions of the shipped policy to held-out problems, and what is known of them.

    Attributes:
        prompts (`list[str]`), solutions (`list[list[str]]`):
            Problems, and the steps of one solution of each.
        right (`list[list[bool | None]]`):
            Whether each step leads closer to the goal; not if it leads away or is impossible, and `None` for a
            detour of equal length.
        places (`list[tuple[int, int]]`), values (`list[float]`):
            Solution and step of prefixes that can still succeed, and the share of further rollouts that did.
    """

    prompts: list[str]
    solutions: list[list[str]]
    right: list[list[bool | None]]
    places: list[tuple[int, int]]
    values: list[float]


def path_exam(
    generator: TransformersGenerator, num_problems: int = 400, num_prefixes: int = 300, num_rollouts: int = 256
) -> PathExam:
    """Draw solutions to problems of the test split, mark their steps, and value prefixes of them by rollouts.

    Args:
        generator ([`TransformersGenerator`]):
            The policy.
        num_problems (`int`, *optional*, defaults to `400`):
            Problems of all distances.
        num_prefixes (`int`, *optional*, defaults to `300`), num_rollouts (`int`, *optional*, defaults to `256`):
            Prefixes to value, and rollouts of each.

    Returns:
        [`PathExam`]: The exam.
    """
    splitter, tokenizer = get_splitter("newline"), generator.tokenizer
    prompts = list(verifier_problems("test", num_problems, 0)["prompt"])
    asked = [Prompt(tuple(tokenizer(prompt)["input_ids"]), key=prompt) for prompt in prompts]
    drawn = generator.generate(asked, SamplingParams(max_tokens=MAX_COMPLETION_LENGTH, seed=1))
    solutions = [split_text(splitter, row[0].text) for row in drawn]
    right, places, prefixes = [], [], []
    for i, (prompt, steps) in enumerate(zip(prompts, solutions, strict=True)):
        walk, marks = start_of(parse_problem(prompt)), []
        apart = float(distances()[walk.node, walk.goal])
        for j, step in enumerate(steps):
            walk = walk.go(step.strip())
            before, apart = apart, math.inf if walk.node is None else float(distances()[walk.node, walk.goal])
            marks.append(None if apart == before < math.inf else apart < before)
            if walk.node is not None and walk.node != walk.goal and step.endswith("\n"):
                text = prompt + "".join(steps[: j + 1])
                ids = tuple(tokenizer(text)["input_ids"])
                places.append((i, j))
                prefixes.append(Prompt(ids, key=text, max_tokens=MAX_COMPLETION_LENGTH - len(ids) + 4))
        right.append(marks)
    keep = random.Random(0).sample(range(len(places)), min(num_prefixes, len(places)))
    rollouts = generator.generate([prefixes[k] for k in keep], SamplingParams(n=num_rollouts, seed=2))
    values = []
    for k, samples in zip(keep, rollouts, strict=True):
        i, j = places[k]
        start = "".join(solutions[i][: j + 1])
        values.append(sum(is_right(prompts[i], start + sample.text) for sample in samples) / num_rollouts)
    return PathExam(prompts, solutions, right, [places[k] for k in keep], values)


def step_auroc(scores: Sequence[Sequence[float]], starts: Sequence[float], exam: PathExam) -> float:
    """How well the progress between scores tells right steps from wrong ones; 0.5 is chance."""
    progress = [
        (value - before, right)
        for start, values, marks in zip(starts, scores, exam.right, strict=True)
        for before, value, right in zip([start, *values[:-1]], values, marks, strict=True)
        if right is not None
    ]
    return auroc([gain for gain, _ in progress], [right for _, right in progress])


def judge(verifier: Any, exam: PathExam) -> dict[str, float]:
    """AUROC of progress, right steps against wrong ones, rank correlation and root-mean-square error of values."""
    from scipy.stats import spearmanr

    scores = verifier(exam.prompts, exam.solutions)
    found = {"auroc": step_auroc(scores, verifier.initial_values(exam.prompts), exam)}
    if exam.places:
        learned = [scores[i][j] for i, j in exam.places]
        error = sum((a - b) ** 2 for a, b in zip(learned, exam.values, strict=True)) / len(learned)
        found |= {"spearman": float(spearmanr(learned, exam.values).statistic), "rmse": error**0.5}
    return found
