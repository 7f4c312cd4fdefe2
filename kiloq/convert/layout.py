"""The canonical tensors of a decoder, and how a file's tensors stand for them.

Every reader yields and every writer takes the names of the PyTorch network's state dict (Hugging Face's Qwen2 names
without the leading "model."), weights as [out, in], rotary order NeoX. An `Entry` says where a canonical tensor lies:
a whole stored tensor, a range of its rows (fused projections), or rows that llama.cpp's converter has permuted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Buffers that old checkpoints carry and that are computed, never loaded.
IGNORED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.masked_bias|attn\.bias)$")


@dataclass(frozen=True)
class Entry:
    """Where a canonical tensor lies in a file."""

    stored: str
    stored_shape: tuple[int, ...]
    rows: tuple[int, int] | None = None  # [begin, end) of the stored rows; None: all
    permuted_heads: int = 0  # undo llama.cpp's row permutation of so many heads; 0: none

    @property
    def shape(self) -> tuple[int, ...]:
        """Canonical shape."""
        if self.rows is None:
            return self.stored_shape
        return (self.rows[1] - self.rows[0], *self.stored_shape[1:])

    def read(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The canonical tensor from the stored one: a view unless rows have to be reordered."""
        part = stored if self.rows is None else stored[self.rows[0] : self.rows[1]]
        return neox_rows(part, self.permuted_heads) if self.permuted_heads else part

    def stored_rows(self, begin: int, end: int) -> slice | npt.NDArray[np.int64]:
        """Where rows [begin, end) of the canonical tensor lie among the stored ones; a slice where they are in order."""
        if self.permuted_heads:
            return self.read(np.arange(self.stored_shape[0]))[begin:end]
        first = self.rows[0] if self.rows else 0
        return slice(first + begin, first + end)


def llama_rows(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """NeoX order (i beside i + d/2) -> llama.cpp's order for arch `llama` (pairs side by side), per head."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def neox_rows(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The inverse of `llama_rows`."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
