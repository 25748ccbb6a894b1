"""Batches of tokenised solutions: padding, masks, and the logits at the positions of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class StepwiseCollator:
    """Pads tokenised rows on the right, with an attention mask from their lengths and a mask for labels.

    Padding is never recognised by its token id: a pad token that is also the end token is harmless. Labels are
    floats and have a mask of their own, so that no number stands for "no label".

    Args:
        pad_token_id (`int`):
            Id that fills `input_ids`.
        pad_to_multiple_of (`int`, *optional*):
            Pads to a multiple of this length.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            rows (`Sequence[Mapping]`):
                `input_ids`; `positions` of prompt and steps, -1 where not scored; for training also `labels`, one
                per position, NaN where there is none.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids` and `attention_mask` of shape (B, T), `positions` (int64) and
            `position_mask` (bool) of shape (B, 1 + S); with labels also `labels` (float32) and `label_mask` (bool)
            of shape (B, 1 + S).
        """
        length = max(len(row["input_ids"]) for row in rows)
        multiple = self.pad_to_multiple_of or 1
        length = math.ceil(length / multiple) * multiple
        size = (len(rows), max(len(row["positions"]) for row in rows))
        batch = {
            "input_ids": torch.full((len(rows), length), self.pad_token_id),
            "attention_mask": torch.zeros((len(rows), length), dtype=torch.long),
            "positions": torch.zeros(size, dtype=torch.long),
            "position_mask": torch.zeros(size, dtype=torch.bool),
        }
        has_labels = "labels" in rows[0]
        labels = torch.full(size, math.nan)
        for i, row in enumerate(rows):
            num_tokens, num_positions = len(row["input_ids"]), len(row["positions"])
            batch["input_ids"][i, :num_tokens] = torch.as_tensor(row["input_ids"])
            batch["attention_mask"][i, :num_tokens] = 1
            positions = torch.as_tensor(row["positions"])
            batch["positions"][i, :num_positions] = positions.clamp(min=0)
            batch["position_mask"][i, :num_positions] = positions >= 0
            if has_labels:
                labels[i, :num_positions] = torch.as_tensor(row["labels"], dtype=torch.float32)
        if has_labels:
            batch["label_mask"] = ~labels.isnan() & batch["position_mask"]
            batch["labels"] = labels.nan_to_num(0.0)
        return batch


def gather_positions(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Read the logit of a positive step at every position.

    Args:
        logits (`torch.Tensor` of shape (B, T, 1) or (B, T, 2)):
            Outputs of a token-classification model. With two labels, the second one means a right step, as TRL's
            former `PRMTrainer` trained them; its probability is the sigmoid of the difference.
        positions (`torch.Tensor` of shape (B, 1 + S)):
            Positions, in [0, T).

    Returns:
        `torch.Tensor` of shape (B, 1 + S): Logits in float32, with gradient.
    """
    chosen = logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1])).float()
    return chosen[..., 0] if logits.shape[-1] == 1 else chosen[..., 1] - chosen[..., 0]
