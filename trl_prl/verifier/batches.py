"""Batches of tokenised solutions: padding, masks, and the logits at the positions of steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence


# What the labels of a token classifier are called that judges steps.
RIGHT_NAMES = {"right", "correct", "good", "positive", "pos", "true", "yes", "+", "1"}
WRONG_NAMES = {"wrong", "incorrect", "bad", "negative", "neg", "false", "no", "-", "0", "error"}


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
        texts = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        ids = pad_sequence(texts, batch_first=True, padding_value=self.pad_token_id)
        ids = pad(ids, (0, -ids.shape[1] % (self.pad_to_multiple_of or 1)), value=self.pad_token_id)
        lengths = torch.tensor([len(text) for text in texts])
        places = [torch.as_tensor(row["positions"], dtype=torch.long) for row in rows]
        positions = pad_sequence(places, batch_first=True, padding_value=-1)
        batch = {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long(),
            "positions": positions.clamp(min=0),
            "position_mask": positions >= 0,
        }
        if "labels" in rows[0]:
            given = [torch.as_tensor(row["labels"], dtype=torch.float32) for row in rows]
            labels = pad_sequence(given, batch_first=True, padding_value=math.nan)
            batch["label_mask"] = ~labels.isnan() & batch["position_mask"]
            batch["labels"] = labels.nan_to_num(0.0)
        return batch


def token_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Share rows out over batches, longest first: one that does not fit in memory fails at once.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each row.
        max_batch_tokens (`int`):
            Most tokens of a batch, padding included; a longer row is a batch of its own.

    Returns:
        `list[list[int]]`: Indices of the rows of each batch.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first row of a batch is its longest.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def collated(
    rows: Sequence[Mapping[str, Any]], max_batch_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Batches of rows on a device, as of [`token_batches`].

    Args:
        rows (`Sequence[Mapping]`):
            As for [`StepwiseCollator`].
        max_batch_tokens (`int`):
            Most tokens of a batch, padding included.
        device (`torch.device`):
            Where to put them.

    Yields:
        `tuple[list[int], dict[str, torch.Tensor]]`: Indices of the rows of a batch, and the batch.
    """
    # Attention is masked by length, so the id of the padding does not matter.
    collator = StepwiseCollator(pad_token_id=0)
    for indices in token_batches([len(row["input_ids"]) for row in rows], max_batch_tokens):
        batch = collator([rows[i] for i in indices])
        yield indices, {name: tensor.to(device) for name, tensor in batch.items()}


def right_label(config: Any) -> int:
    """Which label of a token-classification model means a right step.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Config of a model with one label, or with two. Labels without names are those of TRL's former
            `PRMTrainer`, whose second one means a right step.

    Returns:
        `int`: 0 or 1.

    Raises:
        `ValueError`: If there are more labels, or their names do not say which one it is.
    """
    if config.num_labels > 2:
        raise ValueError(
            f"The model has {config.num_labels} labels, which are no probability of success. Use a "
            "token-classification model with one label, such as `PAVRewardTrainer` trains."
        )
    if config.num_labels == 1:
        return 0
    names = [str(config.id2label[i]).strip().lower() for i in range(2)]
    if names == ["label_0", "label_1"]:
        return 1
    kinds = [name in RIGHT_NAMES for name in names], [name in WRONG_NAMES for name in names]
    if sum(kinds[0]) != 1 or sum(kinds[1]) != 1:
        raise ValueError(
            f"The model's two labels are called {config.id2label[0]!r} and {config.id2label[1]!r}, which does not say "
            "which one means a right step, and the wrong guess would turn every value around. Set `config.id2label` "
            "to {0: 'wrong', 1: 'right'} or {0: 'right', 1: 'wrong'}."
        )
    return kinds[0].index(True)


def gather_positions(logits: torch.Tensor, positions: torch.Tensor, right_label: int = 1) -> torch.Tensor:
    """Read the logit of a positive step at every position.

    Args:
        logits (`torch.Tensor` of shape (B, T, 1) or (B, T, 2)):
            Outputs of a token-classification model. With two labels, the probability of a right step is the sigmoid of
            the difference.
        positions (`torch.Tensor` of shape (B, 1 + S)):
            Positions, in [0, T).
        right_label (`int`, *optional*, defaults to `1`):
            Which of two labels means a right step: the second one, as TRL's former `PRMTrainer` trained them.

    Returns:
        `torch.Tensor` of shape (B, 1 + S): Logits in float32, or more precise where they were, with gradient.
    """
    chosen = logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    # Large sums, of which differences are taken, come in float64 and stay so.
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    return chosen[..., 0] if logits.shape[-1] == 1 else chosen[..., right_label] - chosen[..., 1 - right_label]
