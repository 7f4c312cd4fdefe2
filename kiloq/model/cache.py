"""Keys and values of past tokens for the PyTorch network: one buffer a layer, rows of different lengths.

Keys are stored rotated. A row's valid entries are its first `lengths[row]`; what lies behind them is left over from
padding and is overwritten by the next tokens, and never visible because attention is causal.

Shapes: B rows, S slots, G key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kiloq.model.config import ModelConfig


class KVCache:
    """A growing cache for `batch` sequences that are run together."""

    def __init__(self, config: ModelConfig, batch: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (2, batch, 0, config.num_kv_heads, config.head_dim)
        self._layers = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.lengths: list[int] = [0] * batch

    @property
    def capacity(self) -> int:
        """Slots a row, filled or not."""
        return self._layers[0].shape[2]

    def reserve(self, slots: int) -> None:
        """Makes room for `slots` tokens a row; doubles, so that growing token by token stays linear."""
        if slots <= self.capacity:
            return
        slots = max(slots, 2 * self.capacity, 64)
        for index, old in enumerate(self._layers):
            new = torch.zeros(2, old.shape[1], slots, *old.shape[3:], dtype=old.dtype, device=old.device)
            new[:, :, : old.shape[2]] = old
            self._layers[index] = new

    def store(self, layer: int, keys_BTGD: Tensor, values_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Writes T new tokens behind each row's length; returns keys and values [B, S, G, D] up to the longest row.

        Lengths move only with `advance`, after the last layer.
        """
        new_tokens = keys_BTGD.shape[1]
        buffer = self._layers[layer]
        end = max(self.lengths) + new_tokens
        if len(set(self.lengths)) == 1:
            buffer[0, :, end - new_tokens : end] = keys_BTGD
            buffer[1, :, end - new_tokens : end] = values_BTGD
        else:
            for row, length in enumerate(self.lengths):
                buffer[0, row, length : length + new_tokens] = keys_BTGD[row]
                buffer[1, row, length : length + new_tokens] = values_BTGD[row]
        return buffer[0, :, :end], buffer[1, :, :end]

    def advance(self, lengths: list[int]) -> None:
        """Counts `lengths[row]` more tokens as valid."""
        self.lengths = [old + new for old, new in zip(self.lengths, lengths, strict=True)]

    def clear(self) -> None:
        """Forgets every token and keeps the memory."""
        self.lengths = [0] * len(self.lengths)

    def part(self, begin: int, end: int) -> KVCache:
        """An independent copy of the tokens [begin, end), which all rows must have."""
        assert end <= min(self.lengths)
        copy = object.__new__(KVCache)
        copy._layers = [layer[:, :, begin:end].clone() for layer in self._layers]
        copy.lengths = [end - begin] * len(self.lengths)
        return copy

    def append(self, part: KVCache) -> None:
        """Puts the tokens of a part behind those of this cache, whose rows have one length."""
        begin, count = self.lengths[0], part.lengths[0]
        self.reserve(begin + count)
        for own, other in zip(self._layers, part._layers, strict=True):
            own[:, :, begin : begin + count] = other
        self.lengths = [begin + count] * len(self.lengths)

    def fork(self) -> KVCache:
        """An independent copy of what is valid."""
        twin = object.__new__(KVCache)
        filled = max(self.lengths)
        twin._layers = [layer[:, :, :filled].clone() for layer in self._layers]
        twin.lengths = list(self.lengths)
        return twin

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, G, D] of one layer, up to the longest row."""
        filled = max(self.lengths)
        return self._layers[index][0, :, :filled], self._layers[index][1, :, :filled]
