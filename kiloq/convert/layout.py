"""The canonical tensors of a decoder, and how a file's tensors stand for them.

Every reader yields and every writer takes the names of the PyTorch network's state dict (Hugging Face's Qwen2 names
without the leading "model."), weights as [out, in], rotary order NeoX. An `Entry` says where a canonical tensor lies:
a whole stored tensor, a range of its rows (fused projections), or rows that llama.cpp's converter has permuted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from kiloq.model.config import ModelConfig

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


def canonical_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model, in forward order; `lm_head.weight` only where it is not tied."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    for layer in range(c.num_layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in layer_shapes(c).items()}
    shapes["norm.weight"] = (c.hidden_size,)
    if not c.tied_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return shapes


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of one layer."""
    c = config
    query, key = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    projections = {
        "self_attn.q_proj": (query, c.hidden_size, c.qkv_bias),
        "self_attn.k_proj": (key, c.hidden_size, c.qkv_bias),
        "self_attn.v_proj": (key, c.hidden_size, c.qkv_bias),
        "self_attn.o_proj": (c.hidden_size, query, c.output_bias),
        "mlp.gate_proj": (c.ffn_size, c.hidden_size, c.mlp_bias),
        "mlp.up_proj": (c.ffn_size, c.hidden_size, c.mlp_bias),
        "mlp.down_proj": (c.hidden_size, c.ffn_size, c.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (c.hidden_size,)}
    for name, (rows, columns, bias) in projections.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)
    if c.qk_norm:
        shapes |= {f"self_attn.{which}_norm.weight": (c.head_dim,) for which in "qk"}
    shapes["post_attention_layernorm.weight"] = (c.hidden_size,)
    return shapes


def llama_rows(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """NeoX order (i beside i + d/2) -> llama.cpp's order for arch `llama` (pairs side by side), per head."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def neox_rows(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The inverse of `llama_rows`."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
