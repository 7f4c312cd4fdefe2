"""Numbers of 64 bits that look like chance and are the same everywhere: splitmix64's finaliser, on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: what splitmix64 counts by

Array = np.ndarray[Any, np.dtype[np.uint64]]


def mix(numbers: Array) -> Array:
    """Every bit of a result depends on every bit of its number, and different numbers have different results. uint64.

    Source: Steele, Lea, Flood 2014. Keys and models on disk hold such numbers, so this never changes.
    """
    mixed: Array = numbers ^ (numbers >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
