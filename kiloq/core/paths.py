"""Where kiloq keeps things on this machine: the XDG base directories, read once, never created at import.

Source: XDG Base Directory Specification 0.8. Every location can be moved with `KILOQ_HOME`, which tests use.
"""

from __future__ import annotations

import os
from pathlib import Path


def _base(kind: str, variable: str, fallback: str) -> Path:
    if home := os.environ.get("KILOQ_HOME"):
        return Path(home) / kind
    base = os.environ.get(variable, "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / fallback  # XDG: a relative path is to be ignored
    return root / "kiloq"


def cache_dir() -> Path:
    """Fetched assets and converted models; safe to delete."""
    return _base("cache", "XDG_CACHE_HOME", ".cache")


def models_dir() -> Path:
    """One folder per named model, e.g. `smollm2`."""
    return cache_dir() / "models"


def state_dir() -> Path:
    """Chat history and saved conversations; belongs to the user."""
    return _base("state", "XDG_STATE_HOME", ".local/state")
