"""From logits to a token: pure functions on NumPy arrays.

The order is that of Hugging Face transformers, which the original used: bias and penalties on logits, then
temperature, top-k, top-p, min-p; then one uniform number picks from what is left, in order of token ids. No full sort
of the vocabulary anywhere: 151,936 logits cost a few passes. Sums are taken in float64, so that a filter's border
does not move with the vocabulary's size.

Shape: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import KiloqError
from kiloq.generate.params import SamplingParams

Floats = NDArray[np.float32]
LEAST_TEMPERATURE = 1e-5  # ours, and vLLM's for greedy: smaller ones would overflow, and choose the same token
NOT_NUMBERS = (
    "the model's logits are not numbers (NaN or infinite): its weights are damaged or overflow in this precision; "
    "load it with --weights fp32 or check the file with `kiloq show`"
)
FIRST_CANDIDATES = 256  # ours: nucleus sets of chat models are nearly always smaller


def penalise(
    logits_V: Floats, params: SamplingParams, prompt: Iterable[int], counts: Mapping[int, int], banned: Sequence[int]
) -> Floats:
    """A copy of the logits with bias, the three penalties and banned tokens (-inf) applied.

    prompt: token ids that count for the repetition penalty; counts: how often each token is in the answer so far.
    """
    out_V = logits_V.astype(np.float32, copy=True)
    for token, bias in params.logit_bias.items():
        if token < len(out_V):
            out_V[token] += np.float32(bias)
    if params.repetition_penalty != 1.0:
        seen = np.fromiter({*prompt, *counts}, dtype=np.int64)
        penalty = np.float32(params.repetition_penalty)
        out_V[seen] = np.where(out_V[seen] < 0, out_V[seen] * penalty, out_V[seen] / penalty)
    if counts and (params.presence_penalty or params.frequency_penalty):
        seen = np.fromiter(counts, dtype=np.int64)
        times = np.fromiter(counts.values(), dtype=np.float32)
        out_V[seen] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * times
    out_V[list(banned)] = -np.inf
    return out_V


def filtered(logits_V: Floats, params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids that may be drawn, ascending, and their probabilities (they sum to 1); for temperature > 0."""
    scaled_V = logits_V / np.float32(max(params.temperature, LEAST_TEMPERATURE))
    ids = np.flatnonzero(scaled_V > -np.inf)  # banned tokens have no share at all
    if 0 < params.top_k < len(ids):
        # Ties with the k-th are kept, as transformers does.
        threshold = np.partition(scaled_V, -params.top_k)[-params.top_k]
        ids = np.flatnonzero(scaled_V >= threshold)
    kept = scaled_V[ids].astype(np.float64)
    weights = np.exp(kept - kept.max())
    if params.top_p < 1.0:
        keep = _nucleus(weights, params.top_p)
        ids, weights = ids[keep], weights[keep]
    if params.min_p > 0.0:
        keep = np.flatnonzero(weights >= params.min_p * weights.max())
        ids, weights = ids[keep], weights[keep]
    return ids, weights / weights.sum()


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Ascending indices of the smallest set of largest weights whose share reaches top_p; at least one."""
    target = top_p * weights.sum()
    size = min(FIRST_CANDIDATES, len(weights))
    while True:
        best = np.argpartition(weights, len(weights) - size)[len(weights) - size :]
        if size == len(weights) or weights[best].sum() >= target:
            break
        size = min(size * 8, len(weights))
    best = np.flatnonzero(weights >= weights[best].min())  # with all that tie with the least of them
    best = best[np.lexsort((best, -weights[best]))]  # largest first, ties by token id
    before = np.cumsum(weights[best]) - weights[best]
    count = max(1, int(np.count_nonzero(before < target)))
    return np.sort(best[:count])


def choose(logits_V: Floats, params: SamplingParams, uniform: float) -> int:
    """The token that `uniform` in [0, 1) selects; the likeliest, lowest id first, at temperature 0."""
    if not np.isfinite(logits_V.max()):
        raise KiloqError(NOT_NUMBERS)
    if params.temperature == 0:
        return int(logits_V.argmax())
    ids, probabilities = filtered(logits_V, params)
    place = int(np.searchsorted(np.cumsum(probabilities), uniform, side="right"))
    return int(ids[min(place, len(ids) - 1)])


def log_softmax(logits_V: Floats) -> NDArray[np.float64]:
    """Natural-log probabilities, float64 [V]."""
    wide_V = logits_V.astype(np.float64)
    shifted_V = wide_V - wide_V.max()
    return np.asarray(shifted_V - np.log(np.exp(shifted_V).sum()), dtype=np.float64)


def top_logprobs(logprobs_V: NDArray[np.float64], count: int) -> list[tuple[int, float]]:
    """The `count` likeliest (token id, log-probability), best first, ties by id."""
    count = min(count, len(logprobs_V))
    if not count:
        return []
    best = np.argpartition(logprobs_V, len(logprobs_V) - count)[len(logprobs_V) - count :]
    best = np.flatnonzero(logprobs_V >= logprobs_V[best].min())  # with all that tie with the least of them
    best = best[np.lexsort((best, -logprobs_V[best]))][:count]
    return [(int(token), float(logprobs_V[token])) for token in best]
