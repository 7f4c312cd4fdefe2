"""Unicode normalisation that stays linear: NFC as the original applies it, and lone surrogates as tiktoken reads them.

Python's `unicodedata.normalize` sorts combining marks by insertion, so 100,000 marks in changing order take minutes.
Long runs of marks are therefore put into canonical order here first (a stable sort, which is what the standard
defines), and the library finds nothing left to move.

Corpora are normalised in batches, where nearly everything is in form C already: `nfc_batch` looks every character up in
a table and gives to the library only the stretches in which something could change. Source: Unicode Standard Annex 15 (section 9, the quick check) and section
3.11 (D108, D109).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import regex  # type: ignore[import-untyped]

if TYPE_CHECKING:
    import numpy as np

DENSE = 16  # ours: a text with a stretch to change for so many characters is given to the library whole
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


def nfc_batch(texts: Sequence[str]) -> list[str]:
    """`well_formed(nfc(text))` of each text, in a fraction of the time where little has to change."""
    import numpy as np

    found = list(texts)
    wide = [at for at, text in enumerate(found) if not text.isascii()]
    if not wide:
        return found
    codes = np.frombuffer("\n".join(["", *map(found.__getitem__, wide)]).encode("utf-32-le", "surrogatepass"), "<u4")
    begins, ends = _may_change(codes)
    texts_end = np.cumsum([len(found[at]) + 1 for at in wide])
    edges = np.searchsorted(begins, [0, *texts_end])
    for place in np.flatnonzero(np.diff(edges)).tolist():
        text = found[wide[place]]
        start, some = int(texts_end[place]) - len(text), slice(edges[place], edges[place + 1])
        stretches = list(zip((begins[some] - start).tolist(), (ends[some] - start).tolist(), strict=True))
        if len(stretches) * DENSE > len(text):
            stretches = [(0, len(text))]
        pieces, done = [], 0
        for begin, end in stretches:
            pieces += [text[done : max(begin, 0)], well_formed(nfc(text[max(begin, 0) : end]))]
            done = end
        found[wide[place]] = "".join([*pieces, text[done:]])
    return found


_MARK = 1  # kinds of characters: sorted among others of its kind
_SECOND = 2  # may become one with a character before it
_OTHER = 4  # changes, or makes others change, wherever it stands
_BLOCK = 128
_TABLE_SIZE = 0x30000  # no character above has a form of its own; a test looks at all


class _Kinds(NamedTuple):
    kind: np.ndarray[Any, Any]  # uint8 [code point]: _MARK, _SECOND and _OTHER
    combining: np.ndarray[Any, Any]  # uint8 [code point]: the combining class
    last: np.ndarray[Any, Any]  # the same of the last character that it can be taken apart into
    pairs: np.ndarray[Any, Any]  # int64, ascending: first << 32 | second of characters that become one


@cache
def _kinds() -> _Kinds:
    """What the library knows of every character, as tables."""
    import numpy as np

    kind, combining, last = (np.zeros(_TABLE_SIZE, np.uint8) for _ in range(3))
    pairs = []
    for code in _known():
        character = chr(code)
        combining[code] = last[code] = unicodedata.combining(character)
        if parts := unicodedata.decomposition(character):
            if unicodedata.normalize("NFC", character) != character:
                kind[code] |= _OTHER
            elif not parts.startswith("<"):
                pairs.append(tuple(int(part, 16) for part in parts.split()))
                last[code] = unicodedata.combining(unicodedata.normalize("NFD", character)[-1])
    kind[combining > 0] |= _MARK
    kind[[second for _, second in pairs]] |= _SECOND
    kind[0x1161:0x1176] |= _OTHER  # vowels and final consonants of Hangul
    kind[0x11A8:0x11C3] |= _OTHER
    kind[0xD800:0xE000] |= _OTHER  # surrogates
    return _Kinds(kind, combining, last, np.sort(np.array([first << 32 | second for first, second in pairs], np.int64)))


def _known() -> Iterator[int]:
    """Characters of the table that are marks or can be taken apart, with their neighbours; without Hangul syllables."""
    for begin in (*range(0x80, 0xAC00, _BLOCK), *range(0xD780, _TABLE_SIZE, _BLOCK)):
        block = range(begin, begin + _BLOCK)
        text = "".join(map(chr, block))
        if not unicodedata.is_normalized("NFD", text) or any(map(unicodedata.combining, text)):
            yield from block


def _may_change(codes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Begins and ends of the stretches that normalisation may change, ascending; the first code is of no kind.

    A stretch is a character of no kind, which nothing before it joins, and all that follow it and are of some kind.
    """
    import numpy as np

    kinds = _kinds()
    at = np.flatnonzero(kinds.kind.take(codes, mode="clip"))  # the last of the table is of no kind
    here, before = codes[at].astype(np.int64), codes[at - 1].astype(np.int64)
    kind = kinds.kind[here]
    ours, theirs = kinds.combining[here], kinds.last.take(before, mode="clip")
    joined = before << 32 | here
    places = np.minimum(np.searchsorted(kinds.pairs, joined), len(kinds.pairs) - 1)
    joins = (kind & _SECOND > 0) & ((kinds.pairs[places] == joined) | (theirs > 0))
    unordered = (ours > 0) & (theirs > ours)
    first = np.diff(at, prepend=-1) != 1
    stretches = np.unique(np.cumsum(first)[(kind & _OTHER > 0) | joins | unordered]) - 1
    begins = np.flatnonzero(first)
    ends = np.append(begins[1:], len(at))
    return at[begins[stretches]] - 1, at[ends[stretches] - 1] + 1


def well_formed(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced by U+FFFD, as tiktoken's Python face does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
