"""Rotary positions with a stretched base or divided frequencies, and the LogN scale of queries.

Both depend on positions only, so they are pure functions of numbers; the network asks for them once a forward pass.
The stretch of the base (`kiloq.model.ntk`) belongs to a sequence, not to a batch: every row has its own. The divisors
(`kiloq.model.rope_scaling`) belong to the model.

Sources: RoFormer (arXiv 2104.09864), NeoX half rotation; Qwen technical report section 2.3 and the released code of
2023 for LogN.

Shapes: B rows, T new tokens, R rotary dimensions, H heads, D head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kiloq.model import fused
from kiloq.model.rope_scaling import RopeScaling


def inverse_frequencies(rotary_dim: int, base: float, alpha_B: Tensor, scaling: RopeScaling | None = None) -> Tensor:
    """Angle per position of every rotated pair, float32 [B, R/2]; `alpha_B` float64 [B] stretches the base."""
    stretched_B1 = (base * alpha_B.double() ** (rotary_dim / max(rotary_dim - 2, 1)))[:, None]
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=alpha_B.device) / rotary_dim
    inverse_BR = (1.0 / stretched_B1.float() ** exponents).float()
    if scaling is None:
        return inverse_BR
    return inverse_BR / torch.tensor(scaling.factors(rotary_dim, base), dtype=torch.float32, device=alpha_B.device)


def rotary_tables(positions_BT: Tensor, inverse_BR: Tensor, magnitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin times `magnitude` (YaRN's), float32 [B, T, 1, R], the two halves alike (NeoX)."""
    angles = positions_BT[:, :, None].float() * inverse_BR[:, None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, :, None, :]
    return (angles.cos(), angles.sin()) if magnitude == 1 else (angles.cos() * magnitude, angles.sin() * magnitude)


def rotate(x_BTHD: Tensor, cos_BT1R: Tensor, sin_BT1R: Tensor) -> Tensor:
    """Turns the leading R dimensions of every head; in float32, whatever comes in, and cast back."""
    if fused.learns(x_BTHD):
        return fused.turned(x_BTHD, cos_BT1R, sin_BT1R)
    rotary_dim = cos_BT1R.shape[-1]
    turned = x_BTHD[..., :rotary_dim].float()
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos_BT1R + torch.cat((-second, first), dim=-1) * sin_BT1R).to(x_BTHD.dtype)
    if rotary_dim == x_BTHD.shape[-1]:
        return turned
    return torch.cat((turned, x_BTHD[..., rotary_dim:]), dim=-1)


def logn_scale(positions_BT: Tensor, train_length: int) -> Tensor:
    """Factor on queries, float32 [B, T]: log of the 1-based position to base `train_length`, never below 1."""
    base = math.log(max(train_length, 2))
    return ((positions_BT + 1).double().log() / base).clamp_min(1.0).float()
