"""Ring attention: the tokens of a sequence on several processes, their keys and values passed around (Liu et al. 2023).

Each process holds two stretches of every sequence, one from its front and the mirrored one from its back, so that all
have the same work under a causal mask. Keys and values travel once around the ring in the forward pass; in the
backward pass they travel again and carry their gradients home. What every round adds is joined by the logarithm of the
sum of exponentials, in float32, as flash attention joins its blocks (Dao et al. 2022). PyTorch's own context
parallelism does not run on CPUs.

Shapes: B rows, T tokens of this process, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kiloq.model.attention import Span


def own_positions(tokens: int, at: int, ranks: int) -> Tensor:
    """Positions of the tokens that process `at` of `ranks` holds, int64 [tokens / ranks], out of `tokens`."""
    width = tokens // (2 * ranks)
    front = torch.arange(at * width, (at + 1) * width)
    back = torch.arange((2 * ranks - 1 - at) * width, (2 * ranks - at) * width)
    return torch.cat([front, back])


class Ring:
    """Attention over the processes of a group, in the place of kiloq.model.attention.attend."""

    def __init__(self, group: Any, at: int, ranks: int) -> None:
        self._group, self._at, self._ranks = group, at, ranks

    def __call__(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, span: Span, window: int | None) -> Tensor:
        """[B, T, H, D], causal over the whole sequence."""
        groups = q_BTHD.shape[2] // k_BTGD.shape[2]
        k_BTHD, v_BTHD = (x.repeat_interleave(groups, 2) for x in (k_BTGD, v_BTGD))
        heads_first = (x.transpose(1, 2).contiguous() for x in (q_BTHD, k_BTHD, v_BTHD))
        out_BHTD: Tensor = _RingAttention.apply(*heads_first, self._group, self._at, self._ranks)  # type: ignore[no-untyped-call]
        return out_BHTD.transpose(1, 2)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Any, at: int, ranks: int) -> Tensor:
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        log_BHT = torch.full(q.shape[:3], -torch.inf, dtype=torch.float32, device=q.device)
        travelling = torch.stack([k, v])
        for turn in range(ranks):
            coming = _passed_on(travelling, group) if turn < ranks - 1 else None
            for ours, theirs, causal in _pairs(at, (at - turn) % ranks, q.shape[2]):
                part, log_part = _block(q[:, :, ours], travelling[:, :, :, theirs], causal)
                _join(out[:, :, ours], log_BHT[:, :, ours], part, log_part)
            if coming is not None:
                travelling = coming()
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, log_BHT)
        ctx.ring = group, at, ranks
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_BHT = ctx.saved_tensors
        group, at, ranks = ctx.ring
        grad_q = torch.zeros_like(q, dtype=torch.float32)
        travelling = torch.stack([k, v])
        carried = torch.zeros_like(travelling, dtype=torch.float32)  # gradients of what travels
        for turn in range(ranks):
            coming = _passed_on(travelling, group) if turn < ranks - 1 else None
            for ours, theirs, causal in _pairs(at, (at - turn) % ranks, q.shape[2]):
                some = [x[:, :, ours] for x in (grad, q, out, log_BHT)]
                found = _block_backward(some, travelling[:, :, :, theirs], causal)
                grad_q[:, :, ours] += found[0]
                carried[0, :, :, theirs] += found[1]
                carried[1, :, :, theirs] += found[2]
            if coming is not None:
                travelling = coming()
            carried = _passed_on(carried, group)()  # after the last turn they are at home
        return grad_q.to(q.dtype), carried[0].to(k.dtype), carried[1].to(v.dtype), None, None, None


def _pairs(at: int, other: int, tokens: int) -> list[tuple[slice, slice, bool]]:
    """Which of our tokens see which of process `other`'s, and whether causally: (ours, theirs, causal)."""
    front, back, whole = slice(0, tokens // 2), slice(tokens // 2, tokens), slice(0, tokens)
    if other == at:
        return [(front, front, True), (back, front, False), (back, back, True)]
    return [(whole, front, False)] if other < at else [(back, whole, False)]


def _join(out: Tensor, log_BHT: Tensor, part: Tensor, log_part_BHT: Tensor) -> None:
    """Add what one more block of keys gives, in place."""
    joined_BHT = torch.logaddexp(log_BHT, log_part_BHT)
    out.mul_((log_BHT - joined_BHT).exp()[..., None])
    out.add_(part * (log_part_BHT - joined_BHT).exp()[..., None])
    log_BHT.copy_(joined_BHT)


def _passed_on(x: Tensor, group: Any) -> Any:
    """Send `x` to the next process of the ring while the one before sends its own; call what is returned to have it."""
    ranks, at = dist.get_world_size(group), dist.get_rank(group)
    peers = (dist.get_global_rank(group, (at + step) % ranks) for step in (1, -1))
    coming, x = torch.empty_like(x), x.contiguous()
    orders = [dist.P2POp(kind, tensor, peer, group)
              for kind, tensor, peer in zip((dist.isend, dist.irecv), (x, coming), peers, strict=True)]  # fmt: skip
    works = dist.batch_isend_irecv(orders)

    def arrived() -> Tensor:
        for work in works:
            work.wait()
        return coming

    return arrived


def _block(q: Tensor, keys_and_values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of one block and the logarithm of its sums of exponentials [B, H, T]."""
    k, v = keys_and_values
    if q.is_cuda:
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return found[0], found[1]


def _block_backward(ours: Sequence[Tensor], keys_and_values: Tensor, causal: bool) -> tuple[Tensor, ...]:
    """Gradients of q, k and v. `ours`: gradient of the output, q, output and sums, the last two over all blocks."""
    grad, q, out, log_BHT = ours
    k, v = keys_and_values
    common = (grad.contiguous(), q, k, v, out, log_BHT.contiguous())
    if q.is_cuda:
        none = torch.zeros((), dtype=torch.int64, device=q.device)  # no dropout, so no state of a generator
        lengths = (None, None, q.shape[2], k.shape[2])
        found = torch.ops.aten._scaled_dot_product_flash_attention_backward(*common, *lengths, 0.0, causal, none, none)
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*common, 0.0, causal)
    gradients: tuple[Tensor, ...] = tuple(found)
    return gradients
