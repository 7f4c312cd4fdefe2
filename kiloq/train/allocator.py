"""Memory that a training process keeps: every step allocates what the step before freed.

The C library gives blocks back to the system when they are freed and asks for them anew a moment later; each page of
them is then cleared and mapped again by the kernel, one step after the other. Told to keep blocks of up to 32 MB, the
most that it can be told, it does this once for them. Larger ones go back still: kept, they would leave holes that
nothing else fits into. Source: glibc, mallopt(3).
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST_KEPT_BYTES = 32 << 20  # DEFAULT_MMAP_THRESHOLD_MAX of glibc on 64 bits
MOST = (1 << 31) - 1  # an int


def keep_memory() -> bool:
    """Make the C library of this process keep what is freed, from now on. False where it has no such switch."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MOST_KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, MOST))
