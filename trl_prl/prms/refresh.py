"""A verifier that is refreshed, while a policy learns, from the policy's own rollouts."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from trl_prl.generation.adapters import with_adapter
from trl_prl.metrics.calibration import outcome_metrics
from trl_prl.verifier.batches import collated, gather_positions
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.rows import TokenizedSteps
from trl_prl.verifier.settings import VerifierSettings

from .online import JointTraining, known_outcomes


class OnlineVerifier(ProcessAdvantageVerifier):
    r"""
    A [`ProcessAdvantageVerifier`] that is refreshed, while a policy trains, from the policy's own rollouts.

    Every `refresh_every` optimizer steps it takes `refresh_steps` steps of binary cross-entropy on recent rollouts,
    each prefix of one, the prompt included, labelled with its outcome: one Monte-Carlo sample of the policy's value
    there. So its values move from those of the prover it was trained on to those of the live policy, which as a prover
    of itself adds nothing: use `best_of_k` (4 in the paper) beside it. The paper
    ([PAV](https://huggingface.co/papers/2410.08146)) leaves refreshing open.

    All processes hold the same verifier and the same rollouts, and share out the batches. It is a [`ProcessReward`]
    that learns.

    Args:
        model, tokenizer, settings, max_batch_tokens:
            As for [`ProcessAdvantageVerifier`].
        refresh_every (`int`, *optional*, defaults to `10`):
            Optimizer steps of the policy between two refreshes.
        refresh_steps (`int`, *optional*, defaults to `10`):
            Steps of AdamW in a refresh.
        refresh_batch (`int`, *optional*, defaults to `32`):
            Rollouts in each of them, over all processes, drawn at random from the recent ones.
        recent_rollouts (`int`, *optional*, defaults to `1024`):
            How many of the last rollouts are kept, over all processes.
        learning_rate (`float`, *optional*, defaults to `1e-4`):
            Learning rate; all weights take about a hundredth of it.
        lora_rank (`int`, *optional*, defaults to `16`):
            Rank of the adapter that a model without one gets; `0` trains all weights.

    Raises:
        `ImportError`: If an adapter is to be made without PEFT.
        `ValueError`: If a number is out of its range, or the model cannot be trained.

    Example:

    ```python
    verifier = load_process_reward("my-org/my-pav", refresh_every=10)
    PAVTrainer(..., process_reward=verifier, args=PAVConfig(output_dir="out", best_of_k=4)).train()
    verifier.save_pretrained("my-refreshed-pav")
    ```
    """

    is_trainable = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: VerifierSettings | None = None,
        max_batch_tokens: int = 16384,
        *,
        refresh_every: int = 10,
        refresh_steps: int = 10,
        refresh_batch: int = 32,
        recent_rollouts: int = 1024,
        learning_rate: float = 1e-4,
        lora_rank: int = 16,
    ) -> None:
        counts = (refresh_every, refresh_steps, refresh_batch, recent_rollouts)
        if min(counts) < 1 or not 0 < learning_rate < math.inf or lora_rank < 0:
            raise ValueError(
                f"Got refresh_every={refresh_every}, refresh_steps={refresh_steps}, refresh_batch={refresh_batch}, "
                f"recent_rollouts={recent_rollouts}, learning_rate={learning_rate} and lora_rank={lora_rank}, with "
                "which nothing would be learned. Use a positive learning rate, a rank of 0 (all weights) or more, and "
                "1 or more of everything else."
            )
        if lora_rank and not hasattr(model, "peft_config"):
            model = with_adapter(model, lora_rank)
        super().__init__(model, tokenizer, settings, max_batch_tokens)
        self.model.eval()
        self.refresh_every, self.refresh_steps, self.refresh_batch = refresh_every, refresh_steps, refresh_batch
        self._training = JointTraining(model, learning_rate)
        self._recent: deque[tuple[TokenizedSteps, float]] = deque(maxlen=recent_rollouts)
        self._num_fresh = self._num_updates = self._num_refreshes = 0
        self._next_refresh: int | None = None

    def prepare(self, accelerator: Any) -> None:
        """Get ready for a training with `accelerate`: every process holds the verifier, with the same weights.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's.
        """
        super().prepare(accelerator)
        self._training.prepare(accelerator)

    def update(
        self,
        prompts: Sequence[Any],
        steps: Sequence[Sequence[str]],
        outcomes: Sequence[float | None],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> dict[str, float]:
        """Take in rollouts, and learn from the recent ones where that is due. All processes call it together.

        Args:
            prompts (`Sequence`):
                One prompt per rollout, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each; joined, they are the completion.
            outcomes (`Sequence[float | None]`):
                Outcome of each, in [0, 1]; one without is left out.
            finished (`Sequence[bool]`, *optional*):
                Which rollouts end with their last step; all do by default.
            **columns:
                `trainer_state` says which optimizer step it is; without one every call is one.

        Returns:
            `dict[str, float]`: After a refresh `loss` and `auroc` of the values of all prefixes of the rollouts since
            the last one, before it, so of rollouts the verifier has not seen; how many these are (`num_solutions`);
            and the mean `grad_norm`. Nothing otherwise.

        Raises:
            `ValueError`: If an outcome is outside [0, 1].
        """
        known = known_outcomes(outcomes)
        rows = self._tokenize(
            [prompts[i] for i, _ in known],
            [steps[i] for i, _ in known],
            None if finished is None else [finished[i] for i, _ in known],
        )
        pairs = zip(rows, (outcome for _, outcome in known), strict=True)
        fresh = self._training.gather([pair for pair in pairs if pair[0].positions[0] >= 0])
        self._recent.extend(fresh)
        self._num_fresh = min(self._num_fresh + len(fresh), len(self._recent))
        now = int(getattr(columns.get("trainer_state"), "global_step", self._num_updates))
        self._num_updates += 1
        if self._next_refresh is None or self._next_refresh - now > self.refresh_every:  # another training begins
            self._next_refresh = now + self.refresh_every - 1
        if now < self._next_refresh or not self._num_fresh:
            return {}
        self._next_refresh = now + self.refresh_every
        return self._refresh()

    def _refresh(self) -> dict[str, float]:
        recent = list(self._recent)
        found = {**self._compare(recent[-self._num_fresh :]), "num_solutions": float(self._num_fresh)}
        self._num_fresh = 0
        # Every process draws the same, whatever else has been drawn, and so does a training that is resumed.
        generator = torch.Generator().manual_seed(self._num_refreshes)
        self._num_refreshes += 1
        grad_norms = []
        for _ in range(self.refresh_steps):
            drawn = torch.randperm(len(recent), generator=generator)[: self.refresh_batch].tolist()
            grad_norms.append(self._training.step(self._losses([recent[i] for i in drawn])))
        return {**found, "grad_norm": sum(grad_norms) / len(grad_norms)}

    def _compare(self, rollouts: Sequence[tuple[TokenizedSteps, float]]) -> dict[str, float]:
        """Logits of the prefixes of rollouts, against their outcomes."""
        own = self._training.share(rollouts)
        logits = self._calibrated(self.score_tokenized([row for row, _ in own]))
        pairs = [(x, y) for row, (_, y) in zip(logits.tolist(), own, strict=True) for x in row if not math.isnan(x)]
        return outcome_metrics(*zip(*self._training.gather(pairs), strict=True))

    def _losses(self, rollouts: Sequence[tuple[TokenizedSteps, float]]) -> Iterator[torch.Tensor]:
        """Parts of the mean cross-entropy over the prefixes of rollouts, those of this process's share."""
        num_labels = sum(position >= 0 for row, _ in rollouts for position in row.positions)
        rows = [
            {"input_ids": row.input_ids, "positions": row.positions, "labels": [outcome] * len(row.positions)}
            for row, outcome in self._training.share(rollouts)
        ]
        for _, batch in collated(rows, self.max_batch_tokens, self._training.device):
            logits = self.model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            logits = self._calibrated(gather_positions(logits, batch["positions"], self._right_label))
            losses = binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none")
            yield losses[batch["label_mask"]].sum() / num_labels

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, with the state of its optimizer, the recent rollouts, and when it is due again."""
        rollouts = [[row.input_ids, row.positions, outcome] for row, outcome in self._recent]
        counts = [self._num_fresh, self._num_updates, self._num_refreshes, self._next_refresh]
        return {**self._training.state_dict(), "rollouts": rollouts, "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state (`dict`):
                The state.

        Raises:
            `ValueError`: If it is that of another model.
        """
        self._training.load_state_dict(state)
        self._recent.clear()
        self._recent.extend((TokenizedSteps(ids, places, 0), y) for ids, places, y in state["rollouts"])
        self._num_fresh, self._num_updates, self._num_refreshes, self._next_refresh = state["counts"]

    def save_pretrained(self, path: str | Path) -> None:
        """Save it whole, as a [`ProcessAdvantageVerifier`]; merging its adapter takes memory for another model."""
        model = copy.deepcopy(self.model)
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        # Whose values it has now has no name.
        settings = replace(self.settings, prover=None) if self._num_refreshes else self.settings
        ProcessAdvantageVerifier(model, self.tokenizer, settings).save_pretrained(path)
