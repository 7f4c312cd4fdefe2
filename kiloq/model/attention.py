"""Causal attention over cached and new tokens, rows of different lengths, optional windows.

Three ways to the same numbers: the `flash-attn` package's variable-length kernels where it is installed and the
device and dtype allow, otherwise PyTorch's scaled_dot_product_attention, which picks its own flash kernel where the
device has one; with no mask at all where causality alone is enough, with a boolean mask where it is not. All of them
take the softmax in float32.

Shapes: B rows, T new tokens, S visible slots, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass
class Span:
    """Who sees whom in one forward pass: row b's new token t stands at slot `cached[b] + t`.

    Built once a pass and shared by all layers; masks are made once a window size.
    """

    cached: list[int]  # tokens of each row that are already in the cache
    new: list[int]  # valid new tokens of each row; the rest of T is padding on the right
    width: int  # T
    device: torch.device
    segments_BT: Tensor | None = None  # numbers of the documents in each row, which do not see each other; None: one
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """S: slots that the longest row spans."""
        return max(self.cached) + self.width

    def mask(self, window: int | None) -> Tensor | None:
        """Boolean [B or 1, 1, T, S], True where a key is visible; None where the kernel's own causality is enough."""
        if window is not None and window >= self.total:
            window = None
        if window not in self._masks:
            self._masks[window] = self._build(window)
        return self._masks[window]

    @property
    def causal_only(self) -> bool:
        """True when every row starts at slot 0, so that plain causality hides all that must be hidden."""
        return not any(self.cached) and self.segments_BT is None

    def _build(self, window: int | None) -> Tensor | None:
        if window is None and self.causal_only:
            return None
        cached = self.cached[:1] if len(set(self.cached)) == 1 else self.cached
        if window is None and len(cached) == 1 and self.width == 1 and self.segments_BT is None:
            return None
        slots_S = torch.arange(self.total, device=self.device)
        starts_B1 = torch.tensor(cached, device=self.device)[:, None]
        at_BT1 = (starts_B1 + torch.arange(self.width, device=self.device))[:, :, None]
        visible_BTS = slots_S <= at_BT1
        if window is not None:
            visible_BTS &= slots_S > at_BT1 - window
        if self.segments_BT is not None:
            visible_BTS = visible_BTS & (self.segments_BT[:, :, None] == self.segments_BT[:, None, :])
        return visible_BTS[:, None]


def attend(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, span: Span, window: int | None = None) -> Tensor:
    """Attention output [B, T, H, D]; rows of padding hold unspecified finite numbers."""
    if _flash_attn_fits(q_BTHD) and span.segments_BT is None:
        return _flash_attend(q_BTHD, k_BSGD, v_BSGD, span, window)
    mask = span.mask(window)
    causal = mask is None and span.causal_only and span.width > 1
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
    grouped = k.shape[1] != q.shape[1]
    return scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def _flash_attn_fits(q_BTHD: Tensor) -> bool:
    on_gpu = q_BTHD.is_cuda and q_BTHD.dtype in (torch.float16, torch.bfloat16) and q_BTHD.shape[-1] <= 256
    return on_gpu and flash_attn_installed()


def flash_attn_installed() -> bool:
    """Whether the optional `flash-attn` package can be imported."""
    return importlib.util.find_spec("flash_attn") is not None


def _flash_attend(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, span: Span, window: int | None) -> Tensor:
    """The variable-length kernel: rows are laid end to end without their padding, so no mask and no wasted work."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    ends = [old + new for old, new in zip(span.cached, span.new, strict=True)]
    packed_q = torch.cat([q_BTHD[row, :new] for row, new in enumerate(span.new)])
    packed_k = torch.cat([k_BSGD[row, :end] for row, end in enumerate(ends)])
    packed_v = torch.cat([v_BSGD[row, :end] for row, end in enumerate(ends)])
    packed = flash_attn_varlen_func(
        packed_q, packed_k, packed_v,
        _offsets(span.new, q_BTHD.device), _offsets(ends, q_BTHD.device), max(span.new), max(ends),
        causal=True, window_size=(-1, -1) if window is None else (window - 1, 0),
    )  # fmt: skip
    out_BTHD = torch.zeros_like(q_BTHD)
    for row, rows in enumerate(packed.split(span.new)):
        out_BTHD[row, : span.new[row]] = rows
    return out_BTHD


def _offsets(lengths: list[int], device: torch.device) -> Tensor:
    ends = torch.tensor([0, *lengths], dtype=torch.int32, device=device)
    return ends.cumsum(0, dtype=torch.int32)


def describe(device: str = "cpu") -> str:
    """Which attention kernel a forward pass on `device` takes; for people."""
    if device.startswith("cuda") and flash_attn_installed():
        return "flash-attn package, variable length (bf16/fp16); torch SDPA for fp32"
    kind = "its flash or memory-efficient kernel" if device.startswith("cuda") else "its CPU flash kernel"
    return f"torch SDPA, {kind}; float32 softmax"
