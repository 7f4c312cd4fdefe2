"""Sampling with a full sort of the vocabulary, in float64: slow, and exact about ties, which go by token id."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kiloq.generate.params import SamplingParams
from kiloq.generate.sampling import LEAST_TEMPERATURE


def sorted_distribution(
    steered_V: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that may be drawn, ascending, and their probabilities; of logits with bias and penalties, as float32."""
    scaled_V = (steered_V / np.float32(max(params.temperature, LEAST_TEMPERATURE))).astype(np.float64)
    weights_V = np.exp(scaled_V - scaled_V.max())
    order = np.lexsort((np.arange(len(weights_V)), -weights_V))
    order = order[scaled_V[order] > -np.inf]
    if 0 < params.top_k < len(order):
        order = order[scaled_V[order] >= np.sort(scaled_V)[-params.top_k]]
    if params.top_p < 1:
        before = np.cumsum(weights_V[order]) - weights_V[order]
        order = order[: max(1, np.count_nonzero(before < params.top_p * weights_V[order].sum()))]
    ids = np.sort(order[weights_V[order] >= params.min_p * weights_V[order[0]]])
    return ids, weights_V[ids] / weights_V[ids].sum()
