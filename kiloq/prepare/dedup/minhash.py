"""MinHash signatures of texts: what share of their shingles two texts have in common, in a few numbers.

A shingle is n units that follow each other: words in spaced text, characters in unspaced scripts. The signature is the
fast similarity sketch (Dahlgaard, Knudsen, Thorup 2017): turn by turn every shingle falls into one of the K places, the
smallest hash stays, and a place that is taken keeps what an earlier turn gave it; from turn K on, turn K + k fills
place k. Each place agrees between two texts with the probability of their Jaccard similarity, as in K permutations, but
a text of n shingles costs about n + K ln K hashes and not n K. Everything runs on arrays of many texts at once; what
a text's signature is depends on the text alone. Signatures are part of the keys on disk, so the constants never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from kiloq.core.hashing import GOLDEN, mix
from kiloq.prepare.dedup.normal import ALONE, GAP, PIECE_CHARS, SYMBOL, WORD, Array, cut, fold, groups

EMPTY = np.uint64(2**64 - 1)  # a place that no shingle has; all places of a text without a word are EMPTY
BLOCK = 1 << 18  # hashes of several turns at once. Ours
ENOUGH = 64  # times K: with so many shingles a place is left empty with probability under K e^-64

_BASE = GOLDEN  # odd, so it has an inverse modulo 2^64
_STEP = np.uint64(0xD1342543DE82EF95)  # of the shingle's polynomial: a multiplier of Steele and Vigna 2021
_TURN_BITS = np.uint64(48)  # a value is turn << 48 | 48 bits of a hash


class Units(NamedTuple):
    """The units of several texts, one after another."""

    hashes: Array  # uint64 [units]
    counts: Array  # int64 [texts]: units of each text
    unspaced: Array  # bool [texts]: whether most letters are of scripts without spaces between words


def signatures(texts: Sequence[str], places: int, words: int, characters: int) -> Array:
    """uint64 [texts, places]. A shingle has `words` units, in unspaced text `characters`; a shorter text is one."""
    rows = np.empty((len(texts), places), np.uint64)
    for start, end in groups(texts):
        if len(texts[start]) > PIECE_CHARS:
            rows[start] = _long(texts[start], places, words, characters)
        else:
            shingles, owners = _shingles(units_of(texts[start:end]), words, characters)
            rows[start:end] = _sketch(shingles, owners, end - start, places)
    return rows


def units_of(texts: Sequence[str]) -> Units:
    """A hash for every word and for every character of an unspaced script; equal units have equal hashes.

    The hash is the polynomial of the unit's code points: sums from the start of all texts, the start's part taken off.
    """
    codes, kinds, bounds = fold(texts)
    word, alone = kinds == WORD, kinds == ALONE
    first = alone | word
    first[1:] &= alone[1:] | ~word[:-1]
    starts = np.flatnonzero(first)
    powers, inverses = _powers(len(codes))
    totals = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(np.where(kinds == SYMBOL, np.uint32(GAP), codes) * powers, out=totals[1:])
    sums = np.diff(totals[starts], append=totals[-1:]) * inverses[starts]
    counts = np.diff(np.searchsorted(starts, bounds))
    single, others = (np.add.reduceat(kind, bounds[:-1], dtype=np.int64) for kind in (alone, word))
    return Units(mix(sums), counts, single > others)


@cache
def _tables(size: int) -> tuple[Array, Array]:
    """Powers of _BASE and of its inverse modulo 2^64, uint64 [size] each."""
    pair = (np.full(size, base, np.uint64) for base in (_BASE, pow(_BASE, -1, 1 << 64)))
    powers, inverses = (np.multiply.accumulate(base) for base in pair)
    return powers, inverses


def _powers(size: int) -> tuple[Array, Array]:
    """The first `size` powers; tables double, so few are made."""
    powers, inverses = _tables(1 << max(size, 2 * PIECE_CHARS).bit_length())
    return powers[:size], inverses[:size]


def _shingles(units: Units, words: int, characters: int) -> tuple[Array, Array]:
    """Shingles of all texts, uint64, and the number of the text that each is of, int64."""
    owners = np.repeat(np.arange(len(units.counts)), units.counts)
    if words == characters or not units.unspaced.any():
        return _windows(units.hashes, owners, units.counts, words)
    sizes = np.where(units.unspaced, characters, words)
    parts = []
    for size in (words, characters):
        chosen = (sizes == size)[owners]
        parts.append(_windows(units.hashes[chosen], owners[chosen], np.where(sizes == size, units.counts, 0), size))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _windows(hashes: Array, owners: Array, counts: Array, size: int) -> tuple[Array, Array]:
    """Every `size` units in a row that are of one text; all units of a text that has fewer."""
    long = max(0, len(hashes) - size + 1)
    sums = np.zeros(long, np.uint64)
    for offset in range(size):
        sums *= _STEP
        sums += hashes[offset : offset + long]
    whole = owners[:long] == owners[size - 1 :]
    short = np.flatnonzero((counts > 0) & (counts < size))
    starts = (np.cumsum(counts) - counts)[short]
    parts = np.zeros(len(short), np.uint64)
    for offset in range(size - 1):
        inside = offset < counts[short]
        parts[inside] = parts[inside] * _STEP + hashes[starts[inside] + offset]
    return np.concatenate([sums[whole], parts]), np.concatenate([owners[:long][whole], short])


def _sketch(shingles: Array, owners: Array, texts: int, places: int) -> Array:
    """The signatures of `texts` texts, uint64 [texts, places]."""
    values = np.full(texts * places, EMPTY)
    turn, count = 0, 1
    while turn < 2 * places and len(shingles):
        count = min(count, 2 * places - turn)
        _take_turns(values, shingles, owners * places, places, turn, count)
        turn += count
        open_texts = (values.reshape(texts, places) == EMPTY).any(axis=1)
        live = open_texts[owners]
        shingles, owners = shingles[live], owners[live]
        if turn > 1:  # texts that are still open have few different shingles, or the same ones many times
            shingles, owners = _different(shingles, owners)
        count = min(4 * count, max(1, BLOCK // max(1, len(shingles))))
    return values.reshape(texts, places)


def _take_turns(values: Array, shingles: Array, firsts: Array, places: int, turn: int, count: int) -> None:
    """Lets every shingle fall once in each of `count` turns; `values` keeps the smallest of each place."""
    turns = np.arange(turn, turn + count, dtype=np.uint64)[:, None]
    hashes = mix(shingles + mix((turns + np.uint64(1)) * np.uint64(_BASE)))
    fallen = ((hashes >> np.uint64(32)) * np.uint64(places) >> np.uint64(32)).astype(np.int64)
    fixed = np.arange(turn, turn + count) - places
    fallen[fixed >= 0] = fixed[fixed >= 0, None]
    hashes &= (np.uint64(1) << _TURN_BITS) - np.uint64(1)
    np.minimum.at(values, (fallen + firsts).ravel(), (hashes | turns << _TURN_BITS).ravel())


def _different(shingles: Array, owners: Array) -> tuple[Array, Array]:
    """Each shingle of each text once."""
    order = np.lexsort((shingles, owners))
    shingles, owners = shingles[order], owners[order]
    new = np.ones(len(shingles), bool)
    new[1:] = (shingles[1:] != shingles[:-1]) | (owners[1:] != owners[:-1])
    return shingles[new], owners[new]


def _long(text: str, places: int, words: int, characters: int) -> Array:
    """The signature of a text of any length, piece by piece, so that memory stays within that of a piece.

    Whether it is unspaced is judged by its first piece. Uint64 [places].
    """
    row = np.full(places, EMPTY)
    seen = np.empty(0, np.uint64)
    for shingles in _streamed(text, words, characters):
        none = np.zeros(len(shingles), np.int64)
        _take_turns(row, shingles, none, places, 0, 1)
        if len(seen) <= ENOUGH * places:
            seen = np.union1d(seen, shingles)
    if len(seen) > ENOUGH * places:
        return row
    whole: Array = _sketch(seen, np.zeros(len(seen), np.int64), 1, places)[0]
    return whole


def _streamed(text: str, words: int, characters: int) -> Iterator[Array]:
    """The shingles of a long text, piece by piece; those across two pieces come with the second."""
    before, size, enough = np.empty(0, np.uint64), 0, False
    for piece in cut(text):
        units = units_of([piece])
        size = size or (characters if units.unspaced[0] else words)
        before = np.concatenate([before, units.hashes])
        if len(before) >= size:
            enough = True
            yield _of_one(before, size)
            before = before[len(before) - size + 1 :]
    if not enough:
        yield _of_one(before, size)


def _of_one(hashes: Array, size: int) -> Array:
    """The shingles of one text's units."""
    shingles, _ = _windows(hashes, np.zeros(len(hashes), np.int64), np.array([len(hashes)]), size)
    return shingles
