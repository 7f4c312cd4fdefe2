"""A set of 64-bit keys laid out for millions of look-ups at once, in a file that processes share.

Linear probing (Knuth, volume 3, section 6.4) over keys that are hashes already: a key's home is its highest bits, and
keys lie in ascending order, so that a probe ends at the first larger key. Empty slots hold the largest number, which
no key may be; the last slot is always empty. What belongs to a key lies in other arrays at the key's slot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kiloq.prepare.models.units import I64, U64

EMPTY = np.uint64((1 << 64) - 1)
LOAD = 0.6  # keys per slot, at most: 2 probes on average for a key that is there, 4 for another (Knuth)
MAX_PROBES = 1_024  # ours; five million hashes need 15


class Table(NamedTuple):
    """The slots: 2**bits homes and room for what runs over."""

    slots: U64
    bits: int

    def find(self, keys: U64) -> I64:
        """The slot of every key, or -1 for one that is not there."""
        at = (keys >> np.uint64(64 - self.bits)).astype(np.int64)
        held = self.slots[at]
        found = np.where(held == keys, at, -1)
        left = np.flatnonzero(held < keys)
        at, keys = at[left], keys[left]
        for _ in range(MAX_PROBES):
            if not len(left):
                break
            at += 1
            held = self.slots[at]
            hit = held == keys
            found[left[hit]] = at[hit]
            more = held < keys
            left, at, keys = left[more], at[more], keys[more]
        return found


def lay_out(keys: U64, load: float = LOAD) -> tuple[Table, I64]:
    """A table of `keys` (ascending, each once, none of them EMPTY) and the slot of each."""
    bits = max(1, int(np.ceil(np.log2(max(1, len(keys)) / load))))
    while True:
        home = (keys >> np.uint64(64 - bits)).astype(np.int64)
        order = np.arange(len(keys), dtype=np.int64)
        places = order + np.maximum.accumulate(home - order) if len(keys) else order
        if not len(keys) or int((places - home).max()) < MAX_PROBES:
            break
        bits += 1
    slots = np.full(max(1 << bits, int(places[-1]) + 1 if len(keys) else 0) + 1, EMPTY, np.uint64)
    slots[places] = keys
    return Table(slots, bits), places


def fault(slots: npt.NDArray[np.uint64], bits: int) -> str | None:
    """What is wrong with slots that a file gives, or None: then every key in them is found, and no look-up leaves them."""
    if not 1 <= bits <= 40 or len(slots) <= 1 << bits:
        return f"{len(slots):,} slots do not hold 2**{bits} homes"
    if slots[-1] != EMPTY:
        return "its last slot is not empty"
    places = np.flatnonzero(slots != EMPTY)
    keys = slots[places]
    home = (keys >> np.uint64(64 - bits)).astype(np.int64)
    gaps = np.cumsum(slots == EMPTY)
    lost = (places - home < 0) | (places - home >= MAX_PROBES) | (gaps[places] > gaps[home]) | (slots[home] == EMPTY)
    return "its keys are out of order" if lost.any() or (keys[1:] <= keys[:-1]).any() else None
