"""Implicit process rewards: the log-ratio of a language model and its reference, summed over every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trl_prl.generation.adapters import with_adapter
from trl_prl.metrics.calibration import outcome_metrics
from trl_prl.verifier.batches import collated
from trl_prl.verifier.rows import TokenizedSteps
from trl_prl.verifier.scorer import ModelScorer
from trl_prl.verifier.settings import VerifierSettings

from .heads import LogRatio
from .online import JointTraining, known_outcomes


class ImplicitProcessReward(ModelScorer):
    r"""
    Progress of every step by `beta * (log pi - log pi_ref)`, summed over its tokens.

    It is a [`ProcessReward`] that returns advantages, or values if told to: the sum from the start is a Q-value in the
    model's own reward, and its sigmoid the probability of a right answer that PRIME trains. Sources:
    [implicit PRM](https://huggingface.co/papers/2412.01981), Prop. 3.1; [PRIME](https://huggingface.co/papers/2502.01456).

    With a `learning_rate` it learns while a policy does: after every rollout it takes one optimizer step on the
    outcomes, over all processes, by binary cross-entropy, as in PRIME. No step needs a label.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model. Frozen, it was trained on outcomes or preferences against the reference; to learn,
            it gets a LoRA adapter, in place, unless it has one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        reference ([`~transformers.PreTrainedModel`], *optional*):
            The reference, with the same tokenizer. By default the model with its adapter off, so that learning costs
            an adapter and not a model.
        learning_rate (`float`, *optional*):
            Learning rate of AdamW. By default the reward is frozen. PRIME trains all weights with 1e-6; an adapter
            takes about a hundred times more.
        lora_rank (`int`, *optional*, defaults to `16`):
            Rank of the adapter that a model without one gets; `0` trains all weights, which takes a `reference`.
        beta (`float`, *optional*):
            Scale. By default 0.05 where it learns, as in PRIME, else 0.001, as on the cards of EurusPRM; for a DPO
            model the training's own.
        returns (`str`, *optional*, defaults to `"advantages"`):
            `"advantages"` for the sums, or `"values"` for the sigmoids of the sums from the start, as a search needs.
        prompt_format (`str`, *optional*):
            `"as_given"`, `"chat"` or `"text"`, see [`VerifierSettings`]. By default as the policy is given it
            (`"as_given"`) where it learns, else `"chat"`.
        max_length (`int`, *optional*):
            Most tokens of a solution with its prompt. Nothing is learned from longer ones.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Most tokens of a batch, padding included.

    Raises:
        `ImportError`: If an adapter is to be made without PEFT.
        `ValueError`: If `beta`, `learning_rate` or `lora_rank` is out of range, `returns` is neither of the two, or
        model and reference would always be equal.

    Example:

    ```python
    base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-Math-1.5B", dtype="bfloat16")
    reward = ImplicitProcessReward(base, tokenizer, learning_rate=1e-4)
    args = PAVConfig(output_dir="out", alpha=1.0, progress_scale="none", process_baseline="group")
    PAVTrainer(model="Qwen/Qwen2.5-Math-1.5B", reward_funcs=accuracy_reward, process_reward=reward, args=args, ...)
    ```
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        reference: Any = None,
        *,
        learning_rate: float | None = None,
        lora_rank: int = 16,
        beta: float | None = None,
        returns: Literal["advantages", "values"] = "advantages",
        prompt_format: str | None = None,
        max_length: int | None = None,
        max_batch_tokens: int = 16384,
    ) -> None:
        self.is_trainable = learning_rate is not None
        self.beta = (0.05 if self.is_trainable else 0.001) if beta is None else beta
        self.returns = returns
        self._check(model, reference, learning_rate, lora_rank)
        if self.is_trainable and lora_rank and not hasattr(model, "peft_config"):
            model = with_adapter(model, lora_rank, "CAUSAL_LM")
        settings = VerifierSettings(
            # What is learned from whole solutions does not depend on where steps end.
            step_splitter=None if self.is_trainable else "blank_line",
            prompt_format=prompt_format or ("as_given" if self.is_trainable else "chat"),
            max_length=max_length,
        )
        scorer = LogRatio(model, reference)
        super().__init__(scorer, tokenizer, settings, max_batch_tokens)
        scorer.eval()
        self._training = None if learning_rate is None else JointTraining(model, learning_rate)

    def _check(self, model: Any, reference: Any, learning_rate: float | None, lora_rank: int) -> None:
        if self.returns not in ("advantages", "values"):
            raise ValueError(
                f"`returns` is {self.returns!r}, which is nothing to return. Use 'advantages' or 'values'."
            )
        if not 0 < self.beta < math.inf:
            raise ValueError(
                f"`beta` is {self.beta}, which leaves nothing of the log-ratio or turns it around. Use that of the "
                "training: 0.001 for EurusPRM, 0.05 for PRIME, `DPOConfig.beta` for a DPO model."
            )
        if lora_rank < 0 or (learning_rate is not None and not 0 < learning_rate < math.inf):
            raise ValueError(
                f"`learning_rate` is {learning_rate} and `lora_rank` is {lora_rank}, with which nothing is learned. "
                "Use a positive learning rate, or none for a frozen reward, and a rank of 0 (all weights) or more."
            )
        if reference is None and not hasattr(model, "peft_config") and not (learning_rate and lora_rank):
            raise ValueError(
                f"There is no `reference`, and the {type(model).__name__} has no adapter to leave out instead, so "
                "every log-ratio would be 0. Give the model that it was trained from, or a `learning_rate` with which "
                "an adapter is made and learns."
            )

    def prepare(self, accelerator: Any) -> None:
        """Get ready for a training with `accelerate`: every process holds the models, in their own precision.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's.
        """
        super().prepare(accelerator)
        if self._training is not None:
            self._training.prepare(accelerator)

    def update(
        self,
        prompts: Sequence[Any],
        steps: Sequence[Sequence[str]],
        outcomes: Sequence[float | None],
        **columns: Any,
    ) -> dict[str, float]:
        """Learn from solutions and their outcomes, one optimizer step. In a training all processes call it together.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution; joined, they are the solution.
            outcomes (`Sequence[float | None]`):
                Outcome of each solution, in [0, 1]; nothing is learned where there is none.
            **columns:
                Not used.

        Returns:
            `dict[str, float]`: `loss` and `auroc` over the solutions of all processes, before the step, `grad_norm`
            and `num_solutions`. Nothing of a frozen reward.

        Raises:
            `ValueError`: If an outcome is outside [0, 1].
        """
        if self._training is None:
            return {}
        rows, targets = [], []
        for i, outcome in known_outcomes(outcomes):
            row = self._tokenize_row(prompts[i], list(steps[i]), finished=True)
            if steps[i] and row.positions[-1] >= 0:
                rows.append(replace(row, positions=[row.positions[0], row.positions[-1]]))
                targets.append(outcome)
        num_solutions = len(self._training.gather(targets))
        if not num_solutions:
            return {}
        pairs: list[tuple[float, float]] = []
        grad_norm = self._training.step(self._losses(self._training, rows, targets, num_solutions, pairs))
        logits, known = zip(*self._training.gather(pairs), strict=True)
        return {
            **outcome_metrics(logits, known),
            "grad_norm": grad_norm,
            "num_solutions": float(num_solutions),
        }

    def _losses(
        self,
        training: JointTraining,
        rows: Sequence[TokenizedSteps],
        targets: Sequence[float],
        num_solutions: int,
        pairs: list[tuple[float, float]],
    ) -> Iterator[Tensor]:
        """Parts of the mean cross-entropy over the solutions of all processes; logits and outcomes go to `pairs`."""
        for indices, batch in collated([vars(row) for row in rows], self.max_batch_tokens, training.device):
            ratios = self.model(batch["input_ids"], batch["attention_mask"], use_cache=False).logits.squeeze(-1)
            ratios = ratios.gather(1, batch["positions"])
            logits = self.beta * (ratios[:, 1] - ratios[:, 0])
            outcomes = torch.tensor([targets[i] for i in indices], dtype=logits.dtype, device=logits.device)
            pairs += zip(logits.tolist(), outcomes.tolist(), strict=True)
            yield binary_cross_entropy_with_logits(logits, outcomes, reduction="sum") / num_solutions

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, with the state of its optimizer; empty for a frozen reward."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state (`dict`):
                The state.

        Raises:
            `ValueError`: If it is that of another model.
        """
        if self._training is not None:
            self._training.load_state_dict(state)

    def __call__(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> list[list[float | None]]:
        """Progress of the steps, or their values, as `returns` says.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution; joined, they are the solution.
            **columns:
                `log_metric`, as trainers pass it, is told the shares of steps that were cut off or merged; the others
                are not used.

        Returns:
            `list[list[float]]`: One number per step, NaN beyond `max_length`.
        """
        if self.returns == "values":
            return super().__call__(prompts, steps, **columns)
        sums = self.beta * self._score(prompts, steps, columns)
        return [row[: len(texts)].tolist() for row, texts in zip(sums.diff(dim=1), steps, strict=True)]

    def score_solutions(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> tuple[list[float], list[list[float]]]:
        """Values of prompts and steps: the sigmoid of the sum from the start, 0.5 for a prompt.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.
            **columns:
                As for the call.

        Returns:
            `tuple[list[float], list[list[float]]]`: The values of the prompts, and those of the steps, in [0, 1].
        """
        sums = self.beta * self._score(prompts, steps, columns)
        values = (sums - sums[:, :1]).sigmoid()
        rows = [row[: len(texts) + 1].tolist() for row, texts in zip(values, steps, strict=True)]
        return [row[0] for row in rows], [row[1:] for row in rows]
