"""The stages of the experiment on word problems, each from files to files; `word_problem_runs.py` runs them.

`policy/` (a short supervised start) comes first; `values/` (step values from its rollouts) and `verifier/` (a model
with LoRA that learns them) stand on it, and every training run on one or both. Each stage leaves a JSON file when it
is done, and is not done again where that exists.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer
from word_problems import WordProblem, results_of, right_so_far, word_dataset, word_problems

from trl_prl.collection.config import CollectConfig
from trl_prl.collection.job import CollectWorker, collect
from trl_prl.collection.output import DATA_FILE
from trl_prl.demo.training import train_quietly
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.rollouts import Problem, Roller
from trl_prl.jobs.options import Tools
from trl_prl.metrics.sampling_estimates import mean_pass_at_k
from trl_prl.metrics.step_values import auroc
from trl_prl.prompts.chat import prompt_token_ids
from trl_prl.rewards.answers import exact_match_reward
from trl_prl.rewards.extraction import final_answer
from trl_prl.search.beams import beam_search
from trl_prl.search.best_of_n import best_of_n_search, choose
from trl_prl.search.scoring import EffectiveReward
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer
from trl_prl.training.process_grpo_trainer import ProcessGRPOTrainer
from trl_prl.types import SamplingParams
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.trainer import PAVRewardTrainer


BEST_OF_K = 4
BEAMS = (2, 4, 8)
EXPANSIONS = 3


@dataclass(frozen=True)
class Sizes:
    """How much of everything. The defaults are for one GPU and about nine minutes.

    Attributes:
        max_tokens (`int`):
            Longest completion.
        batch_tokens (`int`), run_batch_tokens (`int`):
            Tokens in the cache while sampling, in the main process and in a training run.
        sft_target (`float`), sft_seconds (`float`):
            Success on tuning problems at which the supervised start ends, and the time after which it does anyway.
        micro_batch (`int`):
            Completions per backward pass.
        rl_every (`int`):
            Optimizer steps between evaluations.
        beam_problems (`int`):
            Test problems that are searched.
    """

    max_tokens: int = 80
    batch_tokens: int = 400_000
    run_batch_tokens: int = 100_000
    sft_steps: int = 300
    sft_every: int = 5
    sft_seconds: float = 90.0
    sft_batch: int = 16
    sft_learning_rate: float = 5e-5
    sft_target: float = 0.25
    tuning_problems: int = 64
    collect_problems: int = 240
    n_cov: int = 4
    n_mc: int = 8
    verifier_epochs: float = 4.0
    verifier_batch: int = 32
    verifier_learning_rate: float = 5e-4
    lora_rank: int = 16
    rl_steps: int = 60
    rl_every: int = 20
    prompts_per_step: int = 8
    generations: int = 8
    micro_batch: int = 16
    rl_learning_rate: float = 1e-5
    test_problems: int = 200
    test_samples: int = 8
    beam_problems: int = 64
    best_of: int = 32


PRESETS = {
    "gpu": Sizes(),
    "tiny": Sizes(
        max_tokens=12,
        batch_tokens=2000,
        run_batch_tokens=2000,
        sft_steps=2,
        sft_every=1,
        sft_batch=2,
        tuning_problems=3,
        collect_problems=8,
        n_cov=1,
        n_mc=2,
        verifier_epochs=1.0,
        verifier_batch=4,
        lora_rank=2,
        rl_steps=2,
        rl_every=1,
        prompts_per_step=1,
        generations=4,
        micro_batch=2,
        test_problems=3,
        test_samples=4,
        beam_problems=2,
        best_of=4,
    ),
}


class Lab:
    """A folder of results, the model it began with, and where to compute.

    Args:
        folder (`Path`):
            Where results go.
        model (`str`):
            Pretrained chat model.
        device (`str`):
            `"cpu"` or `"cuda"`.
        sizes ([`Sizes`]):
            How much.
        until (`float`, *optional*):
            Time, as of `time.time()`, by which training is to end.
    """

    def __init__(self, folder: Path, model: str, device: str, sizes: Sizes, until: float = math.inf) -> None:
        self.folder, self.base, self.device, self.sizes, self.until = folder, model, device, sizes, until
        folder.mkdir(parents=True, exist_ok=True)
        # Products in the precision that a GPU is fast in. Weights in bfloat16 would swallow the small updates.
        torch.set_float32_matmul_precision("high")
        self.policy_path = str(folder / "policy")
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def path(self, name: str) -> Path:
        """File of a stage's result."""
        return self.folder / f"{name}.json"

    def result(self, name: str) -> Any:
        """Result of a stage that is done."""
        return json.loads(self.path(name).read_text())

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> Any:
        """Do a stage unless it is done, and keep its result."""
        if not self.path(name).exists():
            start = time.time()
            data = {**compute(), "seconds": time.time() - start}
            partial = self.path(name).with_suffix(".part")
            partial.write_text(json.dumps(data))
            partial.rename(self.path(name))
            if self.device == "cuda":
                # Training runs on the same GPU need the room.
                gc.collect()
                torch.cuda.empty_cache()
            print(f"{time.strftime('%X')} {name}: {data['seconds']:.0f} s", flush=True)
        return self.result(name)

    def await_result(self, name: str) -> None:
        """Wait until another process has done a stage."""
        while not self.path(name).exists():
            if time.time() > self.until:
                raise TimeoutError(f"{self.path(name)} is not there in time.")
            time.sleep(0.2)

    def load(self, path: str, dtype: torch.dtype = torch.float32) -> Any:
        """A causal language model on the device."""
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(self.device)
        model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def frozen(self, path: str) -> TransformersGenerator:
        """A generator over a model that is only read, in bfloat16 on a GPU."""
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        return TransformersGenerator(self.load(path, dtype), self.tokenizer, max_batch_tokens=self.sizes.batch_tokens)

    def problems(self, stories: Sequence[WordProblem]) -> list[Problem]:
        """Stories as problems of the package."""
        return [
            Problem(row, story.prompt, prompt_token_ids(self.tokenizer, story.prompt), {"answer": str(story.answer)})
            for row, story in enumerate(stories)
        ]

    def sampling(self, seed: int) -> SamplingParams:
        """How to sample: as training does."""
        return SamplingParams(max_tokens=self.sizes.max_tokens, temperature=1.0, seed=seed)

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of every trainer."""
        return {
            "output_dir": str(self.folder / name),
            "use_cpu": self.device == "cpu",
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }


# ---- measuring ----


def sample(lab: Lab, generator: TransformersGenerator, stories: Sequence[WordProblem], n: int, seed: int) -> Any:
    """Draw solutions.

    Returns:
        `tuple`: Whether each is right, one row of `n` per story; their token ids in the same form; the sampled tokens.
    """
    pieces = TokenPieces(lab.tokenizer)
    roller = Roller(lab.problems(stories), generator, exact_match_reward, pieces, lab.sampling(seed))
    rows = roller.draw([(i, ()) for i in range(len(stories))], n, "sample")
    right = [[bool(rollout.correct) for rollout in row] for row in rows]
    return right, [[rollout.ids for rollout in row] for row in rows], roller.spending.num_sampled_tokens


def scores_of(lab: Lab, generator: TransformersGenerator, split: str = "test") -> tuple[dict[str, float], Any]:
    """avg@n and pass@4 in percent, of all problems and by number of calculations; and the token ids of the samples."""
    sizes = lab.sizes
    stories = word_problems(split, sizes.test_problems, 0)  # type: ignore[arg-type]
    right, ids, _ = sample(lab, generator, stories, sizes.test_samples, seed=0)
    scores = {"avg": 100 * mean_pass_at_k(right, 1), "pass@4": 100 * mean_pass_at_k(right, 4)}
    for steps in sorted({len(story.calculations) for story in stories}):
        rows = [row for row, story in zip(right, stories, strict=True) if len(story.calculations) == steps]
        scores[f"avg, {steps} steps"] = 100 * mean_pass_at_k(rows, 1)
    return scores, (stories, ids)


@torch.no_grad()
def log_probs(
    model: Any, prompts: Sequence[Sequence[int]], ids: Sequence[Sequence[int]], batch: int = 16
) -> list[float]:
    """Log-probability of each completion."""
    found: list[float] = []
    for start in range(0, len(ids), batch):
        pairs = list(zip(prompts[start : start + batch], ids[start : start + batch], strict=True))
        width = max(len(prompt) + len(completion) for prompt, completion in pairs)
        tokens = torch.zeros(len(pairs), width, dtype=torch.long)
        labels = torch.full((len(pairs), width), -100)
        for row, (prompt, completion) in enumerate(pairs):
            end = len(prompt) + len(completion)
            tokens[row, :end] = torch.tensor([*prompt, *completion])
            labels[row, len(prompt) : end] = torch.tensor(completion)
        # Padding comes last, where nothing before it can see it.
        logits = model(input_ids=tokens.to(model.device)).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, 1:].to(model.device), reduction="none"
        )
        found += (-losses.sum(1)).tolist()
    return found


def distance(lab: Lab, model: Any, samples: Any) -> float:
    """KL to the start, in nats per completion, from one sample of each problem."""
    stories, rows = samples
    prompts = [prompt_token_ids(lab.tokenizer, story.prompt) for story in stories]
    ids = [row[0] for row in rows]
    model.eval()
    own = log_probs(model, prompts, ids)
    return statistics.fmean(
        a - b for a, b in zip(own, log_probs(lab.load(lab.policy_path), prompts, ids), strict=True)
    )


# ---- (a) the supervised start ----


class UntilSuccess(TrainerCallback):
    """Ends training once the policy solves a share of tuning problems."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.curve = lab, dict[int, float]()
        self.until = min(lab.until, time.time() + lab.sizes.sft_seconds)
        self.stories = word_problems("tuning", lab.sizes.tuning_problems, 0)

    def look(self, step: int, model: Any) -> float:
        """Measure the success now, by avg@4."""
        generator = TransformersGenerator(model, self.lab.tokenizer, max_batch_tokens=self.lab.sizes.batch_tokens)
        right, _, _ = sample(self.lab, generator, self.stories, 4, seed=step)
        self.curve[step] = mean_pass_at_k(right, 1)
        return self.curve[step]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.lab.sizes.sft_every == 0:
            done = self.look(state.global_step, model) >= self.lab.sizes.sft_target
            control.should_training_stop |= done or time.time() > self.until


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
    scores, (stories, rows) = scores_of(lab, lab.frozen(lab.policy_path))
    pieces = TokenPieces(lab.tokenizer)
    texts = [pieces.join(row[0])[0].decode("utf-8", "replace") for row in rows]
    examples = [
        {"question": story.question, "solution": story.solution, "sample": text}
        for story, text in zip(stories[:12], texts, strict=False)
    ]
    return {"scores": scores, "examples": examples}


# ---- (b) and (c) step values and the verifier ----


def collect_values(lab: Lab) -> dict[str, Any]:
    """Values of the steps of the start's solutions, from its own rollouts."""
    sizes = lab.sizes
    problems = word_dataset(word_problems("train", sizes.collect_problems, seed=2)).select_columns(
        ["prompt", "answer"]
    )
    config = CollectConfig(
        model="policy",
        dataset="word problems",
        output_dir=str(lab.folder / "values"),
        reward="trl_prl.rewards.answers:exact_match_reward",
        n_cov=sizes.n_cov,
        n_mc=sizes.n_mc,
        splitter="newline",
        max_completion_length=sizes.max_tokens,
        temperature=1.0,
        unfinished="wrong",
        problems_per_unit=max(1, sizes.collect_problems // 4),
        seed=0,
    )

    def make_worker() -> CollectWorker:
        made = {"tokenizer": lab.tokenizer, "generator": lab.frozen(lab.policy_path), "reward": exact_match_reward}
        return CollectWorker(config, problems, Tools(config, **made))

    collected = collect(config, problems, make_worker)
    assert collected is not None
    return {"spending": asdict(collected.spending), "num_rows": collected.num_rows}


def train_verifier(lab: Lab) -> dict[str, Any]:
    """Learn the values with LoRA; measure on held-out problems, and on right and wrong lines of test problems."""
    from peft import LoraConfig

    sizes = lab.sizes
    rows = load_dataset("parquet", data_files=str(lab.folder / "values" / DATA_FILE), split="train")
    first_held_out = int(sizes.collect_problems * 0.85)
    train, held_out = (
        rows.filter(keep) for keep in (lambda r: r["row"] < first_held_out, lambda r: r["row"] >= first_held_out)
    )
    args = PAVRewardConfig(
        **lab.arguments("verifier"),
        per_device_train_batch_size=sizes.verifier_batch,
        per_device_eval_batch_size=sizes.verifier_batch,
        num_train_epochs=sizes.verifier_epochs,
        learning_rate=sizes.verifier_learning_rate,
        balance_classes=False,
        max_length=512,
        prover="the policy after its supervised start",
        seed=0,
    )
    lora = LoraConfig(r=sizes.lora_rank, lora_alpha=2 * sizes.lora_rank, target_modules=LORA_MODULES)
    trainer = PAVRewardTrainer(
        lab.policy_path,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=lab.tokenizer,
        peft_config=lora,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    labels = [label for row in held_out["labels"] for label in row if label is not None]
    constant = statistics.pvariance(labels) if labels else math.nan
    return {
        "metrics": metrics,
        "brier_of_constant": constant,
        "num_train_rows": len(train),
        "num_held_out_rows": len(held_out),
        "lines": right_lines(lab, load_verifier(lab)),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_verifier(lab: Lab) -> ProcessAdvantageVerifier:
    """The trained verifier."""
    return ProcessAdvantageVerifier.from_pretrained(lab.folder / "verifier", device=lab.device)


def right_lines(lab: Lab, verifier: ProcessAdvantageVerifier) -> dict[str, float]:
    """How well values tell prefixes without a mistake from others, on solutions of test problems by the start.

    The policy's own log-probability of the prefix so far is the baseline. Means over positions, so that early and late
    steps are not compared with each other.
    """
    stories = word_problems("test", lab.sizes.test_problems, 1)
    generator, pieces, splitter = lab.frozen(lab.policy_path), TokenPieces(lab.tokenizer), get_splitter("newline")
    _, rows, _ = sample(lab, generator, stories, 1, seed=1)
    texts = [pieces.join(row[0])[0].decode("utf-8", "replace") for row in rows]
    steps = [split_text(splitter, text) for text in texts]
    values = verifier([story.prompt for story in stories], steps)
    prompts, prefixes, places = [], [], []
    for i, (story, own) in enumerate(zip(stories, steps, strict=True)):
        for position in range(len(own)):
            prompts.append(prompt_token_ids(lab.tokenizer, story.prompt))
            prefixes.append(lab.tokenizer("".join(own[: position + 1]), add_special_tokens=False)["input_ids"])
            places.append((i, position))
    likely = dict(zip(places, log_probs(generator.model, prompts, prefixes), strict=True))
    by_position: dict[int, list[tuple[float, float, bool]]] = {}
    for i, (story, own) in enumerate(zip(stories, steps, strict=True)):
        flags = right_so_far(own, [r for r in results_of(story.calculations) if r is not None])
        for position, flag in enumerate(flags):
            value = values[i][position]
            if value is not None and not math.isnan(value):
                by_position.setdefault(position, []).append((value, likely[i, position], flag))
    found = {}
    for column, name in enumerate(("auroc", "auroc_of_log_probability")):
        scores = [auroc([e[column] for e in entries], [e[2] for e in entries]) for entries in by_position.values()]
        known = [score for score in scores if not math.isnan(score)]
        found[name] = statistics.fmean(known) if known else math.nan
    return {**found, "num_lines": sum(map(len, by_position.values()))}


# ---- (d) and (e) training runs ----


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
    """Evaluates on test problems every so often, and ends training in time for the last evaluation."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.scores, self.seconds = lab, dict[int, dict[str, float]](), list[float]()
        self.began = time.time()
        self.longest = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seconds.append(time.time() - self.began)
        step, every = state.global_step, self.lab.sizes.rl_every
        if step % every == 0 and step < state.max_steps:
            began = time.time()
            self.scores[step] = evaluate_model(self.lab, model)[0]
            self.longest = max(self.longest, time.time() - began)
        # The last evaluation and the distance to the start take twice as long.
        control.should_training_stop |= time.time() + 2 * self.longest > self.lab.until


def evaluate_model(lab: Lab, model: Any) -> tuple[dict[str, float], Any]:
    """Scores of a policy in training, which is left as it was."""
    generator = TransformersGenerator(model, lab.tokenizer, max_batch_tokens=lab.sizes.run_batch_tokens)
    scores = scores_of(lab, generator)
    if lab.device == "cuda":
        torch.cuda.empty_cache()
    return scores


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
        lab.await_result("verifier")
        arguments = {"process_reward": load_verifier(lab)}
    completions = sizes.prompts_per_step * sizes.generations
    given = {
        **lab.arguments(run.name),
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
    return trainer_class(
        lab.policy_path,
        exact_match_reward,
        config_class(**given),
        rows,
        processing_class=lab.tokenizer,
        callbacks=[watch],
        **arguments,
    )


def train_run(lab: Lab, run: Run) -> dict[str, Any]:
    """Train with one method, and evaluate along the way and at the end."""
    torch.manual_seed(run.seed)
    watch = Watch(lab)
    trainer = make_trainer(lab, run, watch)
    logs = train_quietly(trainer, None)
    scores, samples = evaluate_model(lab, trainer.model)
    steps = trainer.state.global_step
    return {
        "run": asdict(run),
        "label": run.label,
        "optimizer_steps": steps,
        "completions_per_step": lab.sizes.prompts_per_step * lab.sizes.generations,
        "curve": [entry["reward"] for entry in logs],
        "length": [entry.get("completions/mean_length") for entry in logs],
        "step_seconds": watch.seconds,
        "scores": {**watch.scores, steps: scores},
        "kl": distance(lab, trainer.model, samples),
        "num_tokens": logs[-1].get("num_tokens") if logs else None,
    }


# ---- (f) search ----


def search(lab: Lab) -> dict[str, Any]:
    """Accuracy against sampled tokens: beams by effective reward, best-of-n, votes; all by the start."""
    sizes = lab.sizes
    stories = word_problems("test", sizes.beam_problems, 2, num_steps=(3, 4))
    problems, generator, verifier = lab.problems(stories), lab.frozen(lab.policy_path), load_verifier(lab)
    splitter, pieces, sampling = get_splitter("newline"), TokenPieces(lab.tokenizer), lab.sampling(3)
    reward = EffectiveReward(verifier, verifier, best_of_k=BEST_OF_K)
    shared = (problems, generator, reward, splitter, pieces, sampling)
    found: dict[str, list[dict[str, float]]] = {"beam": []}

    def right(candidates: Sequence[Any]) -> float:
        texts = [candidate.text if candidate else "" for candidate in candidates]
        rewards = exact_match_reward(texts, [str(story.answer) for story in stories])
        return 100 * statistics.fmean(rewards)

    for size in BEAMS:
        results = beam_search(*shared, beam_size=size, expansions=EXPANSIONS)
        tokens = statistics.fmean(result.cost.num_generated_tokens for result in results)
        found["beam"].append({"n": size, "tokens": tokens, "accuracy": right([r.answer for r in results])})
    values = EffectiveReward(verifier, alpha=0.0)
    drawn = best_of_n_search(
        problems,
        generator,
        values,
        splitter,
        pieces,
        replace(sampling, seed=4),
        n=sizes.best_of,
        answer_of=final_answer,
    )
    n = 1
    while n <= sizes.best_of:
        tokens = statistics.fmean(sum(len(c.token_ids) for c in r.candidates[:n]) for r in drawn)
        for choice in ("best_of_n", "majority_vote", "weighted_vote"):
            chosen = [choose(r.candidates[:n], choice, final_answer) for r in drawn]  # type: ignore[arg-type]
            picked = [None if k is None else r.candidates[k] for r, k in zip(drawn, chosen, strict=True)]
            found.setdefault(choice, []).append({"n": n, "tokens": tokens, "accuracy": right(picked)})
        n *= 2
    return {"accuracy": found, "num_problems": len(stories)}
