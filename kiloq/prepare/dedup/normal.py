"""What texts are compared by: letters, digits and symbols without case, accents, punctuation and space.

It follows CCNet (Wenzek et al. 2020, section 3.1: lower case, no accents, no punctuation) with three differences.
Digits stay, for two tables or two exercises may differ in nothing else. Case folding and compatibility forms (NFKD)
replace lower case, so that full-width and ligature characters equal plain ones. Symbols are told from punctuation, and
a caller chooses whether they count. The mapping is a table over code points, so it is linear on any text; canonical
equivalence comes from kiloq.tokenize.normalize.nfc, which is linear too. Characters that Unicode assigns after Python's
version count as letters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from kiloq.prepare.rules.text import UNSPACED
from kiloq.tokenize.normalize import nfc

GAP, WORD, ALONE, SYMBOL, OTHER = range(5)  # kinds; ALONE: a character of a script without spaces between words
_KIND_BITS = 24  # an entry is kind << 24 | code point, which has 21 bits; of OTHER: | the number of its row
# Where a code point may be something other than itself and a letter: all but Han, Hangul, private use and empty planes.
_LOOKED_AT = ((0, 0x3400), (0x4DC0, 0x4E00), (0xA000, 0xAC00), (0xD7A4, 0xE000), (0xF900, 0x20000), (0xE0000, 0xE0200))
_HAN = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x323B0))  # as kiloq.prepare.rules.text has them

PIECE_CHARS = 1 << 16  # worked on at once: its arrays of 64 bits stay in a core's cache. Ours, benchmarks/dedup.py
WORD_CHARS = 1 << 10  # a longer word may be cut in two where a piece of a long text ends. Ours

Array = np.ndarray[Any, np.dtype[Any]]


class Folded(NamedTuple):
    """Texts one after another, each with a GAP behind it."""

    codes: Array  # uint32 [characters]: folded code points, 0 where the kind is GAP
    kinds: Array  # uint8 [characters]: GAP, WORD, ALONE or SYMBOL
    bounds: Array  # int64 [texts + 1]: where each text begins, and the end


def groups(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of texts that have at most PIECE_CHARS characters together, or are one text."""
    start = size = 0
    for place, text in enumerate(texts):
        if place > start and size + len(text) > PIECE_CHARS:
            yield start, place
            start, size = place, 0
        size += len(text)
    if start < len(texts):
        yield start, len(texts)


def cut(text: str) -> Iterator[str]:
    """Pieces of at most PIECE_CHARS characters that end at a space or newline where there is one near."""
    start = 0
    while start < len(text):
        end = start + PIECE_CHARS
        if end < len(text):
            near = max(text.rfind(" ", end - WORD_CHARS, end), text.rfind("\n", end - WORD_CHARS, end))
            end = near + 1 if near > start else end
        yield text[start:end]
        start = end


def fold(texts: Sequence[str]) -> Folded:
    """The comparable characters of `texts`, in time and memory (about 20 bytes a character) in proportion to them."""
    texts = [text if text.isascii() else nfc(text) for text in texts]
    codes = np.frombuffer("\n".join((*texts, "")).encode("utf-32-le", "surrogatepass"), "<u4")
    entries = _tables()[0].take(codes)
    bounds = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) + 1 for text in texts], out=bounds[1:])
    others = np.flatnonzero(entries >= OTHER << _KIND_BITS)
    if len(others):
        entries, bounds = _resized(entries, bounds, others)
    kinds = (entries >> np.uint32(_KIND_BITS)).astype(np.uint8)
    return Folded(entries & np.uint32((1 << _KIND_BITS) - 1), kinds, bounds)


def _resized(entries: Array, bounds: Array, others: Array) -> tuple[Array, Array]:
    """`entries` with those at `others` replaced by as many as they stand for, and the bounds moved accordingly."""
    _, rows, lengths = _tables()
    which = entries[others] & np.uint32((1 << _KIND_BITS) - 1)
    counts = np.ones(len(entries), np.int64)
    counts[others] = lengths[which]
    ends = np.concatenate([[0], np.cumsum(counts)])
    entries = np.repeat(entries, counts)
    columns = np.arange(rows.shape[1])
    filled = columns < lengths[which][:, None]
    entries[(ends[others][:, None] + columns)[filled]] = rows[which][filled]
    return entries, ends[bounds]


@cache
def _tables() -> tuple[Array, Array, Array]:
    """Entries by code point, uint32 [0x110000]; what each OTHER stands for, uint32 [others, most]; and lengths."""
    table = np.arange(0x110000, dtype=np.uint32) | np.uint32(WORD << _KIND_BITS)
    for first, end in _HAN:
        table[first:end] = np.arange(first, end, dtype=np.uint32) | np.uint32(ALONE << _KIND_BITS)
    others: dict[str, int] = {}
    for code in chain.from_iterable(range(*span) for span in _LOOKED_AT):
        folded = _folded(chr(code))
        if len(folded) == 1:
            table[code] = _entry(folded)
        elif folded and not any(map(_kind, folded)):
            table[code] = GAP
        else:
            table[code] = OTHER << _KIND_BITS | others.setdefault(folded, len(others))
    rows = np.zeros((len(others), max(map(len, others))), np.uint32)
    for folded, row in others.items():
        rows[row, : len(folded)] = [_entry(character) for character in folded]
    return table, rows, np.array([len(folded) for folded in others])


def _entry(character: str) -> int:
    kind = _kind(character)
    return kind << _KIND_BITS | ord(character) if kind else GAP


def _folded(character: str) -> str:
    """Compatibility form, case folded, without marks and without characters that only steer the layout."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(part for part in plain if unicodedata.category(part) not in ("Mn", "Me", "Cf"))


def _kind(character: str) -> int:
    category = unicodedata.category(character)
    if category[0] in "PZ" or category in ("Cc", "Cs"):
        return GAP
    if category[0] == "S":
        return SYMBOL
    return ALONE if UNSPACED.match(character) else WORD
