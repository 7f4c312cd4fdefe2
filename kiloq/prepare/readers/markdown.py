"""Markdown: the text as it is, without the front matter that static-site tools put before it, which goes into `meta`.

Front matter is a block between two lines of `---` with `key: value` lines; lists may stand in brackets or below their
key. Only this much of YAML is read: a block with anything else (nested tables, texts over several lines) is damaged or
means something, and stays part of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kiloq.prepare.readers.contents import decoded, whole
from kiloq.prepare.readers.source import Bad, File, Row

MAX_FRONT_LINES = 100  # ours
MAX_FRONT_CHARS = 16_384  # ours

_FRONT = re.compile(rf"---[ \t]*\r?\n(.{{1,{MAX_FRONT_CHARS}}}?)\r?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_PAIR = re.compile(r"([A-Za-z_][\w .-]{0,99}):(?:[ \t]+(.*))?\Z")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)\Z")
_NOT_PLAIN = tuple("|>&*!%@`{[")  # begin what is no plain value in YAML


def rows(file: File) -> Iterator[Row | Bad]:
    """One row of format "markdown"."""
    data = whole(file)
    text = data if isinstance(data, Bad) else decoded(file, data)
    if isinstance(text, Bad):
        yield text
    else:
        meta, body = front_matter(text)
        yield file.row(body, "markdown", meta)


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The pairs of the front matter and the text after it; no pairs and the whole text where there is none."""
    found = _FRONT.match(text)
    if not found or (pairs := _pairs(found[1].splitlines())) is None:
        return {}, text
    return pairs, text[found.end() :].lstrip("\r\n")


def _pairs(lines: list[str]) -> dict[str, Any] | None:
    """The pairs of a block, or None if it is more than pairs."""
    pairs: dict[str, Any] = {}
    last = ""
    for line in lines if len(lines) <= MAX_FRONT_LINES else ["-"]:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if pair := _PAIR.match(line):
            last = pair[1]
            value = _value(pair[2] or "")
            if last in pairs or value is None:
                return None
            pairs[last] = value
        elif (item := _ITEM.match(line)) and (pairs.get(last) == "" or isinstance(pairs.get(last), tuple)):
            entry = _scalar(item[1].strip())
            if entry is None:
                return None
            pairs[last] = (*pairs[last], entry)
        else:
            return None
    return pairs or None


def _value(text: str) -> str | tuple[str, ...] | None:
    """A plain value or a list of them; None for what YAML reads otherwise."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        items = [_scalar(item.strip()) for item in text[1:-1].split(",")] if text[1:-1].strip() else []
        known = tuple(item for item in items if item is not None)
        return known if len(known) == len(items) else None
    return _scalar(text)


def _scalar(text: str) -> str | None:
    if text.startswith(_NOT_PLAIN):
        return None
    if text[:1] in ("'", '"'):
        return text[1:-1] if len(text) > 1 and text[-1] == text[0] and "\\" not in text else None
    return text.partition(" #")[0].rstrip()
