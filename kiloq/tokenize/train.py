"""Byte-level BPE training: from the counts of a text's pieces to a vocabulary, exactly as counting anew would do.

The most frequent pair of neighbours becomes a token until there are enough; of equally frequent pairs the one with
the smaller left id, then the smaller right id, goes first (rustbpe's rule). Source of the algorithm: Sennrich et al.
2016 (arXiv 1508.07909), over bytes as in GPT-2. It starts from the 256 bytes or goes on from a vocabulary's ranks, as
Qwen's did from cl100k's; counts are integers, so weights cost no exactness.

All unique pieces lie in one array with a slot for each byte; a token stands in its first slot and knows its
neighbours' slots. A merge visits only the slots where its pair has stood, and corrects the counts of the pairs beside
them. Counts of a pair never grow once the merge that brought it has been made. So the heap is corrected when a stale
entry comes up, and rare pairs, which are most of all and whose turn may never come, are not kept: when no frequent one
is left, all pairs are counted anew and the next ones kept.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

import numpy as np

from kiloq.core.errors import UsageError
from kiloq.tokenize.bpe import NO_RANK, bpe_parts
from kiloq.tokenize.vocabulary import BYTES

MAX_TOKENS = 1 << 20  # ours; the largest vocabularies in use have 2^18
MAX_SLOTS = 1 << 28  # ours: bytes of different pieces; about 60 bytes of memory each, so 16 GB
KEPT = 1024  # ours: a pair so many times rarer than the most frequent one is not kept; 32k tokens take two counts
MAX_COUNT = 1 << 62  # all counts together fit into 64 bits
MANY = 64  # ours: from so many places on, numpy is quicker than Python
KEY_BITS = 63  # of a number that can be sorted
_SHIFT = 21  # a pair as one number: left id above, right id below
_LOW = (1 << _SHIFT) - 1
_SLOT_BITS = 29  # MAX_SLOTS and slot 0 before them
_GONE = -1  # in a slot that is not the first of a token

Encode = Callable[[bytes], Sequence[int]]
Ints = np.ndarray[Any, np.dtype[Any]]
Fresh = Mapping[int, "Sequence[int] | Ints"]


def train(
    counts: Mapping[bytes, int],
    size: int,
    *,
    start: Mapping[bytes, int] | None = None,
    encode: Encode | None = None,
    progress: Callable[[int], None] = lambda made: None,
) -> dict[bytes, int]:
    """Ranks of `size` tokens for pieces that occur `counts` times; those of `start`, if given, come first.

    encode: the ranks of a piece under `start`, whose ranks run from 0 without gaps. Raises UsageError for a size out
    of range, counts that are too much for memory, or pieces that end before there are enough tokens.
    """
    ranks = dict(start) if start is not None else {byte: rank for rank, byte in enumerate(BYTES)}
    check_size(size, len(ranks))
    slots, occurring = sum(map(len, counts)), sum(len(piece) * count for piece, count in counts.items())
    if slots > MAX_SLOTS or occurring > MAX_COUNT:
        raise UsageError(
            f"the text has {slots:,} bytes of different pieces ({occurring:,} with repetitions and weights), and "
            f"training takes at most {MAX_SLOTS:,} ({MAX_COUNT:,}): give less text or smaller weights"
        )
    with _no_collection():
        state = _Pieces(counts, ranks, encode if start is not None else None)
        _grow(state, ranks, size, progress)
    return ranks


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's search for cycles: there are millions of small objects here, none in a cycle (a third faster)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _grow(state: _Pieces, ranks: Mapping[bytes, int], size: int, progress: Callable[[int], None]) -> None:
    while len(ranks) < size:
        pair = state.best()
        if pair is None:
            raise UsageError(
                f"the text has no pairs left after {len(ranks):,} tokens, and --vocab-size is {size:,}: "
                f"give more text or --vocab-size {len(ranks)}"
            )
        state.merge(pair)
        progress(len(ranks))


def check_size(size: int, least: int) -> None:
    """Raises UsageError unless `size` tokens can be trained on top of `least`."""
    if not least <= size <= MAX_TOKENS:
        raise UsageError(
            f"--vocab-size {size:,} is out of range: it can be {least:,} (the tokens to start from) to {MAX_TOKENS:,}"
        )


class _Pieces:
    """All unique pieces as tokens, the counts of their frequent pairs, and where each of these has stood."""

    def __init__(self, counts: Mapping[bytes, int], ranks: dict[bytes, int], encode: Encode | None) -> None:
        self._ranks = ranks
        self._checked = encode is not None  # where all merges are ours, two tokens never make a third that is there
        self._bytes_of = sorted(ranks, key=ranks.__getitem__)
        # Slot 0 stands for "no neighbour"; slot 1 + at is the byte `at` of all pieces joined.
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        size = int(lengths.sum()) + 1
        tokens, slots = _bytes(counts, ranks) if encode is None else _encoded(counts, encode, self._bytes_of)
        first = np.zeros(size + 1, bool)
        first[np.cumsum(lengths) + 1] = True  # where the next piece begins
        inside = ~first[slots[1:]]
        leads, follows = slots[:-1][inside], slots[1:][inside]
        self._token = _filled(size, slots, tokens, _GONE)
        self._next = _filled(size, leads, follows, 0)
        self._previous = _filled(size, follows, leads, 0)
        del tokens, slots, first, inside, leads, follows
        times = np.fromiter((0, *counts.values()), np.int64, len(counts) + 1)
        self._weight = _array(np.repeat(times, np.append(1, lengths)))
        self._arrays = tuple(
            np.frombuffer(a, a.typecode) for a in (self._token, self._next, self._previous, self._weight)
        )
        self._count_pairs()

    def _count_pairs(self) -> None:
        """Count all pairs, and keep those that are frequent by the standard of the most frequent one."""
        token, after, _, weight = self._arrays
        leads = np.flatnonzero(after).astype(np.int32)
        leads = leads[token[leads] != _GONE]
        bits = len(self._ranks).bit_length()
        pairs = token[leads].astype(np.int64) << bits | token[after[leads]]
        pairs, leads = _sorted(pairs, leads, 2 * bits)
        begins = _begins(pairs)
        sums = np.add.reduceat(weight[leads], begins) if len(pairs) else pairs
        # Of a pair that _encode_again brings back, the count may grow: there all are kept.
        self._least = 1 if self._checked else max(1, int(sums.max(initial=0)) // KEPT)
        ends = np.append(begins[1:], len(pairs))
        self._counts: dict[int, int] = {}
        self._where: dict[int, Ints] = {}
        for at in np.flatnonzero(sums >= self._least).tolist():
            left, right = divmod(int(pairs[begins[at]]), 1 << bits)
            pair = left << _SHIFT | right
            self._counts[pair], self._where[pair] = int(sums[at]), leads[begins[at] : ends[at]].copy()
        self._heap = [(-count, pair) for pair, count in self._counts.items()]
        heapify(self._heap)

    def best(self) -> int | None:
        """The pair to merge next; None if no pair is left."""
        pair = self._most_frequent()
        while pair is None and self._least > 1:
            self._count_pairs()
            pair = self._most_frequent()
        return pair

    def _most_frequent(self) -> int | None:
        heap, counts = self._heap, self._counts
        while heap:
            negative, pair = heap[0]
            count = counts.get(pair, 0)
            if count < self._least:  # of the pairs that are not kept, one may be more frequent
                heappop(heap)
            elif count == -negative:
                heappop(heap)
                return pair
            else:
                heapreplace(heap, (-count, pair))
        return None

    def merge(self, pair: int) -> None:
        """Make a token of `pair` and put it wherever the pair stands, from the left."""
        left, right, made = pair >> _SHIFT, pair & _LOW, len(self._ranks)
        self._bytes_of.append(self._bytes_of[left] + self._bytes_of[right])
        self._ranks[self._bytes_of[made]] = made
        slots = self._where.pop(pair)
        # Between merges of "abab" there is a moment at which its tokens are ab, a, b; in a start these may meet as "aba".
        meets = self._checked and self._bytes_of[made] + self._bytes_of[left] in self._ranks
        if left != right and len(slots) >= MANY and not meets:
            fresh = self._replace_many(slots, left, right, made)
        else:
            fresh = self._replace(slots.tolist(), left, right, made)
        del self._counts[pair]
        known = []
        if self._checked:
            ranks, bytes_of = self._ranks, self._bytes_of
            known = [p for p in fresh if bytes_of[p >> _SHIFT] + bytes_of[p & _LOW] in ranks]
        for new, places in fresh.items():
            if (count := self._counts[new]) >= self._least:
                self._where[new] = np.asarray(places, np.int32)
                heappush(self._heap, (-count, new))
            else:
                del self._counts[new]
        if known:
            self._encode_again({self._first(int(slot)) for p in known for slot in fresh[p]})

    def _replace(self, slots: Sequence[int], left: int, right: int, made: int) -> Fresh:
        """The work in the slots, one by one from the left; returns the new pairs and where they stand."""
        token, after, before, weight = self._token, self._next, self._previous, self._weight
        counts, fresh = self._counts, dict[int, list[int]]()
        made_above, right_above = made << _SHIFT, right << _SHIFT
        for slot in slots:
            if token[slot] != left:
                continue
            second = after[slot]
            if not second or token[second] != right:
                continue
            times, last, beyond = weight[slot], before[slot], after[second]
            token[slot], token[second], after[slot] = made, _GONE, beyond
            if last:
                above = token[last] << _SHIFT
                if (old := above | left) in counts:
                    counts[old] -= times
                if (new := above | made) in fresh:
                    counts[new] += times
                    fresh[new].append(last)
                else:
                    counts[new], fresh[new] = times, [last]
            if beyond:
                before[beyond] = slot
                below = token[beyond]
                if (old := right_above | below) in counts:
                    counts[old] -= times
                if (new := made_above | below) in fresh:
                    counts[new] += times
                    fresh[new].append(slot)
                else:
                    counts[new], fresh[new] = times, [slot]
        return fresh

    def _replace_many(self, slots: Ints, left: int, right: int, made: int) -> Fresh:
        """The same for two different tokens and many slots at once; only pairs that are frequent are returned.

        Two merged pairs side by side share one old pair.
        """
        token, after, before, weight = self._arrays
        slots = slots[token[slots] == left]
        seconds = after[slots]
        good = (token[seconds] == right) & (seconds > 0)
        slots, seconds = slots[good], seconds[good]
        beyond = after[seconds]
        token[slots], token[seconds], after[slots] = made, _GONE, beyond
        before[beyond] = slots  # slot 0, which is nobody's neighbour, is written too and never read
        last = before[slots]
        last = last[(last > 0) & (token[last] != made)]
        firsts, beyond = slots[beyond > 0], beyond[beyond > 0]
        # A neighbour on the right, which has the higher keys, or on the left; and the slot where the pair stands.
        keys = np.concatenate([token[last], token[beyond] | np.int64(1 << _SHIFT)]) << _SLOT_BITS
        keys |= np.concatenate([last, firsts])
        keys.sort()
        places = (keys & ((1 << _SLOT_BITS) - 1)).astype(np.int32)
        keys >>= _SLOT_BITS
        begins = _begins(keys)
        if not len(begins):
            return {}
        sums, ends = np.add.reduceat(weight[places], begins), np.append(begins[1:], len(keys))
        keys = keys[begins]
        counts = self._counts
        for key, count in zip(keys.tolist(), sums.tolist(), strict=True):
            other = key & _LOW
            old = right << _SHIFT | (left if other == made else other) if key > _LOW else other << _SHIFT | left
            if old in counts:
                counts[old] -= count
        fresh: dict[int, Sequence[int] | Ints] = {}
        for at in np.flatnonzero(sums >= self._least).tolist():
            key = int(keys[at])
            new = made << _SHIFT | key & _LOW if key > _LOW else key << _SHIFT | made
            counts[new], fresh[new] = int(sums[at]), places[begins[at] : ends[at]].copy()
        return fresh

    def _first(self, slot: int) -> int:
        while self._previous[slot]:
            slot = self._previous[slot]
        return slot

    def _encode_again(self, firsts: set[int]) -> None:
        """Encode whole pieces with all ranks: a new token has brought two together that are a token of the start.

        Only where the start has tokens that its own merges do not make; the counts of pairs may grow here.
        """
        changed: dict[int, set[int]] = {}
        for first in sorted(firsts):
            old, slot = [], first
            while slot:
                old.append(slot)
                slot = self._next[slot]
            times = self._weight[first]
            for at in old[:-1]:
                self._counts[self._token[at] << _SHIFT | self._token[self._next[at]]] -= times
            piece = b"".join(self._bytes_of[self._token[at]] for at in old)
            for at in old:
                self._token[at] = _GONE
            parts = [piece] if piece in self._ranks else bpe_parts(piece, self._ranks, NO_RANK)
            self._lay_out(first, parts, changed)
        for pair, slots in changed.items():
            known = self._where.get(pair, np.empty(0, np.int32))
            self._where[pair] = np.union1d(known, np.array(sorted(slots), np.int32))
            heappush(self._heap, (-self._counts[pair], pair))

    def _lay_out(self, first: int, parts: Sequence[bytes], changed: dict[int, set[int]]) -> None:
        slot, last = first, 0
        for part in parts:
            self._token[slot], self._previous[slot], self._next[slot] = self._ranks[part], last, 0
            if last:
                self._next[last] = slot
                pair = self._token[last] << _SHIFT | self._token[slot]
                self._counts[pair] = self._counts.get(pair, 0) + self._weight[first]
                changed.setdefault(pair, set()).add(last)
            last, slot = slot, slot + len(part)


def _sorted(pairs: Ints, slots: Ints, pair_bits: int) -> tuple[Ints, Ints]:
    """Ascending pairs and their slots, which ascend within a pair. As one number both are sorted in half the time."""
    slot_bits = int(slots.max(initial=0)).bit_length()
    if pair_bits + slot_bits > KEY_BITS:
        order = np.argsort(pairs, kind="stable")
        return pairs[order], slots[order]
    keys = pairs << slot_bits | slots
    keys.sort()
    return keys >> slot_bits, (keys & ((1 << slot_bits) - 1)).astype(np.int32)


def _begins(keys: Ints) -> Ints:
    """Where each different one of sorted keys begins."""
    return np.flatnonzero(np.concatenate([keys[:1] >= 0, keys[1:] != keys[:-1]]))


def _array(values: Ints) -> array[int]:
    """The same numbers, which Python reads one by one faster from an array of its own."""
    made = array(values.dtype.char)
    made.frombytes(values.view(np.uint8).data)
    return made


def _filled(size: int, at: Ints, values: Ints, rest: int) -> array[int]:
    """An array of 32-bit numbers: `values` at the places `at`, `rest` elsewhere."""
    filled = np.full(size, rest, np.int32)
    filled[at] = values
    return _array(filled)


def _bytes(counts: Iterable[bytes], ranks: Mapping[bytes, int]) -> tuple[Ints, Ints]:
    """Ids and slots of the tokens of all pieces, one token a byte."""
    of_byte = np.array([ranks[byte] for byte in BYTES], np.int32)
    tokens = of_byte.take(np.frombuffer(b"".join(counts), np.uint8))
    return tokens, np.arange(1, len(tokens) + 1, dtype=np.int32)


def _encoded(counts: Iterable[bytes], encode: Encode, bytes_of: Sequence[bytes]) -> tuple[Ints, Ints]:
    tokens = np.fromiter((rank for piece in counts for rank in encode(piece)), np.int32)
    width = np.fromiter(map(len, bytes_of), np.int64, len(bytes_of))[tokens]
    return tokens, (np.cumsum(width) - width + 1).astype(np.int32)
