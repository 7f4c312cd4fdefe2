"""Attention masks and the optional flash-attn path, which is run here with a stand-in for the GPU package."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from kiloq.model import attention
from kiloq.model.attention import Span, attend


def dense_attention(q, k, v, cached, new, window):
    """Loops over rows, heads and tokens in float64; padding rows stay zero."""
    out = torch.zeros_like(q, dtype=torch.float64)
    shared_by = q.shape[2] // k.shape[2]
    for row in range(q.shape[0]):
        for head in range(q.shape[2]):
            for t in range(new[row]):
                end = cached[row] + t + 1
                first = 0 if window is None else max(0, end - window)
                keys = k[row, first:end, head // shared_by].double()
                shares = (keys @ q[row, t, head].double() / q.shape[-1] ** 0.5).softmax(0)
                out[row, t, head] = shares @ v[row, first:end, head // shared_by].double()
    return out


CASES = [
    pytest.param([0, 0], [6, 6], None, id="causal"),
    pytest.param([0, 0], [6, 3], None, id="padded"),
    pytest.param([4, 4], [5, 5], None, id="chunk"),
    pytest.param([7, 2], [1, 1], None, id="ragged-step"),
    pytest.param([7, 7], [1, 1], None, id="even-step"),
    pytest.param([5, 0], [2, 4], 3, id="ragged-window"),
    pytest.param([9, 9], [1, 1], 4, id="window-step"),
    pytest.param([0, 0], [8, 8], 1, id="window-of-one"),
]


def _inputs(cached: list[int], new: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width, total = max(new), max(cached) + max(new)
    q = torch.randn(2, width, 4, 8, generator=generator)
    k, v = (torch.randn(2, total, 2, 8, generator=generator) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize(("cached", "new", "window"), CASES)
def test_against_loops(cached, new, window) -> None:
    q, k, v = _inputs(cached, new)
    got = attend(q, k, v, Span(cached, new, max(new), q.device), window)
    want = dense_attention(q, k, v, cached, new, window)
    assert got.isfinite().all()
    for row, length in enumerate(new):
        torch.testing.assert_close(got[row, :length].double(), want[row, :length], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("cached", "new", "window"), CASES)
def test_flash_attn_gets_packed_rows(monkeypatch: pytest.MonkeyPatch, cached, new, window) -> None:
    """A stand-in with flash_attn_varlen_func's documented contract: causal aligned to the end, window to the left."""

    def varlen(q, k, v, offsets_q, offsets_k, longest_q, longest_k, *, causal, window_size):
        assert causal and offsets_q.dtype == offsets_k.dtype == torch.int32
        out = torch.zeros_like(q)
        for row in range(len(offsets_q) - 1):
            a, b = offsets_q[row : row + 2].tolist()
            c, d = offsets_k[row : row + 2].tolist()
            assert b - a <= longest_q and d - c <= longest_k
            left = None if window_size[0] < 0 else window_size[0] + 1
            args = [[(d - c) - (b - a)], [b - a], left]
            out[a:b] = dense_attention(q[None, a:b], k[None, c:d], v[None, c:d], *args)[0].float()
        return out

    fake = types.ModuleType("flash_attn")
    fake.flash_attn_varlen_func = varlen
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    monkeypatch.setattr(attention, "_flash_attn_fits", lambda q: True)
    q, k, v = _inputs(cached, new)
    got = attend(q, k, v, Span(cached, new, max(new), q.device), window)
    want = dense_attention(q, k, v, cached, new, window)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


def test_cpu_never_takes_the_gpu_package_and_says_so() -> None:
    assert not attention._flash_attn_fits(torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16))
    assert "SDPA" in attention.describe("cpu")
