"""Dynamic NTK: how far a sequence's rotary base is stretched, as a function of its length alone. No torch.

Source: Qwen technical report, section 2.3 ("NTK-aware interpolation" by chunks) and the released code of 2023.
"""

from __future__ import annotations


def ntk_alpha(length: int, train_length: int) -> float:
    """How far the rotary base is stretched for a sequence of `length` tokens; 1 up to the trained length.

    1, 3, 7, 15 ... for lengths up to 1, 2, 4, 8 ... times `train_length`: constant between boundaries, so that a
    sequence's cache stays valid until it crosses one. The exponent is found with whole numbers, because log2 in
    floating point rounds wrongly next to a boundary.
    """
    if length <= train_length:
        return 1.0
    doublings = (-(-length // train_length) - 1).bit_length()  # ceil(log2(ceil(length / train_length)))
    return float(2 ** (doublings + 1) - 1)
