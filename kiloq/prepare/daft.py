"""Daft, the engine, told to keep quiet: it reports its use over the network and draws bars unless the environment says no.

Source: Daft 0.7 and Ray 2 (their documentation of environment variables).
"""

from __future__ import annotations

import os
from typing import Any

from kiloq.core.errors import MissingError

QUIET = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
    "DO_NOT_TRACK": "1",
    "SCARF_NO_ANALYTICS": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


def quiet_daft() -> Any:
    """The package. Raises MissingError where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import daft
    except ImportError:
        raise MissingError("preparing text needs Daft: run `pip install 'kiloq[data]'` to get it") from None
    return daft
