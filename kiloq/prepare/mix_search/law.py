"""The law of mixing: how the loss on one text follows from the shares of the sources that a model has learned from.

    loss(r) = c + exp(b + sum_j t_j r_j)        r_j: the share of source j, all of them adding up to 1

For a given floor c the rest is a linear regression; with small samples it is held back by a ridge. Both the floor and
the ridge are those with the smallest error of a sample that is left out, which a linear regression gives without being
solved anew. A floor far below all losses makes the law a straight line, so that is among what can be chosen.
Sources: Ye et al. 2024 (data mixing laws, equation 1); Allen 1974 (the error of a sample left out).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kiloq.core.errors import UsageError

FLOORS = np.geomspace(0.03, 30, 16)  # below the smallest loss, in ranges of the losses; ours
RIDGES = np.geomspace(1e-4, 1e1, 11)  # in mean squares of a share around its mean; ours
LEAST = 4  # samples that can tell one law from another

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Law:
    """One fitted law."""

    floor: float  # c, nats a token
    level: float  # of the logarithm of what is above the floor, at the mean mixture
    slopes: tuple[float, ...]  # of that logarithm, for each source's share
    mean: tuple[float, ...]  # the mean mixture of the samples
    left_out: float  # root of the mean squared error of a sample that is left out, nats a token

    def loss(self, shares_NJ: Floats) -> Floats:
        """The loss of each of N mixtures."""
        with np.errstate(over="ignore"):  # far from every sample a loss may be infinite, which is never the least
            found: Floats = self.floor + np.exp(self.level + (shares_NJ - np.array(self.mean)) @ np.array(self.slopes))
        return found


def fit(shares_NJ: Floats, losses_N: Floats) -> Law:
    """The law of N samples. Raises UsageError for fewer than LEAST."""
    if len(losses_N) < LEAST:
        raise UsageError(f"a law of mixing needs at least {LEAST} samples, and there are {len(losses_N)}")
    mean = shares_NJ.mean(axis=0)
    x_NJ = shares_NJ - mean
    low = float(losses_N.min())
    span = float(losses_N.max()) - low
    if span == 0:  # shares make no difference
        return Law(low - 1, 0.0, (0.0,) * len(mean), tuple(mean.tolist()), 0.0)
    squares_JJ = x_NJ.T @ x_NJ
    spread = np.trace(squares_JJ) / len(mean)
    best: Law | None = None
    for ridge in RIDGES:
        solver_JN = np.linalg.solve(squares_JJ + ridge * spread * np.eye(len(mean)), x_NJ.T)
        leverage_N = np.einsum("nj,jn->n", x_NJ, solver_JN) + 1 / len(losses_N)
        for floor in low - span * FLOORS:
            z_N = np.log(losses_N - floor)
            level = float(z_N.mean())
            slopes_J = solver_JN @ (z_N - level)
            error_N = (z_N - level - x_NJ @ slopes_J) / np.maximum(1 - leverage_N, 1e-6)
            error = float(np.sqrt(np.mean((losses_N - floor - np.exp(z_N - error_N)) ** 2)))
            if best is None or error < best.left_out:
                best = Law(float(floor), level, tuple(slopes_J.tolist()), tuple(mean.tolist()), error)
    assert best is not None
    return best


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's rho of two rows of numbers, equal ones sharing a rank; 0 where one of them is constant."""
    ranks = [np.array([(row < value).sum() + (row == value).sum() / 2 for value in row]) for row in (one, other)]
    a, b = (rank - rank.mean() for rank in ranks)
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0
