"""GPTQ: round one column after the other, and let the columns to come make up for its error.

With H = 2/n X X^T of the inputs, the best correction of the remaining columns for an error in column i is that error
times row i of the upper Cholesky factor of H^-1, divided by its diagonal. Columns are done in blocks of 128: errors
reach the columns of their block at once and all later ones in one product. A group's grid is fitted to the weights as
the blocks before it left them. Inputs that are always zero leave their columns at zero.
Source: GPTQ (arXiv 2210.17323), algorithm 1; act-order and static groups as in IST-DASLab/gptq and AutoGPTQ.

Shapes: R rows (outputs), C columns (inputs), S samples x tokens. The work is done on the transpose, whose rows lie
together in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kiloq.convert.integers import Integers
from kiloq.core.errors import KiloqError
from kiloq.quantize.rtn import Grid, as_integers, fit_grid
from kiloq.quantize.settings import Settings

BLOCK = 128  # columns; the reference's
STRIPE = 512  # columns of a Hessian that are computed at once
MAX_DAMPING = 1.0  # tried in steps of ten times where the factorisation fails


class Hessian:
    """The running mean of 2 x x^T over samples: what a matrix sees of its inputs.

    Summed in the reference's order, because one rounding turns over 8-bit codes. Only blocks on and above the diagonal
    are computed; the rest is their mirror image.
    """

    def __init__(self, columns: int) -> None:
        self._mean_CC = torch.zeros(columns, columns)
        self._samples = 0

    def add(self, x_TC: Tensor) -> None:
        """One sample: the inputs of its T tokens. Every sample counts the same."""
        before, self._samples = self._samples, self._samples + 1
        scaled_TC = x_TC * (2 / self._samples) ** 0.5
        for begin in range(0, len(self._mean_CC), STRIPE):
            end = begin + STRIPE
            stripe = self._mean_CC[begin:end, begin:].mul_(before / self._samples)
            stripe.addmm_(scaled_TC[:, begin:end].T, scaled_TC[:, begin:])

    def finished(self) -> Tensor:
        """The whole matrix, float32 [C, C]. Nothing can be added after it."""
        for begin in range(0, len(self._mean_CC), STRIPE):
            end = begin + STRIPE
            self._mean_CC[end:, begin:end] = self._mean_CC[begin:end, end:].T
        return self._mean_CC


def gptq(w_RC: Tensor, hessian_CC: Tensor, settings: Settings) -> Integers:
    """The codes of a matrix, float32 [R, C], that lose least on inputs with this Hessian (neither is changed)."""
    w_CR, h_CC = w_RC.float().T.contiguous(), hessian_CC.float().clone()
    columns = w_CR.shape[0]
    group = settings.group if settings.group > 0 else columns
    whole = [fit_grid(w_RC.float(), settings)] if group == columns else []
    dead_C = h_CC.diagonal() == 0
    h_CC.diagonal()[dead_C] = 1
    w_CR[dead_C] = 0
    fixed = whole
    if settings.static_groups and not whole:
        fixed = [fit_grid(w_CR[at : at + group].T, settings) for at in range(0, columns, group)]
    order_C = torch.arange(columns)
    if settings.desc_act:
        order_C = torch.argsort(h_CC.diagonal(), descending=True)
        w_CR, h_CC = w_CR[order_C], h_CC[order_C][:, order_C]
    of_column_C = order_C // group if fixed else torch.arange(columns) // group
    factor_CC = _inverse_factor(h_CC, settings.damping)
    with one_thread():
        codes_CR, grids = _round_columns(w_CR, factor_CC, of_column_C, fixed, settings)
    back_C = torch.argsort(order_C)
    in_order = not settings.desc_act or settings.static_groups or bool(whole)
    g_idx_C = None if in_order else of_column_C[back_C]
    return as_integers(codes_CR[back_C].T.contiguous(), grids, settings, group, g_idx_C)


def _round_columns(
    w_CR: Tensor, factor_CC: Tensor, of_column_C: Tensor, fixed: list[Grid], settings: Settings
) -> tuple[Tensor, list[Grid]]:
    """Codes of the columns in their order of work, and the grid of each group: `fixed`, or fitted when it is reached."""
    codes_CR = torch.empty_like(w_CR)
    grids, group_of = list(fixed), of_column_C.tolist()
    for begin in range(0, len(w_CR), BLOCK):
        end = min(begin + BLOCK, len(w_CR))
        block_KR, errors_KR = w_CR[begin:end].clone(), torch.empty(end - begin, w_CR.shape[1])
        for column in range(begin, end):
            at = column - begin
            if group_of[column] == len(grids):
                members = group_of.count(group_of[column])
                grids.append(fit_grid(w_CR[column : column + members].T, settings))
            grid = grids[group_of[column]]
            codes_R = grid.codes(block_KR[at, :, None])
            codes_CR[column] = codes_R[:, 0]
            row_K = factor_CC[column, column:end]
            errors_KR[at] = (block_KR[at] - grid.values(codes_R)[:, 0]) / row_K[0]
            block_KR[at:] -= row_K[:, None] * errors_KR[at]
        w_CR[end:].addmm_(factor_CC[begin:end, end:].T, errors_KR, alpha=-1)
    return codes_CR, grids


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: operations this small gain little from a second, and where other programs hold the
    cores, threads that wait for each other after each of them take a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _inverse_factor(h_CC: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian; more damping where it would not factor.

    In float64: in float32 the factor, and with it some codes, would depend on the number of threads.
    """
    mean = h_CC.diagonal().double().mean()
    while damping <= MAX_DAMPING:
        damped_CC = h_CC.double()
        damped_CC.diagonal().add_(damping * mean)
        lower_CC, failed = torch.linalg.cholesky_ex(damped_CC)
        if not failed:
            upper_CC, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_CC), upper=True)
            if not failed and bool(upper_CC.isfinite().all()):
                factor_CC: Tensor = upper_CC.float()
                return factor_CC
        damping *= 10
    raise KiloqError(
        "the inputs of a matrix give no usable Hessian, even with full damping: the calibration text is too short "
        "or the model computes NaN"
    )


def relative_error(w_RC: Tensor, rounded_RC: Tensor, hessian_CC: Tensor | None) -> float:
    """Squared error of the outputs over the squared outputs, on the inputs that the Hessian saw; of weights without."""
    lost_RC = w_RC.float() - rounded_RC
    if hessian_CC is None:
        return float(lost_RC.square().sum() / w_RC.float().square().sum().clamp(min=1e-30))
    total = float(((w_RC.float() @ hessian_CC) * w_RC).sum())
    return float(((lost_RC @ hessian_CC) * lost_RC).sum()) / total if total > 0 else 0.0
