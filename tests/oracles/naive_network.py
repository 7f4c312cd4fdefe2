"""The decoder once more, in float64 NumPy with loops over tokens and heads: slow, obvious, shared with no other code."""

from __future__ import annotations

import math

import numpy as np

from kiloq.model.config import ModelConfig


def naive_logits(
    config: ModelConfig, weights: dict[str, np.ndarray], ids: list[int], *, alpha: float = 1.0, logn: bool = False
) -> np.ndarray:
    """Logits [T, V] of one sequence; windows as the config says."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = np.stack([w["embed_tokens.weight"][token] for token in ids])
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        normed = _norm(x, w[prefix + "input_layernorm.weight"], config.norm_eps)
        x = x + _attention(config, w, prefix + "self_attn.", normed, config.window(layer), alpha, logn)
        normed = _norm(x, w[prefix + "post_attention_layernorm.weight"], config.norm_eps)
        gate = _linear(w, prefix + "mlp.gate_proj", normed)
        up = _linear(w, prefix + "mlp.up_proj", normed)
        x = x + _linear(w, prefix + "mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    head = w["embed_tokens.weight" if config.tied_embeddings else "lm_head.weight"]
    return _norm(x, w["norm.weight"], config.norm_eps) @ head.T


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)


def _rotate(vector: np.ndarray, position: int, config: ModelConfig, alpha: float) -> np.ndarray:
    turned, half = vector.copy(), config.rotary_dim // 2
    base = config.rope_base * alpha ** (config.rotary_dim / (config.rotary_dim - 2))
    size = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    for i in range(half):
        angle = position * _scaled(config, base ** (-2 * i / config.rotary_dim), i)
        a, b = vector[i] * size, vector[i + half] * size
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def _scaled(config: ModelConfig, frequency: float, pair: int) -> float:
    """The frequency after rope scaling, rule by rule as its paper or model card puts it."""
    s = config.rope_scaling
    if s is None:
        return frequency
    if s.kind == "factors":
        return frequency / s.table[pair]
    if s.kind == "linear":
        return frequency / s.factor
    wavelength = 2 * math.pi / frequency
    if s.kind == "llama3":
        if wavelength < s.original_length / s.high_freq_factor:
            return frequency
        if wavelength > s.original_length / s.low_freq_factor:
            return frequency / s.factor
        smooth = (s.original_length / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        return (1 - smooth) * frequency / s.factor + smooth * frequency
    # YaRN: find the pairs that turn beta times over the original length, and mix between them.
    dim, base = config.rotary_dim, config.rope_base
    begin, end = (
        dim / 2 * math.log(s.original_length / (2 * math.pi * beta), base) for beta in (s.beta_fast, s.beta_slow)
    )
    if s.truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, dim - 1)
    if begin == end:
        end += 0.001
    ramp = min(1.0, max(0.0, (pair - begin) / (end - begin)))
    return ramp * frequency / s.factor + (1 - ramp) * frequency


def _attention(
    config: ModelConfig,
    w: dict[str, np.ndarray],
    prefix: str,
    x: np.ndarray,
    window: int | None,
    alpha: float,
    logn: bool,
) -> np.ndarray:
    tokens, size = len(x), config.head_dim
    q, k, v = (_linear(w, prefix + part, x).reshape(tokens, -1, size) for part in ("q_proj", "k_proj", "v_proj"))
    if config.qk_norm:
        q = _norm(q, w[prefix + "q_norm.weight"], config.norm_eps)
        k = _norm(k, w[prefix + "k_norm.weight"], config.norm_eps)
    out = np.zeros_like(q)
    shared_by = config.num_heads // config.num_kv_heads
    for head in range(config.num_heads):
        keys = np.stack([_rotate(k[t, head // shared_by], t, config, alpha) for t in range(tokens)])
        for t in range(tokens):
            query = _rotate(q[t, head], t, config, alpha)
            if logn and t + 1 > config.train_length:
                query = query * math.log(t + 1) / math.log(config.train_length)
            first = 0 if window is None else max(0, t + 1 - window)
            scores = keys[first : t + 1] @ query / math.sqrt(size)
            shares = np.exp(scores - scores.max())
            out[t, head] = shares / shares.sum() @ v[first : t + 1, head // shared_by]
    return _linear(w, prefix + "o_proj", out.reshape(tokens, -1))
