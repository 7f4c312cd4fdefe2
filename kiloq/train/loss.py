"""Cross entropy over a large vocabulary without its logits: chunk by chunk, the gradient computed on the way.

Logits of all tokens would be the largest tensor of training (2,048 x 151,936 x 4 bytes = 1.2 GB a sequence, and as
much for their gradient). Here the forward pass makes the logits of `chunk` tokens, their loss and their gradient,
turns that into gradients of the hidden states and of the matrix, and forgets it. The backward pass only scales.
The gradient takes the place of the logits, block by block while a CPU's caches have them.
Sources: Liger kernel (Hsu et al. 2024), for the order of the work; PaLM (Chowdhery et al. 2022), section 5: z-loss.

Shapes: N tokens, C hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kiloq.model.network import IGNORE
from kiloq.train.parallel.vocabulary import VocabularyPart

BLOCK_ELEMENTS = (
    1 << 19
)  # logits in float32: 2 MB, half of the second-level caches of two cores. Measured: 10 to 40 rows alike
PRODUCT_ELEMENTS = 1 << 23  # of the matrix' gradient: 16 MB in bf16, which the allocator gives again. Ours


def chunked_cross_entropy(
    x_NC: Tensor,
    matrix_VC: Tensor,
    labels_N: Tensor,
    chunk: int,
    z_loss: float = 0.0,
    part: VocabularyPart | None = None,
) -> Tensor:
    """The sum of the losses of all tokens (float32 scalar), those labelled IGNORE left out.

    Matrix products run in the dtype of autocast where it is on; softmax and sums in float32. z_loss: weight of the
    square of log(sum of exp(logits)), added to each token's loss. part: where `matrix_VC` has some rows of the
    vocabulary and other processes the rest; the gradient of `x_NC` is then this process' part of a sum.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(x_NC, matrix_VC, labels_N, chunk, z_loss, part)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, matrix_VC: Tensor, labels_N: Tensor, chunk: int, z_loss: float, part: Any
    ) -> Tensor:
        kind = x_NC.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_NC.dtype
        narrow_VC = matrix_VC.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        grad_x_NC = torch.empty_like(x_NC, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        grad_matrix_VC = torch.empty_like(matrix_VC, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        logits_NV = torch.empty(min(chunk, len(x_NC)), len(matrix_VC), dtype=dtype, device=x_NC.device)
        for begin in range(0, len(x_NC), chunk):
            some = slice(begin, begin + chunk)
            narrow_NC = x_NC[some].to(dtype)
            grad_NV = logits_NV[: len(narrow_NC)]  # logits, until their gradient is written over them
            torch.mm(narrow_NC, narrow_VC.T, out=grad_NV)
            total += _losses(grad_NV, labels_N[some], z_loss, part)
            if grad_x_NC is not None:
                grad_x_NC[some] = grad_NV @ narrow_VC
            if grad_matrix_VC is not None:
                _add_product(grad_matrix_VC, grad_NV, narrow_NC, first=begin == 0)
        ctx.save_for_backward(grad_x_NC, grad_matrix_VC)
        ctx.dtypes = x_NC.dtype, matrix_VC.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grad_x_NC, grad_matrix_VC = ctx.saved_tensors
        x_dtype, matrix_dtype = ctx.dtypes
        grad_x = None if grad_x_NC is None else (grad_x_NC * scale).to(x_dtype)
        grad_matrix = None if grad_matrix_VC is None else (grad_matrix_VC.mul_(scale)).to(matrix_dtype)
        return grad_x, grad_matrix, None, None, None, None


def _losses(logits_NV: Tensor, labels_N: Tensor, z_loss: float, part: VocabularyPart | None) -> Tensor:
    """Sum of the losses; the gradient by the logits is written over them.

    On a CPU some rows at a time, so that they are in its caches from the maximum to the gradient; where processes have
    parts of the vocabulary all at once, as every block would be brought together by itself.
    """
    whole = part is not None or logits_NV.device.type != "cpu"
    rows = len(logits_NV) if whole else max(1, BLOCK_ELEMENTS // logits_NV.shape[1])
    total = torch.zeros((), dtype=torch.float32, device=logits_NV.device)
    for block_NV, labels in zip(torch.split(logits_NV, rows), torch.split(labels_N, rows), strict=True):
        wide_NV = block_NV.float()
        total += _loss_and_gradient(wide_NV, labels, z_loss, part)
        if wide_NV is not block_NV:
            block_NV.copy_(wide_NV)
    return total


def _loss_and_gradient(logits_NV: Tensor, labels_N: Tensor, z_loss: float, part: VocabularyPart | None) -> Tensor:
    """Sum of the losses of float32 logits, over which their gradient is written."""
    kept_N = labels_N != IGNORE
    at_N, ours_N = labels_N.clamp(min=0), kept_N
    if part is not None:
        at_N, inside_N = part.inside(at_N, logits_NV.shape[1])
        ours_N = kept_N & inside_N
    picked_N = logits_NV.gather(1, at_N[:, None])[:, 0]
    if part is not None:
        picked_N = part.total(picked_N * inside_N)
    log_z_N = None if part is None else part.log_z(logits_NV)
    most_N = logits_NV.amax(-1)
    grad_NV = logits_NV.sub_(most_N[:, None]).exp_()
    if log_z_N is None:
        log_z_N = most_N + grad_NV.sum(-1).log_()
    loss_N = log_z_N - picked_N + z_loss * log_z_N.square()
    factor_N = (1 + 2 * z_loss * log_z_N) * kept_N * (most_N - log_z_N).exp_()
    grad_NV.mul_(factor_N[:, None])
    grad_NV.scatter_add_(1, at_N[:, None], -ours_N.to(grad_NV.dtype)[:, None])
    return (loss_N * kept_N).sum()


def _add_product(total_VC: Tensor, grad_NV: Tensor, x_NC: Tensor, *, first: bool) -> None:
    """Add grad.T @ x to float32 sums, or begin them; a product in a narrow type is made some rows at a time."""
    if x_NC.dtype == total_VC.dtype:
        torch.addmm(total_VC, grad_NV.T, x_NC, beta=0 if first else 1, out=total_VC)
        return
    rows = max(1, PRODUCT_ELEMENTS // x_NC.shape[1])
    for target_VC, some_NV in zip(torch.split(total_VC, rows), torch.split(grad_NV, rows, dim=1), strict=True):
        product_VC = some_NV.T @ x_NC
        target_VC.copy_(product_VC) if first else target_VC.add_(product_VC)


def cross_entropy(x_NC: Tensor, matrix_VC: Tensor, labels_N: Tensor) -> Tensor:
    """The same sum from whole logits: what the chunked one is checked against."""
    return F.cross_entropy((x_NC @ matrix_VC.T).float(), labels_N, ignore_index=IGNORE, reduction="sum")
