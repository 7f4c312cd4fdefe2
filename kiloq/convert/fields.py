"""Typed look-ups in a configuration that a stranger wrote: the right type or a sentence that names file and key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kiloq.core.errors import FormatError
from kiloq.core.files import shown

_MISSING = object()


class Fields:
    """A JSON object or GGUF metadata with its file's path. A key with the value null counts as absent."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, kind: type, default: Any = _MISSING) -> Any:
        """The value of `key` as `kind` (int, float, bool, str, dict or list); `default` where it is absent."""
        value = self.values.get(key)
        if value is None:
            if default is _MISSING:
                raise FormatError(f"{self.path}: lacks the key {shown(key)}, without which the model cannot be built")
            return default
        if kind is float and type(value) is int and abs(value) < 1 << 63:
            value = float(value)
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            raise FormatError(
                f"{self.path}: {shown(key)} is {shown(value)}: a value of type {kind.__name__} was expected"
            )
        return value

    def int(self, key: str, default: Any = _MISSING) -> Any:
        """A whole number."""
        return self.get(key, int, default)

    def float(self, key: str, default: Any = _MISSING) -> Any:
        """A finite number."""
        return self.get(key, float, default)

    def bool(self, key: str, default: Any = _MISSING) -> Any:
        """True or false."""
        return self.get(key, bool, default)

    def text(self, key: str, default: Any = _MISSING) -> Any:
        """A string."""
        return self.get(key, str, default)

    def fields(self, key: str) -> Fields:
        """A nested object; an empty one where it is absent."""
        return Fields(self.path, self.get(key, dict, {}))

    def require(self, key: str, wanted: Any, default: Any, why: str) -> None:
        """Raise unless `key` (or its default) equals `wanted`."""
        value = self.values.get(key)
        value = default if value is None else value
        if value != wanted:
            raise FormatError(f"{self.path}: {shown(key)} is {shown(value)}, and only {wanted!r} is supported: {why}")


def rotary_size(fields: Fields, key: str, head_dim: int) -> int:
    """Rotated dimensions of a head, given as a share of it under `key` (1 where the key is absent)."""
    share = fields.float(key, 1.0)
    if not 0 < share <= 1 or int(head_dim * share) < 2:
        raise FormatError(
            f"{fields.path}: {shown(key)} is {share}: a share of the head above 0 and up to 1 was expected"
        )
    return int(head_dim * share)


def shortest(value: float) -> float:
    """GGUF stores float32: the shortest decimal that rounds to it (1e-05 rather than 9.99999974e-06)."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))
