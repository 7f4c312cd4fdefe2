"""How a list of steps is cut into stages: what needs one document at a time runs together, what needs all ends a stage.

A *global step* (deduplication) compares documents of all parts. It runs in four acts: every part writes keys; keys that
may meet are grouped, a bounded number at a time; the groups are settled into a list of losers; every part drops its own
losers. Between the acts lie files, so each is resumable, and no act holds more than one part or one group of keys.
The last act of one stage and the first of the next are one pass over the documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from kiloq.prepare.documents import Result

Docs = np.ndarray[Any, np.dtype[np.uint64]]  # numbers of documents: part << 32 | row in what was read
NUMBER = "number"  # the column that holds them
ROW_BITS = 32


class Settled(NamedTuple):
    """What a global step came to."""

    losers: pa.Table  # `doc` uint64, sorted, and what `drop` needs to know
    clusters: dict[int, int]  # documents in a cluster -> clusters of that size; empty if it has no clusters


@runtime_checkable
class GlobalStep(Protocol):
    """A frozen dataclass of settings whose methods are pure; tables come in any order and go out sorted by `doc`."""

    name: ClassVar[str]
    clustered: ClassVar[bool]  # whether groups are edges that `settle` must put together

    def keys(self, batch: pa.RecordBatch, docs: Docs) -> pa.Table: ...  # band uint16, bucket uint64, doc uint64, …

    def ranks(self, batch: pa.RecordBatch, docs: Docs) -> pa.Table | None: ...  # doc, and what the best is chosen by

    def group(self, keys: pa.Table) -> pa.Table: ...  # all keys of some (band, bucket): losers, or edges

    def drop(self, batch: pa.RecordBatch, docs: Docs, losers: pa.Table) -> Result: ...


class Stage(NamedTuple):
    """One pass over all documents, by the places of steps in the recipe."""

    drop: int | None  # the global step whose losers go first
    local: tuple[int, ...]  # then these steps, document by document
    keys: int | None  # then the keys of this global step are written


def stages_of(steps: Sequence[Any]) -> list[Stage]:
    """The stages of a recipe; the last has no keys."""
    stages: list[Stage] = []
    drop: int | None = None
    local: list[int] = []
    for at, step in enumerate(steps):
        if isinstance(step, GlobalStep):
            stages.append(Stage(drop, tuple(local), at))
            drop, local = at, []
        else:
            local.append(at)
    return [*stages, Stage(drop, tuple(local), None)]


def docs_of(batch: pa.RecordBatch) -> Docs:
    """The numbers of a batch's documents."""
    return np.asarray(batch.column(NUMBER), np.uint64)


def numbered(batch: pa.RecordBatch, part: int, row: int) -> pa.RecordBatch:
    """`batch`, whose first document is the part's number `row`, with the column of numbers."""
    docs = np.arange(row, row + batch.num_rows, dtype=np.uint64) + np.uint64(part << ROW_BITS)
    return batch.append_column(pa.field(NUMBER, pa.uint64()), pa.array(docs))


class KeyRange(NamedTuple):
    """A band and a range of buckets: keys that one process groups at a time."""

    band: int
    low: int
    high: int  # one beyond; 1 << 64 at the end


def key_ranges(bands: Iterable[int], keys_per_band: int, most: int) -> Iterator[KeyRange]:
    """Ranges with about `most` keys each, for buckets spread evenly over 64 bits."""
    count = max(1, -(-keys_per_band // most))
    edges = [(1 << 64) * at // count for at in range(count + 1)]
    for band in bands:
        for low, high in itertools.pairwise(edges):
            yield KeyRange(band, low, high)
