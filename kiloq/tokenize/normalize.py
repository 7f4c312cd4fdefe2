"""Unicode normalisation that stays linear: NFC as the original applies it, and lone surrogates as tiktoken reads them.

Python's `unicodedata.normalize` sorts combining marks by insertion, so 100,000 marks in changing order take minutes.
Long runs of marks are therefore put into canonical order here first (a stable sort, which is what the standard
defines), and the library finds nothing left to move. Source: Unicode Standard Annex 15 and section 3.11 (D108, D109).
"""

from __future__ import annotations

import unicodedata
from functools import cache

import regex  # type: ignore[import-untyped]

SAMPLE_CHARS = 128  # ours: runs of marks shorter than this are left to the library (under 0.1 us per byte)


@cache
def _expressions() -> tuple[regex.Pattern[str], regex.Pattern[str]]:
    return regex.compile(rf"\p{{M}}{{{SAMPLE_CHARS}}}"), regex.compile(rf"\p{{M}}{{{SAMPLE_CHARS},}}")


def nfc(text: str) -> str:
    """`text` in Unicode normalisation form C, in linear time."""
    if text.isascii():
        return text
    sample, run = _expressions()
    if any(sample.match(text, at) for at in range(0, len(text), SAMPLE_CHARS)):
        text = run.sub(lambda found: _in_canonical_order(found.group()), text)
    return unicodedata.normalize("NFC", text)


def _in_canonical_order(marks: str) -> str:
    """`marks` decomposed, with every stretch of non-zero combining classes sorted stably by class."""
    import numpy as np

    decomposed = {mark: unicodedata.normalize("NFD", mark) for mark in set(marks)}
    if any(mark != parts for mark, parts in decomposed.items()):
        marks = "".join(map(decomposed.__getitem__, marks))
    codes = np.frombuffer(marks.encode("utf-32-le", "surrogatepass"), "<u4")
    class_of = np.zeros(0x110000, np.int16)
    for mark in set("".join(decomposed.values())):
        class_of[ord(mark)] = unicodedata.combining(mark)
    classes = class_of[codes]
    stretches = np.cumsum(classes == 0)  # a mark of class 0 opens a stretch and, being the lowest, stays its first
    order = np.lexsort((classes, stretches)) if stretches[-1] else np.argsort(classes, kind="stable")
    return codes[order].tobytes().decode("utf-32-le", "surrogatepass")


def well_formed(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced by U+FFFD, as tiktoken's Python face does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
