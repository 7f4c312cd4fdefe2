"""AutoGPTQ's layout decoded with loops over bits, from its description: the independent reader of what we write."""

from __future__ import annotations

import numpy as np


def field(words: np.ndarray, at: int, bits: int) -> int:
    """Number `at` of a row of 32-bit words that hold 32 / bits numbers each, low bits first."""
    per_word = 32 // bits
    return (int(words[at // per_word]) & 0xFFFFFFFF) >> (bits * (at % per_word)) & ((1 << bits) - 1)


def decode(parts: dict[str, np.ndarray], bits: int) -> np.ndarray:
    """float64 [out, in] from qweight, qzeros, scales and g_idx."""
    columns, rows = len(parts["g_idx"]), parts["qweight"].shape[1]
    values = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            group = parts["g_idx"][column]
            zero = (field(parts["qzeros"][group], row, bits) + 1) % (1 << bits)
            code = field(parts["qweight"][:, row], column, bits)
            values[row, column] = float(parts["scales"][group, row]) * (code - zero)
    return values
