"""What happens to gradients between the backward pass and the optimizer: their form, their norm, and clipping.

The norm is a sum of squares in float64 over all processes, each element counted once, so its float32 value is the same
however the elements are spread, and clipping gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kiloq.train.parallel.world import World


def settle(parameters: Iterable[nn.Parameter]) -> None:
    """Bring gradients that are parts of a sum, or lie otherwise than their parameter, into its form."""
    for parameter in parameters:
        grad: Any = parameter.grad
        if grad is not None and hasattr(grad, "placements") and grad.placements != parameter.placements:  # type: ignore[attr-defined]
            parameter.grad = grad.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]


def squares(parameters: Iterable[nn.Parameter], world: World) -> float:
    """This process' part of the sum of squares of all gradients: over all processes every element counts once."""
    total = 0.0
    for parameter in parameters:
        if parameter.grad is None:
            continue
        norm = torch.linalg.vector_norm(local(parameter.grad), dtype=torch.float64)
        total += float(norm) ** 2 / _holders(parameter, world)
    return total


def scale(parameters: Iterable[nn.Parameter], norm: float, most: float) -> None:
    """Make gradients of this norm have at most the norm `most`."""
    if norm <= most or not math.isfinite(norm):
        return
    factor = most / norm
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).mul_(factor)


def local(tensor: Any) -> Tensor:
    """The elements that this process has."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def _holders(parameter: Any, world: World) -> int:
    """How many processes have each element: all of its pipeline stage, less those among which it is cut up."""
    holders = world.size // world.ranks("pipeline")
    if hasattr(parameter, "placements"):
        for placement, ranks in zip(parameter.placements, parameter.device_mesh.shape, strict=True):
            if not placement.is_replicate():
                holders //= int(ranks)
    return holders
