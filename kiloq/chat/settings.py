"""Reads what follows `:conf`: `name=value` pairs whose values are literals, never evaluated.

A value is a number, true, false, none, a JSON list, object or "text", or a bare word; names may be written with
hyphens, as on the command line. What the values may be is checked by SamplingParams.
"""

from __future__ import annotations

import json
import re
from typing import Any

from kiloq.chat.messages import Texts
from kiloq.core.errors import UsageError

_NAME = re.compile(r"[\s,]*([A-Za-z][\w-]*)\s*=\s*")
_WORD = re.compile(r"\S*")
_WORDS = {"none": None, "null": None, "true": True, "false": False}


def parse_assignments(text: str, texts: Texts) -> dict[str, Any]:
    """The settings in `text`, in its order. Raises UsageError with one sentence from `texts`."""
    found: dict[str, Any] = {}
    place = 0
    while text[place:].strip(" \t\n,"):
        match = _NAME.match(text, place)
        if not match:
            raise UsageError(texts.bad_assignment.format(text=text[place:].strip()))
        name = match[1].replace("-", "_")
        found[name], place = _value(name, text, match.end(), texts)
    return found


def _value(name: str, text: str, place: int, texts: Texts) -> tuple[Any, int]:
    if text[place : place + 1] in tuple('[{"'):
        try:
            return json.JSONDecoder().raw_decode(text, place)
        except (ValueError, RecursionError):
            raise UsageError(texts.bad_value.format(name=name, text=text[place:])) from None
    word = _WORD.match(text, place)
    assert word is not None  # it matches the empty word too
    return _literal(name, word[0].removesuffix(",")), word.end()


def _literal(name: str, word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if name == "stop":
        return [word]
    for kind in (int, float):
        try:
            value = kind(word)
        except ValueError:
            continue
        return [value] if name == "stop_ids" else value
    return word
