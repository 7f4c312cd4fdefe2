"""kiloq's CPU engine, in C++: `engine()` is the extension module, or None where it could not be built.

The whole decoder runs in one call without PyTorch: kernels for each instruction set (chosen at run time; the
environment variable KILOQ_CPU forces one), a paged cache, a team of threads. `src/decoder.h` is where to start
reading.
"""

from __future__ import annotations

import importlib
from typing import Any

from kiloq.core.errors import UsageError

MAX_HEAD_SIZE = 1024  # kMaxHeadSize of src/kernels_attention.h
MISSING = (
    "kiloq was installed without its native engine, because no C++ compiler was found: the slower PyTorch engine is "
    "used; install g++ and install kiloq again"
)


def engine() -> Any | None:
    """The extension module; None where it was not built. Raises UsageError when KILOQ_CPU names what cannot run here."""
    try:
        module = importlib.import_module("kiloq.native._native")
    except ImportError:
        return None
    try:
        module.chosen_path()
    except ValueError as error:
        raise UsageError(f"{error}") from None
    return module
