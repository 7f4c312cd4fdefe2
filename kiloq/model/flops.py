"""What a model costs, by formula: parameters, floating-point operations, bytes. No torch: planners and `show` use it.

A multiply-add counts as two operations; norms, rotary, activations and softmax are left out, as is usual (they are
below 1 % at the sizes of the series). Source: PaLM paper (arXiv 2204.02311), appendix B, with attention counted over
the tokens that are really visible.
"""

from __future__ import annotations

import math

from kiloq.model.config import ModelConfig
from kiloq.model.shapes import tensor_shapes

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}  # of one element


def parameter_count(config: ModelConfig) -> int:
    """All parameters; a tied embedding counts once."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def forward_flops(config: ModelConfig, new_tokens: int, cached_tokens: int = 0, logits: int | None = None) -> int:
    """Operations of one sequence's forward pass: matrix products, and attention over the visible tokens only.

    logits: positions whose logits are computed; default all new ones.
    """
    c = config
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    per_layer = c.hidden_size * (2 * q + 2 * kv) + 3 * c.hidden_size * c.ffn_size
    products = new_tokens * c.num_layers * per_layer
    head = (new_tokens if logits is None else logits) * c.hidden_size * c.vocab_size
    attention = sum(2 * q * _visible(new_tokens, cached_tokens, c.window(layer)) for layer in range(c.num_layers))
    return 2 * (products + head + attention)


def _visible(new: int, cached: int, window: int | None) -> int:
    """Pairs of a new token and a token it may look at."""
    if window is None:
        return new * cached + new * (new + 1) // 2
    return sum(min(cached + i + 1, window) for i in range(new))


def training_flops(config: ModelConfig, sequence: int) -> int:
    """Forward and backward over one sequence: the backward pass costs twice the forward one."""
    return 3 * forward_flops(config, sequence)


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all parameters in `dtype` (a key of BYTES)."""
    return int(parameter_count(config) * BYTES[dtype])


def cache_bytes(config: ModelConfig, tokens: int, dtype: str) -> int:
    """Bytes of keys and values of one sequence of `tokens` tokens."""
    return int(2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * BYTES[dtype])


def adamw_bytes(config: ModelConfig) -> int:
    """Weights, gradients and both AdamW moments in float32; activations come on top."""
    return 4 * weight_bytes(config, "fp32")
