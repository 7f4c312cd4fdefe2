"""The decoder in PyTorch, readable top to bottom: the reference that everything else is checked against.

One class runs Qwen (2023), Qwen1.5/2/2.5, dense Qwen3 and LLaMA-shaped weights; `ModelConfig` says what differs.
Choices that follow the original exactly: RMSNorm is normalised in float32, cast back and only then weighted; rotary
turns in float32; LogN scales queries after rotary; logits leave as float32. Choices of ours: q, k, v and gate, up
are separate matrices (the Qwen2 layout, so files map onto parameters without copies); dynamic NTK, LogN and windows
are arguments of the pass, right for every row, with or without a cache.

Source: Qwen technical report, section 2.3; checked against the released code's outputs.

Shapes: B rows, T new tokens, C hidden width, H query heads, G key/value heads, D head size, F feed-forward width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiloq.model import fused
from kiloq.model.attention import Span, attend
from kiloq.model.cache import KVCache
from kiloq.model.config import ModelConfig
from kiloq.model.ntk import ntk_alpha
from kiloq.model.rope import inverse_frequencies, logn_scale, rotary_tables, rotate

IGNORE = -100  # label of a token that carries no loss

Attend = Callable[[Tensor, Tensor, Tensor, Span, int | None], Tensor]  # kiloq.model.attention.attend


@dataclass
class Context:
    """What one forward pass computes once and every layer reads."""

    span: Span
    cos_BT1R: Tensor
    sin_BT1R: Tensor
    logn_BT11: Tensor | None
    windows: tuple[int | None, ...]
    cache: KVCache | None
    attend: Attend = attend


class Linear(nn.Linear):
    """nn.Linear that draws no weights of its own: they come from a file, or from `init_weights`.

    On the meta device PyTorch's own drawing would import its compiler, two seconds of every start.
    """

    def reset_parameters(self) -> None:
        """Leaves the memory as it is."""


class Embedding(nn.Embedding):
    """nn.Embedding without weights of its own; see Linear."""

    def reset_parameters(self) -> None:
        """Leaves the memory as it is."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`; of a float32 `x`, in a pass that learns under autocast, autocast's dtype."""
        if x.dtype == torch.float32 and fused.learns(x, self):
            return fused.rms_norm(x, self.weight, self.eps)
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def project(x: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
    """What each of `modules` makes of `x`."""
    if fused.learns(x, *modules):
        return fused.projections(x, *modules)
    return tuple(module(x) for module in modules)


class Attention(nn.Module):
    """Multi-head attention; key/value heads may be fewer than query heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c, self.layer = config, layer
        self.head_dim = c.head_dim
        self.q_proj = Linear(c.hidden_size, c.num_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.output_bias)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None

    def forward(self, x_BTC: Tensor, context: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]; stores keys and values in the cache if there is one."""
        q_BTHD, k_BTGD, v_BTGD = (
            x.view(*x.shape[:-1], -1, self.head_dim) for x in project(x_BTC, self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTGD = self.q_norm(q_BTHD), self.k_norm(k_BTGD)
        q_BTHD = rotate(q_BTHD, context.cos_BT1R, context.sin_BT1R)
        k_BTGD = rotate(k_BTGD, context.cos_BT1R, context.sin_BT1R)
        if context.logn_BT11 is not None:
            q_BTHD = q_BTHD * context.logn_BT11.to(q_BTHD.dtype)
        if context.cache is not None:
            k_BTGD, v_BTGD = (x.to(q_BTHD.dtype) for x in context.cache.store(self.layer, k_BTGD, v_BTGD))
        out_BTHD = context.attend(q_BTHD, k_BTGD, v_BTGD, context.span, context.windows[self.layer])
        (out_BTC,) = project(out_BTHD.flatten(-2), self.o_proj)
        return out_BTC


class SwiGLU(nn.Module):
    """down( silu(gate(x)) * up(x) )."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config
        self.gate_proj = Linear(c.hidden_size, c.ffn_size, bias=c.mlp_bias)
        self.up_proj = Linear(c.hidden_size, c.ffn_size, bias=c.mlp_bias)
        self.down_proj = Linear(c.ffn_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        gate_BTF, up_BTF = project(x_BTC, self.gate_proj, self.up_proj)
        inner_BTF = fused.gated(gate_BTF, up_BTF) if fused.learns(gate_BTF) else F.silu(gate_BTF) * up_BTF
        (out_BTC,) = project(inner_BTF, self.down_proj)
        return out_BTC


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to what came in."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x_BTC: Tensor, context: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), context)
        return x_BTC + self.feed_forward(x_BTC)

    def feed_forward(self, x_BTC: Tensor) -> Tensor:
        """What the second half adds, [B, T, C]."""
        out_BTC: Tensor = self.mlp(self.post_attention_layernorm(x_BTC))
        return out_BTC


def run_block(block: nn.Module, x_BTC: Tensor, context: Context) -> Tensor:
    """One layer, as it is."""
    out_BTC: Tensor = block(x_BTC, context)
    return out_BTC


class Network(nn.Module):
    """Token ids to logits. Parameter names are those of Hugging Face's Qwen2 without the leading `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = None if config.tied_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.run_block = run_block  # training puts one here that keeps fewer activations
        self.attend: Attend = attend  # and here one that asks other processes for keys

    def forward(self, ids_BT: Tensor, *, last_only: bool = False, **options: object) -> Tensor:
        """Logits, float32 [B, T, V]; [B, 1, V] of each row's last valid token with `last_only`.

        The options are those of `hidden`.
        """
        x_BTC = self.hidden(ids_BT, **options)  # type: ignore[arg-type]
        if last_only:
            lengths = options.get("lengths") or [ids_BT.shape[1]] * ids_BT.shape[0]
            last_B = torch.tensor(lengths, device=x_BTC.device) - 1
            x_BTC = x_BTC[torch.arange(len(x_BTC), device=x_BTC.device), last_B][:, None]
        return self.head(x_BTC)

    def head(self, x_BTC: Tensor) -> Tensor:
        """Final hidden states [B, T, C] -> logits, float32 [B, T, V]."""
        matrix_VC = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(x_BTC, matrix_VC).float()

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        cache: KVCache | None = None,
        lengths: list[int] | None = None,
        start: list[int] | None = None,
        alpha: list[float] | None = None,
        logn: bool | None = None,
        windows: tuple[int | None, ...] | None = None,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states behind the final norm, [B, T, C].

        ids_BT: token ids; where other processes have the first layers, what those made of them: [B, T, C].

        cache: past tokens of the same rows; the T tokens continue them and are added.
        lengths: valid tokens of each row, the rest is padding on the right; default T.
        start: position of each row's very first token; default 0 (left padding of the original: the pad count).
        alpha: dynamic-NTK stretch of each row, one number for all its tokens, cached ones included; default: 1 in
            training mode or without NTK in the config, else the alpha of the row's length after this pass.
        logn: LogN scaling of queries; default: as the config says, never in training mode.
        windows: visible tokens a layer (None: all); default: the config's.
        segments_BT: the document of each token, int [B, T]; tokens see their own document alone. Without a cache.
        positions_BT: of each token, [B or 1, T]; default: one after the other.
        """
        rows, width = ids_BT.shape[:2]
        cached = list(cache.lengths) if cache is not None else [0] * rows
        new = lengths or [width] * rows
        span = Span(cached, new, width, ids_BT.device, segments_BT)
        if positions_BT is None:
            first_B1 = torch.tensor(cached, device=ids_BT.device)[:, None]
            if start is not None:
                first_B1 = first_B1 + torch.tensor(start, device=ids_BT.device)[:, None]
            positions_BT = first_B1 + torch.arange(width, device=ids_BT.device)
        context = self._context(positions_BT, span, alpha, logn, windows)
        context.cache, context.attend = cache, self.attend
        if cache is not None:
            cache.reserve(span.total)
        x_BTC = self.embed_tokens(ids_BT)
        if torch.is_autocast_enabled(x_BTC.device.type):
            x_BTC = x_BTC.float()  # the sum over layers stays wide, also where the table has been gathered in bf16
        for block in self.layers:
            x_BTC = self.run_block(block, x_BTC, context)
        if cache is not None:
            cache.advance(new)
        out_BTC: Tensor = self.norm(x_BTC)
        return out_BTC

    def _context(
        self,
        positions_BT: Tensor,
        span: Span,
        alpha: list[float] | None,
        logn: bool | None,
        windows: tuple[int | None, ...] | None,
    ) -> Context:
        c = self.config
        stretch = not self.training
        if alpha is None:
            totals = [old + new for old, new in zip(span.cached, span.new, strict=True)]
            alpha = [ntk_alpha(n, c.train_length) if stretch and c.dynamic_ntk else 1.0 for n in totals]
        if len(set(alpha)) == 1:  # one row of tables serves the batch
            alpha = alpha[:1]
        alpha_B = torch.tensor(alpha, dtype=torch.float64, device=positions_BT.device)
        inverse_BR = inverse_frequencies(c.rotary_dim, c.rope_base, alpha_B, c.rope_scaling)
        magnitude = c.rope_scaling.attention_factor if c.rope_scaling else 1.0
        cos_BT1R, sin_BT1R = rotary_tables(positions_BT, inverse_BR, magnitude)
        scaled = stretch and c.logn if logn is None else logn
        logn_BT11 = logn_scale(positions_BT, c.train_length)[:, :, None, None] if scaled else None
        windows = windows or c.windows or (None,) * c.num_layers
        return Context(span, cos_BT1R, sin_BT1R, logn_BT11, windows, None)


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross entropy of each token given those before it, in float32; labels equal to IGNORE carry no loss."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten(), ignore_index=IGNORE)
