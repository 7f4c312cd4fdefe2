"""Cross entropy over a large vocabulary without its logits: chunk by chunk, the gradient computed on the way.

Logits of all tokens would be the largest tensor of training (2,048 x 151,936 x 4 bytes = 1.2 GB a sequence, and as
much for their gradient). Here the forward pass makes the logits of `chunk` tokens, their loss and their gradient,
turns that into gradients of the hidden states and of the matrix, and forgets it. The backward pass only scales.
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
        grad_matrix_VC = torch.zeros_like(matrix_VC, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for begin in range(0, len(x_NC), chunk):
            some = slice(begin, begin + chunk)
            narrow_NC, labels = x_NC[some].to(dtype), labels_N[some]
            logits_NV = (narrow_NC @ narrow_VC.T).float()
            loss, grad_NV = _loss_and_gradient(logits_NV, labels, z_loss, part)
            total += loss
            grad_NV = grad_NV.to(dtype)
            if grad_x_NC is not None:
                grad_x_NC[some] = grad_NV @ narrow_VC
            if grad_matrix_VC is not None:
                grad_matrix_VC += grad_NV.T @ narrow_NC
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


def _loss_and_gradient(
    logits_NV: Tensor, labels_N: Tensor, z_loss: float, part: VocabularyPart | None
) -> tuple[Tensor, Tensor]:
    """Sum of the losses and its gradient by the logits, which is written over them."""
    kept_N = labels_N != IGNORE
    at_N, ours_N = labels_N.clamp(min=0), kept_N
    if part is not None:
        at_N, inside_N = part.inside(at_N, logits_NV.shape[1])
        ours_N = kept_N & inside_N
    log_z_N = torch.logsumexp(logits_NV, -1) if part is None else part.log_z(logits_NV)
    picked_N = logits_NV.gather(1, at_N[:, None])[:, 0]
    if part is not None:
        picked_N = part.total(picked_N * inside_N)
    loss_N = log_z_N - picked_N + z_loss * log_z_N.square()
    factor_N = (1 + 2 * z_loss * log_z_N) * kept_N
    grad_NV = logits_NV.sub_(log_z_N[:, None]).exp_().mul_(factor_N[:, None])
    grad_NV.scatter_add_(1, at_N[:, None], -ours_N.to(grad_NV.dtype)[:, None])
    return (loss_N * kept_N).sum(), grad_NV


def cross_entropy(x_NC: Tensor, matrix_VC: Tensor, labels_N: Tensor) -> Tensor:
    """The same sum from whole logits: what the chunked one is checked against."""
    return F.cross_entropy((x_NC @ matrix_VC.T).float(), labels_N, ignore_index=IGNORE, reduction="sum")
