"""Parquet, whose package is optional: who reads a file asks here for it, and for what its errors say in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kiloq.core.errors import MissingError
from kiloq.core.files import shown


def modules(path: Path) -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises MissingError, which names the file that needs them."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError:
        raise MissingError(
            f"{path}: Parquet needs another package: run `pip install 'kiloq[data]'` to get it"
        ) from None
    return pa, pq


def first_line(error: Exception) -> str:
    """What pyarrow says of a damaged file, in quotes; its further lines are addresses in its code."""
    return shown(str(error).splitlines()[0] if str(error) else "no reason given", 120)
