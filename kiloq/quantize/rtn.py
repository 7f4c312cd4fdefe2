"""Round to nearest: the grid of each group of columns, and the codes on it.

A grid is a scale and a zero point: value = scale * (code - zero), codes 0 to 2^bits - 1. Symmetric grids span
[-m, m] with the zero point in the middle, others [min, max] with zero always inside. `search` shrinks the range in
hundredths while that lowers the sum of |error|^2.4.
Source: the quantiser of GPTQ (arXiv 2210.17323, IST-DASLab/gptq, quant.py), whose numbers this gives.

That quantiser's ends lie up to half a step off its grid: +m is code 127.5 of 255 and becomes 127, the largest error of
a group on its largest weight. With `exact_peaks` the step is a little wider instead, so that the end farther from zero
is a code (but for the rounding of the scale) and the other is not beyond the last: of use where steps are small.

Shapes: R rows (outputs), C columns (inputs), K columns of one group, N groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kiloq.convert.integers import Integers
from kiloq.quantize.settings import Settings

SEARCH_STEPS, SEARCH_SHARE, SEARCH_NORM = 100, 0.8, 2.4  # down to a fifth of the range; the reference's numbers


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of each row, float32 [R, 1]."""

    scale_R1: Tensor
    zero_R1: Tensor
    top: int  # the largest code

    def codes(self, w_RK: Tensor) -> Tensor:
        """The nearest codes, float32 [R, K]."""
        return (torch.round(w_RK / self.scale_R1) + self.zero_R1).clamp_(0, self.top)

    def values(self, codes_RK: Tensor) -> Tensor:
        """What codes stand for."""
        return self.scale_R1 * (codes_RK - self.zero_R1)


def fit_grid(w_RK: Tensor, settings: Settings) -> Grid:
    """The grid of each row of `w_RK`. A row of zeros gets a scale that is not zero."""
    low_R1 = w_RK.amin(1, keepdim=True).clamp(max=0)
    high_R1 = w_RK.amax(1, keepdim=True).clamp(min=0)
    if settings.symmetric:
        high_R1 = torch.maximum(-low_R1, high_R1)
        low_R1 = -high_R1
    empty = low_R1 == high_R1
    low_R1, high_R1 = low_R1.masked_fill(empty, -1), high_R1.masked_fill(empty, 1)
    best = _grid(low_R1, high_R1, settings)
    if not settings.search:
        return best
    least_R1 = _error(w_RK, best)
    scale_R1, zero_R1 = best.scale_R1.clone(), best.zero_R1.clone()
    for step in range(1, int(SEARCH_STEPS * SEARCH_SHARE)):
        share = 1 - step / SEARCH_STEPS
        tried = _grid(share * low_R1, share * high_R1, settings)
        error_R1 = _error(w_RK, tried)
        better = error_R1 < least_R1
        least_R1 = torch.where(better, error_R1, least_R1)
        scale_R1 = torch.where(better, tried.scale_R1, scale_R1)
        zero_R1 = torch.where(better, tried.zero_R1, zero_R1)
    return Grid(scale_R1, zero_R1, best.top)


def _grid(low_R1: Tensor, high_R1: Tensor, settings: Settings) -> Grid:
    top = (1 << settings.bits) - 1
    if settings.exact_peaks:
        scale_R1 = _peak_scale(low_R1, high_R1, top, settings.symmetric)
    else:
        scale_R1 = (high_R1 - low_R1) / top
    if settings.scale_dtype == "fp16":  # a range too small for it keeps fp16's smallest step
        scale_R1 = scale_R1.half().float().clamp(min=2.0**-24)
    if settings.symmetric:
        return Grid(scale_R1, torch.full_like(scale_R1, (top + 1) / 2), top)
    return Grid(scale_R1, torch.round(-low_R1 / scale_R1).clamp_(0, top), top)


def _peak_scale(low_R1: Tensor, high_R1: Tensor, top: int, symmetric: bool) -> Tensor:
    far_R1, near_R1 = torch.maximum(-low_R1, high_R1), torch.minimum(-low_R1, high_R1)
    steps_R1 = torch.full_like(far_R1, top // 2) if symmetric else torch.floor(top * (far_R1 / (far_R1 + near_R1)))
    return far_R1 / steps_R1


def _error(w_RK: Tensor, grid: Grid) -> Tensor:
    return (grid.values(grid.codes(w_RK)) - w_RK).abs_().pow_(SEARCH_NORM).sum(1, keepdim=True)


def round_to_nearest(w_RC: Tensor, settings: Settings) -> Integers:
    """The nearest codes of a matrix, float32 [R, C]."""
    group = settings.group if settings.group > 0 else w_RC.shape[1]
    parts = [w_RC[:, at : at + group].float() for at in range(0, w_RC.shape[1], group)]
    grids = [fit_grid(part, settings) for part in parts]
    codes_RC = torch.cat([grid.codes(part) for grid, part in zip(grids, parts, strict=True)], 1)
    return as_integers(codes_RC, grids, settings, group, None)


def as_integers(
    codes_RC: Tensor, grids: list[Grid], settings: Settings, group: int, g_idx_C: Tensor | None
) -> Integers:
    """Codes and the grids of all groups as stored integers."""
    scale_RN = torch.cat([grid.scale_R1 for grid in grids], 1)
    zero_RN = torch.cat([grid.zero_R1 for grid in grids], 1)
    return Integers(
        codes=codes_RC.to(torch.uint8).numpy(),
        bits=settings.bits,
        group=group,
        scale=(scale_RN.half() if settings.scale_dtype == "fp16" else scale_RN).numpy(),
        zero=None if settings.symmetric else zero_RN.to(torch.uint8).numpy(),
        g_idx=None if g_idx_C is None else g_idx_C.numpy().astype(np.int32),
    )
