"""The passes of a training step around the matrix products: fewer reads of memory, and little kept for the way back.

PyTorch's autograd keeps the operands of every small operation and goes through memory for each. Here the forward and the
backward pass of a norm, of some projections of one input, of the gate and of rotary are written by hand: what is cheap
is computed again, gradients of one input are added up inside the matrix products, and under autocast what leaves a norm
is already in the narrow type, so that nothing is cast twice. The values are those of the plain code in `kiloq.model.network` but
for rounding: sums of norms and rotary stay float32. Only a pass that learns comes here; inference and compilers, which
join passes by themselves, take the plain code.

Source: Liger kernel (Hsu et al. 2024), for what to keep.

Shapes: N tokens (any leading dimensions), C input width, O output width, H heads, D head size, F feed-forward
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def learns(x: Tensor, *modules: nn.Module) -> bool:
    """Whether a pass over `x` by the given projections or norms takes this file's way.

    Not without gradients, not while a compiler looks on, and not where a module is more than its class says: an
    adapter, hooks of a parallel engine, or weights that are parts of a distributed tensor.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return type(x) is Tensor and all(_plain(module) for module in modules)


def _plain(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
        return False
    return not hooks and type(getattr(module, "weight", None)) is nn.Parameter


def product_dtype(x: Tensor) -> torch.dtype:
    """The type of matrix products over `x`: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def rms_norm(x_NC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight in the type of matrix products; keeps `x` and one number a token."""
    out_NC: Tensor = _RMSNorm.apply(x_NC, weight_C, eps, product_dtype(x_NC))  # type: ignore[no-untyped-call]
    return out_NC


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_C: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide_NC = x_NC.float()
        scale_N1 = torch.linalg.vector_norm(wide_NC, dim=-1, keepdim=True)
        scale_N1 = scale_N1.square_().div_(x_NC.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_NC, weight_C, scale_N1)
        out_NC: Tensor = (wide_NC * scale_N1).mul_(weight_C).to(dtype)
        return out_NC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NC: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, weight_C, scale_N1 = ctx.saved_tensors
        width = x_NC.shape[-1]
        grad_NC, wide_NC = grad_NC.float(), x_NC.float()
        product_NC = (grad_NC * wide_NC).view(-1, width)
        # A product with one column or row is a weighted sum, in one read.
        along_N1 = torch.mv(product_NC, weight_C.float()).view_as(scale_N1)
        grad_weight_C = torch.mv(product_NC.t(), scale_N1.view(-1)).to(weight_C.dtype)
        pull_N1 = along_N1.mul_(scale_N1.pow(3)).div_(-width)
        grad_x_NC = torch.mul(grad_NC, weight_C, out=product_NC.view_as(wide_NC)).mul_(scale_N1)
        return grad_x_NC.addcmul_(wide_NC, pull_N1).to(x_NC.dtype), grad_weight_C, None, None


def projections(x_NC: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
    """What each of `modules`, linear layers, makes of `x`; keeps `x` once and no narrow copy of a weight."""
    parameters: list[Any] = [part for module in modules for part in (module.weight, module.bias)]
    found: tuple[Tensor, ...] = _Projections.apply(x_NC.to(product_dtype(x_NC)), *parameters)  # type: ignore[no-untyped-call]
    return found


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = parameters[::2], parameters[1::2]
        ctx.save_for_backward(x_NC, *weights)
        ctx.bias_dtypes = [None if bias is None else bias.dtype for bias in biases]
        narrow: list[Any] = [None if part is None else part.to(x_NC.dtype) for part in parameters]
        return tuple(F.linear(x_NC, weight, bias) for weight, bias in zip(narrow[::2], narrow[1::2], strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, *weights = ctx.saved_tensors
        flat_NC, wanted = x_NC.flatten(0, -2), ctx.needs_input_grad
        grad_x_NC, grad_parameters = None, list[Tensor | None]()
        for number, (grad, weight, bias_dtype) in enumerate(zip(grads, weights, ctx.bias_dtypes, strict=True)):
            grad_NO = grad.flatten(0, -2)
            if wanted[0]:
                narrow_OC = weight.to(x_NC.dtype)
                grad_x_NC = grad_NO @ narrow_OC if grad_x_NC is None else grad_x_NC.addmm_(grad_NO, narrow_OC)
            grad_OC = (grad_NO.t() @ flat_NC).to(weight.dtype) if wanted[1 + 2 * number] else None
            grad_O = None if bias_dtype is None else grad_NO.sum(0, dtype=torch.float32).to(bias_dtype)
            grad_parameters += [grad_OC, grad_O]
        return (None if grad_x_NC is None else grad_x_NC.view_as(x_NC)), *grad_parameters


def gated(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """silu(gate) * up; keeps the two."""
    out_NF: Tensor = _Gated.apply(gate_NF, up_NF)  # type: ignore[no-untyped-call]
    return out_NF


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NF, up_NF)
        return F.silu(gate_NF).mul_(up_NF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor, Tensor]:
        gate_NF, up_NF = ctx.saved_tensors
        grad_up_NF = F.silu(gate_NF).mul_(grad_NF)
        return torch.ops.aten.silu_backward(grad_NF * up_NF, gate_NF), grad_up_NF


def turned(x_BTHD: Tensor, cos_BT1R: Tensor, sin_BT1R: Tensor) -> Tensor:
    """`kiloq.model.rope.rotate`; keeps the tables alone: the way back is the turn the other way."""
    out_BTHD: Tensor = _Turned.apply(x_BTHD, cos_BT1R, sin_BT1R)  # type: ignore[no-untyped-call]
    return out_BTHD


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, cos_BT1R: Tensor, sin_BT1R: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BT1R, sin_BT1R)
        return _turn(x_BTHD, cos_BT1R, sin_BT1R, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        cos_BT1R, sin_BT1R = ctx.saved_tensors
        return _turn(grad_BTHD, cos_BT1R, sin_BT1R, -1), None, None


def _turn(x_BTHD: Tensor, cos_BT1R: Tensor, sin_BT1R: Tensor, way: int) -> Tensor:
    """Turns the leading R dimensions of every head, forwards (1) or back (-1), in float32."""
    rotary_dim = cos_BT1R.shape[-1]
    half = rotary_dim // 2
    wide_BTHR = x_BTHD[..., :rotary_dim].float()
    out_BTHR = wide_BTHR * cos_BT1R
    sin_BT1h = sin_BT1R[..., :half]  # the halves of a table are alike
    out_BTHR[..., :half].addcmul_(wide_BTHR[..., half:], sin_BT1h, value=-way)
    out_BTHR[..., half:].addcmul_(wide_BTHR[..., :half], sin_BT1h, value=way)
    narrow_BTHR = out_BTHR.to(x_BTHD.dtype)
    return narrow_BTHR if rotary_dim == x_BTHD.shape[-1] else torch.cat((narrow_BTHR, x_BTHD[..., rotary_dim:]), dim=-1)
