"""Texts as arrays of numbers: folded characters, words with their places, and 64-bit hashes of runs of either.

What trained filters and the search for test items count must be the same in every script and quick in numpy. A *unit*
is a run of letters, digits and marks, or one character of a script without spaces (kiloq.prepare.rules.text); case and
compatibility forms (full-width letters, say) are folded one character to one, so that places in the folded text are
places in the text. The hash of a run is a polynomial modulo 2**64 (Karp and Rabin 1987), taken as a difference of
prefix sums, so that runs of all lengths cost one subtraction each; kiloq.core.hashing spreads its bits.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kiloq.core.hashing import GOLDEN, mix
from kiloq.prepare.rules.text import UNSPACED

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

OTHER, WORD, SINGLE = 0, 1, 2  # kinds of characters: neither, part of a word, a unit of its own

_CODES = 0x110000  # of Unicode
_FOLDED = 0x30000  # above are no letters with case and no compatibility forms but Han variants (Unicode 16)
_BASE = GOLDEN  # of the polynomial: odd, so that it has an inverse


class Units(NamedTuple):
    """The units of a text in their order; n of them, one row each."""

    hashes: U64
    starts: I64  # in characters
    ends: I64
    single: npt.NDArray[np.bool_]  # a character of a script without spaces


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The characters of a text as numbers; a lone surrogate is its own."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def folded(text: str) -> npt.NDArray[np.uint32]:
    """The characters of a text without differences of case and of compatibility forms, as many as before."""
    found: npt.NDArray[np.uint32] = _fold_table()[code_points(text)]
    return found


def kinds(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """OTHER, WORD or SINGLE for every character."""
    found: npt.NDArray[np.uint8] = _kind_table()[codes]
    return found


def units_of(codes: npt.NDArray[np.uint32]) -> Units:
    """The units of a folded text."""
    kind = kinds(codes)
    word, single = kind == WORD, kind == SINGLE
    first, last = single.copy(), single.copy()
    first[:1] |= word[:1]
    first[1:] |= word[1:] & ~word[:-1]
    last[-1:] |= word[-1:]
    last[:-1] |= word[:-1] & ~word[1:]
    starts, ends = np.flatnonzero(first), np.flatnonzero(last) + 1
    return Units(Runs(codes).hashes(starts, ends), starts, ends, single[starts])


class Runs:
    """Hashes of runs of a sequence of numbers, each at the cost of a subtraction."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        powers, self._inverses = _powers(1 << max(16, len(values).bit_length()))
        self._sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum((values.astype(np.uint64) + np.uint64(1)) * powers[: len(values)], out=self._sums[1:])

    def hashes(self, starts: I64, ends: I64) -> U64:
        """The hash of values[start:end] for each pair. Runs of equal values are equal wherever they stand."""
        return mix((self._sums[ends] - self._sums[starts]) * self._inverses[starts])

    def grams(self, n: int) -> U64:
        """The hashes of all runs of n values; none where there are fewer values."""
        count = max(0, len(self._sums) - n)
        return mix((self._sums[n : n + count] - self._sums[:count]) * self._inverses[:count])


def text_hash(text: str) -> int:
    """A number of 64 bits that depends on the text alone: for shares of documents that are the same on every run."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@cache
def _powers(count: int) -> tuple[U64, U64]:
    """The powers of the base and of its inverse."""
    inverse = pow(_BASE, -1, 1 << 64)
    made = []
    for base in (_BASE, inverse):
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        made.append(np.cumprod(factors, dtype=np.uint64))
    return made[0], made[1]


@cache
def _fold_table() -> npt.NDArray[np.uint32]:
    table = np.arange(_CODES, dtype=np.uint32)
    for code in range(_FOLDED):
        plain = unicodedata.normalize("NFKC", chr(code)).lower()
        if len(plain) == 1:
            table[code] = ord(plain)
    return table


@cache
def _kind_table() -> npt.NDArray[np.uint8]:
    characters = "".join(map(chr, range(_CODES)))
    table = np.fromiter(map(str.isalnum, characters), np.uint8, _CODES)
    marks = [code for code in range(_FOLDED) if unicodedata.category(chr(code))[0] == "M"]
    table[marks] = WORD
    table[[found.start() for found in UNSPACED.finditer(characters)]] = SINGLE
    return table
