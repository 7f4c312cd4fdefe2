"""The order of a mixed stream of documents, as a pure function of (seed, number of the draw).

Training can stop and go on, or change its number of workers, and sees the same documents, because nothing is kept
between draws: in every block of BLOCK draws each source has its exact number of places, at places that the seed
shuffles, and every epoch of a source is a permutation of its documents of its own. A draw costs a look into two cached
permutations. Source of the generator: Salmon et al. 2011 (Philox), whose raw words NumPy keeps stable (NEP 19); orders
are made by sorting these, for NumPy's own shuffles may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kiloq.core.errors import UsageError

BLOCK = 1 << 16  # draws; a share is a whole number of these, so it is met to 0.0015% and exactly over a block
Ints = np.ndarray[Any, np.dtype[Any]]


class Draw(NamedTuple):
    """One document of the stream."""

    source: int  # place in the list of sources
    epoch: int  # how often the source has been read before
    document: int  # number within the source


class Mixture:
    """Sources with their `documents` each and their `places` in a block of BLOCK draws."""

    def __init__(self, documents: Sequence[int], places: Sequence[int], seed: int) -> None:
        if len(documents) != len(places) or sum(places) != BLOCK or min(places, default=0) < 0:
            raise UsageError(f"the places {list(places)} do not add up to {BLOCK} for {len(documents)} sources")
        if any(count < 1 <= place for count, place in zip(documents, places, strict=True)):
            raise UsageError("a source without documents has places in the mix: give it weight 0")
        self.documents, self.places, self.seed = tuple(documents), tuple(places), seed
        self._epoch = lru_cache(maxsize=2 * len(documents))(self._ordered)  # at the end of an epoch its draws mix

    def draw(self, number: int) -> Draw:
        """Draw `number` (0, 1, …) of the stream."""
        block, place = divmod(number, BLOCK)
        sources, earlier = _block(self.seed, block, self.places)
        source = int(sources[place])
        nth = block * self.places[source] + int(earlier[place])  # of this source's draws
        epoch, at = divmod(nth, self.documents[source])
        return Draw(source, epoch, int(self._epoch(source, epoch)[at]))

    def _ordered(self, source: int, epoch: int) -> Ints:
        """The order of a source's documents in one epoch."""
        return shuffled(self.documents[source], self.seed, 1, source, epoch)

    def batch(self, step: int, size: int) -> list[Draw]:
        """The `size` draws of training step `step`."""
        return [self.draw(number) for number in range(step * size, (step + 1) * size)]


def places_of(shares: Sequence[float]) -> list[int]:
    """`shares` of the draws as whole numbers that add up to BLOCK, by largest remainder; a share above 0 gets a place."""
    total = sum(shares)
    if not total > 0 or min(shares) < 0 or total == float("inf"):
        raise UsageError(f"the shares {list(shares)} are no shares: give numbers from 0 with one above it")
    exact = [share / total * BLOCK for share in shares]
    places = [max(int(value), int(value > 0)) for value in exact]
    order = sorted(range(len(shares)), key=lambda at: (places[at] - exact[at], at))
    missing = BLOCK - sum(places)
    for at in order[: max(missing, 0)]:
        places[at] += 1
    for _ in range(max(-missing, 0)):  # places given to tiny shares come from the largest
        places[places.index(max(places))] -= 1
    return places


def shuffled(count: int, *key: int) -> Ints:
    """The numbers 0 to `count` - 1 in an order of their own for every key (numbers from 0): int64 [count]."""
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(words, kind="stable")


@lru_cache(maxsize=4)
def _block(seed: int, block: int, places: tuple[int, ...]) -> tuple[Ints, Ints]:
    """The source at each place of a block, and how many places before it in the block have the same source."""
    sources = np.repeat(np.arange(len(places)), places)[shuffled(BLOCK, seed, 0, block)]
    earlier = np.empty(BLOCK, np.int64)
    order = np.argsort(sources, kind="stable")
    starts = np.concatenate([[0], np.cumsum(places)[:-1]])
    earlier[order] = np.arange(BLOCK) - np.repeat(starts, places)
    return sources, earlier
