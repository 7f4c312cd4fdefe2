"""Rows of a table that have something in common, found by sorting; and edges between documents.

Most keys of a corpus stand alone, so the first sort is of one column without its order among equals, which numpy does
with vector instructions, and whatever follows sees only rows that have company. The order of the rows that come in
never shows in what goes out.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from kiloq.prepare.dedup.normal import Array


def runs(key: Array, second: Array) -> tuple[Array, Array]:
    """Rows that share `key` with another row, and where among them the runs of equal (key, second) start; int64."""
    order = np.argsort(key)
    same = key[order[1:]] == key[order[:-1]]
    company = np.zeros(len(key), bool)
    company[1:] |= same
    company[:-1] |= same
    rows = order[company]
    new = _changes(key[rows])
    if (_changes(second[rows]) & ~new).any():
        rows = rows[np.lexsort((second[rows], key[rows]))]
        new = _changes(key[rows]) | _changes(second[rows])
    return rows, np.flatnonzero(new)


def _changes(column: Array) -> Array:
    """Whether a value differs from the one before; the first does. Bool."""
    new = np.ones(len(column), bool)
    new[1:] = column[1:] != column[:-1]
    return new


def sizes(starts: Array, count: int) -> Array:
    """How many of `count` rows each run has, int64."""
    return np.diff(starts, append=count)


def smallest(values: Array, starts: Array) -> Array:
    """The smallest value of each run."""
    return np.minimum.reduceat(values, starts) if len(starts) else values[:0]


def edges_of(left: Array, right: Array) -> pa.Table:
    """A table of `left` and `right`, uint64: sorted, without loops, each edge once."""
    real = left != right
    left, right = left[real], right[real]
    order = np.lexsort((right, left))
    left, right = left[order], right[order]
    new = _changes(left) | _changes(right)
    return pa.table({"left": pa.array(left[new], pa.uint64()), "right": pa.array(right[new], pa.uint64())})


def near(table: pa.Table, docs: Array) -> pa.Table:
    """The rows of `table` whose `doc` lies between the smallest and the largest of `docs`."""
    if not len(docs):
        return table.slice(0, 0)
    doc = table.column("doc").to_numpy()
    return table.take(np.flatnonzero((doc >= docs.min()) & (doc <= docs.max())))
