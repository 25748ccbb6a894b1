"""Key-value cache with room for the tokens to come.

The dynamic cache of `transformers` copies itself whole for every new token. Where the number of tokens to come is
known, memory for them is taken once: on a CPU this makes decoding of a large batch two to three times as fast.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer of the dynamic cache whose states are the filled part of larger buffers.

    Overrides `update` and `batch_select_indices`; the rest is inherited unchanged.

    Args:
        keys (`Tensor` of shape (B, H, L, D)):
            Keys of the prompts.
        values (`Tensor` of shape (B, H, L, D)):
            Values of the prompts.
        repeats (`int`):
            Samples per prompt: the batch of this layer is B · `repeats`, the samples of a prompt next to each other.
        room (`int`):
            Tokens to come. More are possible; the buffers then grow.
    """

    def __init__(self, keys: Tensor, values: Tensor, repeats: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._length = keys.shape[-2]
        self._buffers = (_repeated(keys, repeats, room), _repeated(values, repeats, room))
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            keys, values = (buffer[..., : self._length, :] for buffer in self._buffers)
            self._buffers = (_repeated(keys, 1, end), _repeated(values, 1, end))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., self._length : end, :] = states
        self._length = end
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = (self._buffers[0][indices], self._buffers[1][indices])
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[..., : self._length, :] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


def _repeated(states: Tensor, repeats: int, room: int) -> Tensor:
    """Copy states for every sample into a buffer of shape (B · repeats, H, L + room, D)."""
    batch, heads, length, size = states.shape
    buffer = states.new_empty(batch, repeats, heads, length + room, size)
    buffer[..., :length, :] = states[:, None]
    return buffer.flatten(0, 1)


def repeat_with_room(cache: Any, repeats: int, room: int) -> None:
    """Repeat a cache for the samples of each prompt, in place, and make room in its ordinary layers.

    Args:
        cache ([`~transformers.Cache`]):
            Cache of the prompts. Layers of another kind (sliding windows, linear attention) are repeated as the
            library does it.
        repeats (`int`):
            Samples per prompt.
        room (`int`):
            Tokens to come.
    """
    for i, layer in enumerate(cache.layers):
        keys, values = layer.keys, layer.values
        if type(layer) is DynamicLayer and keys is not None and values is not None:
            cache.layers[i] = RoomyLayer(keys, values, repeats, room)
        elif repeats > 1:
            layer.batch_repeat_interleave(repeats)
