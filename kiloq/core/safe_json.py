"""JSON that a stranger wrote: bounded in bytes, depth and values before it is parsed, and strict when it is; and ours.

Python's parser alone recurses on nested brackets (100,000 of them end in RecursionError), lets the last of two equal
keys win (two readers may then see two different files) and takes NaN. Depth and number of values are counted on the
brackets and commas outside strings: a few array operations, milliseconds even for an 11 MB tokenizer.json.
Source of the grammar: RFC 8259.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from kiloq.core.errors import FormatError
from kiloq.core.files import atomic_file, read_bounded, shown

MAX_BYTES = 64 << 20  # ours; the largest tokenizer.json in use (Gemma, 262k entries) has 34 MB
MAX_DEPTH = 64  # ours; a tokenizer.json has 8
MAX_VALUES = 8_000_000  # ours; each costs about 100 bytes once parsed; Gemma's tokenizer.json has 2.3 million

# What a byte outside strings does: +1 opens, -1 closes, 0 neither.
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1


def load_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises MissingError or FormatError, whose sentence starts with the path."""
    return parse_object(read_bounded(path, max_bytes), path)


def parse_object(data: bytes, where: Path | str) -> dict[str, Any]:
    """`data` as a JSON object; `where` names its source in errors."""
    value = parse(data, where)
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a JSON {type(value).__name__}"
        raise FormatError(f"{where}: holds {kind}: an object in braces was expected")
    return value


def parse(data: bytes, where: Path | str) -> Any:
    """`data` as any JSON value; UTF-8, no duplicate keys, no NaN or infinity, no deeper than MAX_DEPTH."""
    _check_nesting(data, where)
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, bad JSON, 4,300-digit numbers and our own
        raise FormatError(f"{where}: is not valid JSON: {error}") from None


def _check_nesting(data: bytes, where: Path | str) -> None:
    # Without escaped backslashes and then escaped quotes, the quotes that are left begin and end strings in turn.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    codes = np.frombuffer(plain, np.uint8)
    outside = np.cumsum(codes == ord('"'), dtype=np.uint8) & 1 == 0  # a sum that wraps at 256 keeps its parity
    steps = _STEP[codes[outside]]
    steps = steps[steps != 0]
    values = int(np.count_nonzero(codes[outside] == ord(","))) + int(np.count_nonzero(steps > 0))
    if values > MAX_VALUES:
        raise FormatError(f"{where}: holds {values:,} JSON values: at most {MAX_VALUES:,} are read")
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > MAX_DEPTH:
        raise FormatError(f"{where}: is JSON nested {depth:,} deep: at most {MAX_DEPTH} levels are read")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(digits)} is too large")
    return value


def write_json(path: Path, value: Mapping[str, Any], indent: int = 1) -> None:
    """A JSON file, whole or not at all; its folder is made. `load_object` reads it."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):  # a file's name that is not UTF-8
        text = json.dumps(value, indent=indent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text.encode() + b"\n")
