"""avg@n and pass@k of the policy while it trains."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import Trainer, TrainerCallback
from trl.models import unwrap_model_for_generation

from trl_prl.evaluation.samples import Unfinished, evaluate_problems
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.rollouts import Problem
from trl_prl.generation.sampling import sampling_of_training
from trl_prl.metrics.sampling_estimates import mean_pass_at_k
from trl_prl.prompts.chat import prompt_token_ids
from trl_prl.rewards.timed import TimedReward
from trl_prl.types import OutcomeReward


class EvaluationCallback(TrainerCallback):
    r"""
    Samples `n` completions for every prompt of an evaluation set while a TRL trainer trains, and logs how many are
    right.

    Works with [`~trl.GRPOTrainer`] and every trainer that has a causal language model and a tokenizer, those of this
    package included, on one process or several. Every evaluation uses the same random numbers, so that two of them
    differ by the policy alone. Training is left alone: weights, random number generators, and the training mode of
    each module are afterwards what they were, and an evaluation changes no loss by a bit.

    Logged through the trainer, so that every tracker gets them, and added to the metrics of the trainer's own
    evaluation, so that `metric_for_best_model="eval_pass_at_8"` works:

    - `eval_avg_at_{n}`: mean fraction of correct samples.
    - `eval_pass_at_{k}`: unbiased estimate ([Chen et al.](https://huggingface.co/papers/2107.03374)).
    - `eval_unfinished`: fraction of the samples that reached the length limit. Near 0, else raise the limit.
    - `eval_unchecked`: fraction that does not count, as its outcome is not known. Near 0.
    - `eval_no_answer`: fraction of the samples in which no final answer is found; the reward
      `"accuracy"` calls them wrong. Near 0.

    Args:
        trainer ([`~trl.GRPOTrainer`] or another trainer):
            The trainer the callback is added to.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Rows with a `prompt`, text or messages, and the columns the reward reads; the trainer's `eval_dataset` by
            default.
        reward_func ([`OutcomeReward`] or `str`, *optional*):
            Says what is right, in TRL's signature; the first of the trainer's `reward_funcs` by default. A name such
            as `"accuracy"` or `"module:function"` is checked in a process of its own under `check_timeout`.
        n (`int`, *optional*, defaults to `8`):
            Samples per prompt.
        k (`Sequence[int]`, *optional*):
            k of pass@k, each at most `n`; 1 and `n` by default.
        freq (`int`, *optional*):
            Evaluate every so many optimizer steps, and before the first one if `eval_on_start` is set. By default
            whenever the trainer evaluates.
        max_prompts (`int`, *optional*):
            Use only the first prompts.
        temperature (`float`, *optional*):
            Sampling temperature; that of the training rollouts by default.
        max_completion_length (`int`, *optional*):
            Most tokens of a completion; that of the training rollouts by default.
        unfinished (`str`, *optional*, defaults to `"wrong"`):
            What samples at the length limit are: wrong, not counted (`"exclude"`), or checked as in training
            (`"check"`).
        reward_threshold (`float`, *optional*, defaults to `0.5`):
            Rewards above it are right.
        check_timeout (`float`, *optional*, defaults to `30.0`):
            Seconds after which the check of one answer counts as failed, for a reward given by its name; above 0.
        max_batch_tokens (`int`, *optional*, defaults to `65536`):
            Most tokens in the key-value cache at a time.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
        metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
            Start of the metrics' names, for several callbacks with data sets of their own.

    Raises:
        `ValueError`: If there are no prompts or no reward, or a number is out of range.

    Example:

    ```python
    trainer = GRPOTrainer(...)
    trainer.add_callback(EvaluationCallback(trainer, test_set, "accuracy", n=16, k=(1, 4, 16), freq=50))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Any,
        eval_dataset: Any | None = None,
        reward_func: OutcomeReward | str | None = None,
        *,
        n: int = 8,
        k: Sequence[int] | None = None,
        freq: int | None = None,
        max_prompts: int | None = None,
        temperature: float | None = None,
        max_completion_length: int | None = None,
        unfinished: Unfinished = "wrong",
        reward_threshold: float = 0.5,
        check_timeout: float = 30.0,
        max_batch_tokens: int = 65536,
        seed: int = 0,
        metric_key_prefix: str = "eval",
    ) -> None:
        self.trainer = trainer
        self.k = (1, n) if k is None else tuple(k)
        if n < 1 or not all(1 <= entry <= n for entry in self.k) or (freq is not None and freq < 1):
            raise ValueError(
                f"Got n={n}, k={self.k} and freq={freq}. pass@k averages over subsets of k among n samples, and freq "
                "counts optimizer steps. Use 1 <= k <= n and a positive freq."
            )
        self.problems = _problems(trainer, eval_dataset, max_prompts)
        self.reward = _reward(trainer, reward_func, check_timeout)
        self.n, self.freq = n, freq
        self.unfinished, self.reward_threshold = unfinished, reward_threshold
        self.max_batch_tokens = max_batch_tokens
        self.prefix = metric_key_prefix
        self.params = sampling_of_training(
            trainer.args, n=n, max_tokens=max_completion_length, temperature=temperature, seed=seed
        )
        self._last_step: int | None = None

    # ---- events ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last_step = None
        if self.freq is not None and args.eval_on_start and state.global_step == 0:
            self._evaluate_and_log(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.freq is not None and state.global_step % self.freq == 0:
            self._evaluate_and_log(state, control)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        # With several evaluation sets the trainer reports once for each.
        if self.freq is None and not (self.trainer.is_in_train and self._last_step == state.global_step):
            found = self._evaluate_and_log(state, control)
            if metrics is not None:
                metrics.update(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.reward, TimedReward):
            self.reward.close()

    def _evaluate_and_log(self, state: Any, control: Any) -> dict[str, float]:
        self._last_step = state.global_step
        metrics = self.evaluate()
        # GRPO's own `log` would empty the metrics of the training batch at hand, and show its completions once more.
        should_log = control.should_log
        Trainer.log(self.trainer, dict(metrics))
        # A log entry marks the training log of this optimizer step as done, which it is not.
        control.should_log = should_log
        return metrics

    # ---- evaluation ----

    def evaluate(self) -> dict[str, float]:
        """Sample and check; every process has to call it.

        Returns:
            `dict[str, float]`: The metrics, the same on every process.
        """
        trainer = self.trainer
        accelerator = trainer.accelerator
        # Where every forward is shared by all processes, they must do the same ones: each computes everything.
        share_all = _forwards_are_shared(trainer)
        index, number = (0, 1) if share_all else (accelerator.process_index, accelerator.num_processes)
        with _undisturbed(trainer), self._generator() as generator:
            rows = evaluate_problems(
                self.problems[index::number],
                generator,
                self.reward,
                self.params,
                self.n,
                unfinished=self.unfinished,
                threshold=self.reward_threshold,
            )
        # Whether each sample is right, at the length limit, and without an answer.
        outcomes = [
            [(s["correct"], s["finish_reason"] == "length", s["answer"] is None) for s in row["samples"]]
            for row in rows
        ]
        return self._metrics_of(outcomes if share_all else gather_object(outcomes))

    @contextmanager
    def _generator(self) -> Iterator[TransformersGenerator]:
        trainer = self.trainer
        wrapped = trainer.model_wrapped
        whole = (
            FullyShardedDataParallel.summon_full_params(wrapped, recurse=False)
            if isinstance(wrapped, FullyShardedDataParallel)
            else nullcontext()
        )
        unwrapped = unwrap_model_for_generation(
            wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=getattr(trainer.args, "ds3_gather_for_generation", True),
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        )
        with unwrapped as model, whole:
            yield TransformersGenerator(model, trainer.processing_class, max_batch_tokens=self.max_batch_tokens)

    def _metrics_of(self, outcomes: Sequence[Sequence[tuple[bool | None, bool, bool]]]) -> dict[str, float]:
        counted = [[bool(correct) for correct, _, _ in row if correct is not None] for row in outcomes]
        flat = [sample for row in outcomes for sample in row]
        metrics = {}
        for name, k in ((f"avg_at_{self.n}", 1), *((f"pass_at_{k}", k) for k in self.k)):
            enough = [row for row in counted if len(row) >= k]
            if enough:
                metrics[name] = mean_pass_at_k(enough, k)
        metrics["unfinished"] = sum(cut for _, cut, _ in flat) / len(flat)
        metrics["unchecked"] = sum(correct is None for correct, _, _ in flat) / len(flat)
        metrics["no_answer"] = sum(unanswered for _, _, unanswered in flat) / len(flat)
        return {f"{self.prefix}_{name}": value for name, value in metrics.items()}


def _problems(trainer: Any, eval_dataset: Any, max_prompts: int | None) -> list[Problem]:
    dataset = trainer.eval_dataset if eval_dataset is None else eval_dataset
    rows = [] if dataset is None or isinstance(dataset, Mapping) else list(dataset)[:max_prompts]
    if not rows or "prompt" not in rows[0]:
        raise ValueError(
            f"Got {type(dataset).__name__} as the evaluation set, which has no rows with a 'prompt', so there is "
            "nothing to sample for. Pass a Dataset with that column as `eval_dataset`; for several of them, one "
            "callback each with a `metric_key_prefix` of its own."
        )
    template = {
        **(getattr(trainer.args, "chat_template_kwargs", None) or {}),
        # What a trainer shows its policy in every rollout.
        "tools": getattr(trainer, "tools", None),
        "chat_template": getattr(trainer, "chat_template", None),
    }
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    problems = []
    for index, row in enumerate(rows):
        columns = dict(row)
        prompt = columns.pop("prompt")
        problems.append(Problem(index, prompt, prompt_token_ids(tokenizer, prompt, **template), columns))
    return problems


def _reward(trainer: Any, reward_func: Any, check_timeout: float) -> Callable[..., Sequence[float | None]]:
    if isinstance(reward_func, str):
        return TimedReward(reward_func, check_timeout)
    if reward_func is None:
        own = getattr(trainer, "reward_funcs", None) or [None]
        reward_func = own[0]
    if not callable(reward_func) or isinstance(reward_func, torch.nn.Module):
        raise ValueError(
            f"Got {type(reward_func).__name__} as the reward, which cannot say whether a completion is right: that "
            "takes a function of prompts and completions. Pass one as `reward_func`, or the name of one."
        )
    return reward_func


def _forwards_are_shared(trainer: Any) -> bool:
    """Whether a forward on one process waits for the same one on all others."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    gathers = getattr(trainer.args, "ds3_gather_for_generation", True)
    return bool(trainer.is_fsdp_enabled) or (plugin is not None and plugin.zero_stage == 3 and not gathers)


@contextmanager
def _undisturbed(trainer: Any) -> Iterator[None]:
    """Put random number generators and the mode of each module back afterwards."""
    modes = [(module, module.training) for module in trainer.model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    device = trainer.accelerator.device
    # The current device is the only one that this process draws numbers on.
    kinds = {} if device.type == "cpu" else {"device_type": device.type}
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices=devices, **kinds), torch.no_grad():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes:
            module.training = training
