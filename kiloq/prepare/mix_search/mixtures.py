"""Mixtures to try: shares of the sources around what a corpus has, none of a source beyond what it can give.

The sources' sizes are drawn towards each other first, for a rare source would never be seen with a large share, and
then each is multiplied by a number from the exponential distribution. Where a source has less than its share, the
others take the rest in their proportion. Numbers come from raw words of Philox, so they stay the same.
Source: Liu et al. 2024 (RegMix, section 3: mixtures around the sources' sizes with a temperature, and a mean of the best).
"""

from __future__ import annotations

from typing import Any

import numpy as np

TEMPERATURE = 2.0  # shares before the draw follow size ** (1 / TEMPERATURE); RegMix
CANDIDATES = 100_000  # that a law is asked about; RegMix
CHOSEN = 100  # the proposal is the mean of so many, the best ones: against the luck of a single one; RegMix

Floats = np.ndarray[Any, np.dtype[np.float64]]


def sample(natural_J: Floats, limits_J: Floats, count: int, *key: int) -> Floats:
    """[count, sources] shares that add up to 1, within the limits; others for every key (numbers from 0)."""
    sources = len(natural_J)
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count * sources).reshape(count, sources)
    uniform_NJ = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 53 bits, below 1
    return within(natural_J ** (1 / TEMPERATURE) * -np.log1p(-uniform_NJ), limits_J)


def within(masses_NJ: Floats, limits_J: Floats) -> Floats:
    """Shares in proportion to `masses_NJ` and adding up to 1, none above its limit. The limits add up to 1 or more."""
    held_NJ = np.zeros(masses_NJ.shape, bool)
    while True:
        free_NJ = np.where(held_NJ, 0.0, masses_NJ)
        room_N = 1 - (held_NJ * limits_J).sum(axis=1)
        totals_N = free_NJ.sum(axis=1)
        scale_N = np.divide(room_N, totals_N, out=np.zeros_like(totals_N), where=totals_N > 0)
        shares_NJ: Floats = np.where(held_NJ, limits_J, free_NJ * scale_N[:, None])
        over_NJ = ~held_NJ & (shares_NJ > limits_J)
        if not over_NJ.any():
            shares_NJ /= shares_NJ.sum(axis=1, keepdims=True)
            return shares_NJ
        held_NJ |= over_NJ
