"""Training on word problems: the supervised start, and from it GRPO, PRL and PAV with adapters."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, SFTConfig, SFTTrainer
from word_problem_lab import Lab
from word_problem_measures import distance, sample, scores_of
from word_problem_verifier import BEST_OF_K, load_verifier
from word_problems import word_dataset, word_problems

from trl_prl.metrics.sampling_estimates import mean_pass_at_k
from trl_prl.rewards.answers import exact_match_reward
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.storage.files import write_text
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer
from trl_prl.training.process_grpo_trainer import ProcessGRPOTrainer


class UntilSuccess(TrainerCallback):
    """Ends training once the policy solves a share of tuning problems."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.curve = lab, dict[int, float]()
        self.stories = word_problems("tuning", lab.sizes.tuning_problems, 0)

    def look(self, step: int, model: Any) -> float:
        """Measure the success now, by avg@4."""
        right, _, _ = sample(self.lab, self.lab.generator(model), self.stories, 4, seed=step)
        self.curve[step] = mean_pass_at_k(right, 1)
        return self.curve[step]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.lab.sizes.sft_every == 0:
            control.should_training_stop |= self.look(state.global_step, model) >= self.lab.sizes.sft_target


def supervised_start(lab: Lab) -> dict[str, Any]:
    """Train on worked solutions, until the policy solves now and then what it is asked."""
    sizes = lab.sizes
    stories = word_problems("train", sizes.sft_steps * sizes.sft_batch, seed=1)
    rows = [{"prompt": s.prompt, "completion": [{"role": "assistant", "content": s.solution}]} for s in stories]
    model, watch = lab.load(lab.base), UntilSuccess(lab)
    args = SFTConfig(
        **lab.arguments("sft"),
        per_device_train_batch_size=sizes.sft_batch,
        max_steps=sizes.sft_steps,
        learning_rate=sizes.sft_learning_rate,
        lr_scheduler_type="constant",
        max_length=512,
        seed=0,
    )
    trainer = SFTTrainer(model, args, None, Dataset.from_list(rows), None, lab.tokenizer, callbacks=[watch])
    if watch.look(0, model) < sizes.sft_target:
        trainer.train()
    trainer.model.save_pretrained(lab.policy_path)
    lab.tokenizer.save_pretrained(lab.policy_path)
    return {"curve": watch.curve, "optimizer_steps": trainer.state.global_step}


def evaluate_start(lab: Lab) -> dict[str, Any]:
    """The policy that every run starts from, on test problems."""
    scores, (stories, rows) = scores_of(lab, lab.frozen_start())
    pieces = TokenPieces(lab.tokenizer)
    texts = [pieces.join(row[0])[0].decode("utf-8", "replace") for row in rows]
    examples = [
        {"question": story.question, "solution": story.solution, "sample": text}
        for story, text in zip(stories[:12], texts, strict=False)
    ]
    return {"scores": scores, "examples": examples}


@dataclass(frozen=True)
class Run:
    """A training run: `GRPO:0`, or with other settings `PAV,alpha=5:1`.

    Attributes:
        method (`str`):
            `"GRPO"`, `"PRL"` or `"PAV"`.
        options (`dict`):
            Fields of its configuration.
        seed (`int`):
            Seed.
    """

    method: str
    options: dict[str, float]
    seed: int

    @classmethod
    def parse(cls, text: str) -> Run:
        """A run from its text."""
        head, _, seed = text.partition(":")
        method, *options = head.split(",")
        pairs = (option.split("=") for option in options)
        return cls(method, {name: float(value) for name, value in pairs}, int(seed))

    @property
    def label(self) -> str:
        """Method and settings, as in tables."""
        return " ".join([self.method, *(f"{name} {value:g}" for name, value in self.options.items())])

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"run-{self.label.replace(' ', '-')}-seed{self.seed}"


class Watch(TrainerCallback):
    """Evaluates on test problems every so often."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.file = lab.folder / f"{name}-scores.part"
        self.scores: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.lab.sizes.rl_every == 0 and step < state.max_steps:
            self.scores[str(step)], _ = scores_of(self.lab, self.lab.generator(model))
            write_text(self.file, json.dumps(self.scores))


def make_trainer(lab: Lab, run: Run, watch: Watch) -> Any:
    """The trainer of a run."""
    sizes = lab.sizes
    steps = {"step_splitter": "newline"}
    classes: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
        "GRPO": (ProcessGRPOTrainer, GRPOConfig, {"beta": 0.0}, {}),
        "PRL": (PRLTrainer, PRLConfig, steps, {}),
        "PAV": (PAVTrainer, PAVConfig, {"beta": 0.0, "best_of_k": BEST_OF_K, **steps}, {"process_reward": None}),
    }
    trainer_class, config_class, fields, arguments = classes[run.method]
    if "process_reward" in arguments:
        arguments = {"process_reward": load_verifier(lab)}
    completions = sizes.prompts_per_step * sizes.generations
    given = {
        **lab.arguments(run.name),
        "save_strategy": "steps",
        "save_steps": sizes.save_every,
        "save_total_limit": 1,
        "run_name": f"{run.label} seed {run.seed}",
        "per_device_train_batch_size": sizes.micro_batch,
        "gradient_accumulation_steps": completions // sizes.micro_batch,
        "num_generations": sizes.generations,
        "max_completion_length": sizes.max_tokens,
        "max_steps": sizes.rl_steps,
        "learning_rate": sizes.rl_learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": min(3, sizes.rl_steps),
        "temperature": 1.0,
        "seed": run.seed,
        **fields,
        **run.options,
    }
    stories = word_problems("train", sizes.prompts_per_step * sizes.rl_steps, seed=100 + run.seed)
    rows = word_dataset(stories).select_columns(["prompt", "answer"])
    num_layers = AutoConfig.from_pretrained(lab.policy_path).num_hidden_layers
    adapter = lab.lora(task_type="CAUSAL_LM", layers_to_transform=list(range(sizes.first_lora_layer, num_layers)))
    return trainer_class(
        lab.policy_path,
        exact_match_reward,
        config_class(**given),
        rows,
        processing_class=lab.tokenizer,
        callbacks=[watch],
        peft_config=adapter,
        **arguments,
    )


def train_run(lab: Lab, run: Run) -> dict[str, Any]:
    """Train with one method, and evaluate along the way and at the end."""
    torch.manual_seed(run.seed)
    watch = Watch(lab, run.name)
    trainer = make_trainer(lab, run, watch)
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    scores, samples = scores_of(lab, lab.generator(trainer.model))
    steps = trainer.state.global_step
    return {
        "run": asdict(run),
        "label": run.label,
        "optimizer_steps": steps,
        "completions_per_step": lab.sizes.prompts_per_step * lab.sizes.generations,
        "curve": [entry["reward"] for entry in logs],
        "length": [entry.get("completions/mean_length") for entry in logs],
        "step_seconds": [entry["step_time"] for entry in logs],
        "scores": {**watch.scores, steps: scores},
        "kl": distance(lab, trainer.model, samples),
        "num_tokens": logs[-1].get("num_tokens"),
    }
