"""The shape of a decoder: one frozen dataclass for Qwen, Qwen1.5/2/2.5, dense Qwen3 and LLaMA-shaped models.

The defaults are the seed's architecture (Qwen technical report, section 2.3): untied embeddings, as many key/value
heads as query heads, bias on QKV only, rotary positions over the whole head, RMSNorm, SwiGLU. What the others do
differently is a field. No torch here: readers, writers and the native engine share this file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kiloq.core.errors import FormatError
from kiloq.model.rope_scaling import RopeScaling

# No published dense model comes near these; a file that claims more is damaged or hostile.
MAX_LAYERS = 1_000
MAX_WIDTH = 1 << 20
MAX_VOCABULARY = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of one decoder. Widths are in elements, positions in tokens."""

    vocab_size: int  # rows of the embedding, padding rows included
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int  # the real width of the SwiGLU layer (half of Qwen-1's `intermediate_size`)
    num_kv_heads: int = 0  # 0: as many as query heads (no grouping)
    head_dim: int = 0  # 0: hidden_size / num_heads
    rotary_dim: int = 0  # leading dimensions of each head that are rotated; 0: all of them
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None  # a fixed stretch of rotary positions
    norm_eps: float = 1e-6
    train_length: int = 2048  # L of dynamic NTK and LogN: the length of the last training stage
    max_length: int = 0  # longest context that the model is advertised for; 0: train_length
    tied_embeddings: bool = False
    qkv_bias: bool = True
    output_bias: bool = False  # bias of the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm on every query and key head before rotary (Qwen3)
    dynamic_ntk: bool = False
    logn: bool = False
    windows: tuple[int | None, ...] = ()  # tokens visible per layer, itself included; None: all; (): all layers all
    init_std: float = 0.02

    def __post_init__(self) -> None:
        fill = object.__setattr__  # frozen: derived defaults are filled in once, here
        limits = {"vocab_size": MAX_VOCABULARY, "hidden_size": MAX_WIDTH, "num_layers": MAX_LAYERS,
                  "num_heads": MAX_WIDTH, "ffn_size": MAX_WIDTH}  # fmt: skip
        for name, limit in limits.items():
            _check_int(name, getattr(self, name), 1, limit)
        for name, limit in {"num_kv_heads": MAX_WIDTH, "head_dim": 1 << 16, "rotary_dim": 1 << 16}.items():
            _check_int(name, getattr(self, name), 0, limit)
        for name in ("train_length", "max_length"):
            _check_int(name, getattr(self, name), 0 if name == "max_length" else 1, 1 << 31)
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise FormatError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: "
                    "give head_dim explicitly"
                )
            fill(self, "head_dim", self.hidden_size // self.num_heads)
        fill(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        fill(self, "rotary_dim", self.rotary_dim or self.head_dim)
        fill(self, "max_length", self.max_length or self.train_length)
        fill(self, "windows", tuple(self.windows))
        if self.num_heads % self.num_kv_heads:
            raise FormatError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: "
                "every key/value head must serve the same number of query heads"
            )
        if self.rotary_dim > self.head_dim or self.rotary_dim % 2:
            raise FormatError(f"rotary_dim {self.rotary_dim} must be even and at most head_dim {self.head_dim}")
        if self.windows and len(self.windows) != self.num_layers:
            raise FormatError(f"windows has {len(self.windows)} entries for {self.num_layers} layers: give one a layer")
        for window in self.windows:
            if window is not None:
                _check_int("windows", window, 1, 1 << 31)
        if not 0 < self.norm_eps < 1:
            raise FormatError(f"norm_eps {self.norm_eps} must be between 0 and 1")
        if not 1 < self.rope_base < 1e12:
            raise FormatError(f"rope_base {self.rope_base} must be between 1 and 1e12")
        if self.rope_scaling is not None:
            if self.dynamic_ntk:
                raise FormatError(f"dynamic NTK and {self.rope_scaling.kind} rope scaling exclude each other: keep one")
            self.rope_scaling.factors(self.rotary_dim, self.rope_base)  # raises where they do not fit

    def window(self, layer: int) -> int | None:
        """Tokens that layer `layer` may look back to, itself included; None: all of them."""
        return self.windows[layer] if self.windows else None

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise FormatError(f"{name} is {value!r}: it must be a whole number from {low} to {high}")


def _qwen(layers: int, width: int, heads: int, ffn: int, vocab: int, **more: Any) -> ModelConfig:
    defaults: dict[str, Any] = {"train_length": 8192, "max_length": 32768, "dynamic_ntk": True, "logn": True}
    return ModelConfig(num_layers=layers, hidden_size=width, num_heads=heads, ffn_size=ffn, vocab_size=vocab,
                       head_dim=128, **(defaults | more))  # fmt: skip


# The four sizes of the series: Qwen technical report, Table 1, and the published config.json files.
SERIES: dict[str, ModelConfig] = {
    "qwen-1.8b": _qwen(24, 2048, 16, 5504, 151_936),
    "qwen-7b": _qwen(32, 4096, 32, 11008, 151_936),
    "qwen-14b": _qwen(40, 5120, 40, 13696, 152_064, train_length=2048, max_length=8192),
    "qwen-72b": _qwen(80, 8192, 64, 24576, 152_064, train_length=32768, rope_base=1e6, dynamic_ntk=False, logn=False),
}
