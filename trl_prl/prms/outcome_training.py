"""Training of an implicit process reward on the outcomes of whole solutions, on all processes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object

from trl_prl.verifier.batches import StepwiseCollator, token_batches
from trl_prl.verifier.rows import TokenizedSteps


def with_adapter(model: Any, rank: int) -> Any:
    """A language model with a new LoRA adapter in all linear layers but the output layer, which changes nothing yet.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model, which is changed in place.
        rank (`int`):
            Rank of the adapter; its scale is 2.

    Returns:
        [`~peft.PeftModel`]: The model.

    Raises:
        `ImportError`: If PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(
            "An implicit process reward that learns has its weights in a LoRA adapter, which is made with PEFT, but "
            "that is not installed. Install it: pip install trl-prl[peft]. Or give a `reference` and `lora_rank=0`, "
            "which trains the model itself."
        ) from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


class OutcomeTraining:
    """Takes an optimizer step (AdamW, no weight decay) on every rollout, by cross-entropy against the outcomes.

    The loss is the mean over the solutions of all processes of the binary cross-entropy, with logits, of `beta` times
    the log-ratio of a solution. Dropout is off. Source: [PRIME](https://huggingface.co/papers/2502.01456).

    Args:
        scorer (`LogRatio`):
            Model and reference.
        beta (`float`):
            Scale of the log-ratio.
        learning_rate (`float`):
            Learning rate.

    Raises:
        `ValueError`: If the model has no parameter to train, or trains some in half precision.
    """

    def __init__(self, scorer: Any, beta: float, learning_rate: float) -> None:
        self.scorer = scorer
        self.beta = beta
        self.parameters = {name: one for name, one in scorer.model.named_parameters() if one.requires_grad}
        if not self.parameters:
            raise ValueError(
                "The model of the implicit process reward has no parameter that requires a gradient, so it cannot "
                "learn. Load its adapter with `is_trainable=True`, or leave `learning_rate` out."
            )
        half = next((name for name, one in self.parameters.items() if one.dtype.itemsize < 4), None)
        if half is not None:
            raise ValueError(
                f"The parameter '{half}' would be trained in {self.parameters[half].dtype}, in which small steps are "
                "rounded away. Load the model with `dtype='float32'`, or train an adapter (`lora_rank=16`)."
            )
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=learning_rate, weight_decay=0.0)
        self._accelerator: Any = None

    def prepare(self, accelerator: Any) -> None:
        """Give all processes the weights of the first."""
        self._accelerator = accelerator
        for parameter in self.parameters.values():
            parameter.data.copy_(broadcast(parameter.data))

    def step(
        self, rows: Sequence[TokenizedSteps], outcomes: Sequence[float], pad_token_id: int, max_batch_tokens: int
    ) -> dict[str, float]:
        """Learn from solutions.

        Args:
            rows (`Sequence[TokenizedSteps]`):
                Solutions of this process, with the positions of prompt and last step; may be none.
            outcomes (`Sequence[float]`):
                Their outcomes, in [0, 1].
            pad_token_id (`int`):
                Fills batches.
            max_batch_tokens (`int`):
                Most tokens of a batch, padding included.

        Returns:
            `dict[str, float]`: Of the solutions of all processes, before the step: `loss`, `auroc` of the log-ratio
            where both outcomes occur, `num_solutions`; and `grad_norm`. Empty where there are no solutions.
        """
        num_solutions = len(gather_object(list(outcomes))) if self._accelerator else len(outcomes)
        if not num_solutions:
            return {}
        self.optimizer.zero_grad(set_to_none=False)
        self.scorer.eval()
        device = next(iter(self.parameters.values())).device
        collator, pairs = StepwiseCollator(pad_token_id), []
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for indices in token_batches([len(row.input_ids) for row in rows], max_batch_tokens):
                given = [{"input_ids": rows[i].input_ids, "positions": rows[i].positions} for i in indices]
                batch = {name: tensor.to(device) for name, tensor in collator(given).items()}
                ratios = self.scorer(batch["input_ids"], batch["attention_mask"], use_cache=False).logits
                ratios = ratios.squeeze(-1).gather(1, batch["positions"])
                logits = self.beta * (ratios[:, 1] - ratios[:, 0])
                targets = torch.tensor([outcomes[i] for i in indices], dtype=logits.dtype, device=device)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
                (loss / num_solutions).backward()
                pairs += list(zip(logits.tolist(), targets.tolist(), strict=True))
        self._add_up_gradients()
        grad_norm = torch.nn.utils.get_total_norm(one.grad for one in self.parameters.values()).item()
        self.optimizer.step()
        found = outcome_metrics(gather_object(pairs) if self._accelerator else pairs)
        return {**found, "grad_norm": grad_norm, "num_solutions": float(num_solutions)}

    def _add_up_gradients(self) -> None:
        for parameter in self.parameters.values():
            # A process without solutions has no gradient, and all take the same step.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._accelerator.reduce(gradient, reduction="sum") if self._accelerator else gradient

    def state_dict(self) -> dict[str, Any]:
        """Trained parameters, and the state of the optimizer, on the CPU."""
        parameters = {name: one.detach().cpu() for name, one in self.parameters.items()}
        return {"parameters": parameters, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            `ValueError`: If it has other parameters.
        """
        found = {name: tuple(one.shape) for name, one in state["parameters"].items()}
        expected = {name: tuple(one.shape) for name, one in self.parameters.items()}
        if found != expected:
            other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            raise ValueError(
                f"The state has other trained parameters than this implicit process reward, '{other[0]}' for "
                f"instance: shape {found.get(other[0])} there, {expected.get(other[0])} here. Make it of the same "
                "model and with the same `lora_rank` as in the training that is resumed."
            )
        with torch.no_grad():
            for name, value in state["parameters"].items():
                self.parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


def outcome_metrics(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """How well logits of solutions say their outcomes.

    Args:
        pairs (`Sequence[tuple[float, float]]`):
            Logit and outcome, in [0, 1], of each solution.

    Returns:
        `dict[str, float]`: `loss`, the mean cross-entropy, and `auroc` of outcomes above 0.5, where both kinds occur.
    """
    from sklearn.metrics import roc_auc_score

    logits, outcomes = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    found = {"loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, outcomes).item()}
    right = outcomes > 0.5
    if right.any() and not right.all():
        found["auroc"] = float(roc_auc_score(right.numpy(), logits.numpy()))
    return found
