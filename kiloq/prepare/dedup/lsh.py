"""Locality-sensitive hashing: signatures cut into bands, of which one that agrees makes two texts candidates.

MinHash with b bands of r rows finds two texts of Jaccard similarity s with probability 1 - (1 - s^r)^b. Source: Indyk
and Motwani 1998; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.2. What meets in a bucket becomes
a star of edges from its smallest document, as many as documents, where all pairs would be their square.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from kiloq.core.hashing import mix
from kiloq.prepare.dedup.groups import edges_of, runs, sizes, smallest
from kiloq.prepare.dedup.normal import Array

_STEP = np.uint64(0xF1357AEA2E62A9C5)  # of the polynomial of a band's rows: a multiplier of Steele and Vigna 2021
CURVE = tuple(round(0.5 + 0.05 * step, 2) for step in range(11))  # the similarities that reports show


def buckets(signatures: Array, bands: int, rows: int) -> Array:
    """One hash per band of each signature: uint64 [texts, bands * rows] -> [texts, bands]."""
    rows_TBR = signatures.reshape(len(signatures), bands, rows)
    sums_TB = np.repeat(np.arange(bands, dtype=np.uint64)[None], len(signatures), axis=0)
    for row in range(rows):
        sums_TB *= _STEP
        sums_TB += rows_TBR[:, :, row]
    return mix(sums_TB)


def chance(similarity: float, bands: int, rows: int) -> float:
    """The probability that two texts of this Jaccard similarity meet in a bucket."""
    return float(1 - (1 - similarity**rows) ** bands)


def curve(bands: int, rows: int) -> list[tuple[float, float]]:
    """The similarities of CURVE, each with its `chance`."""
    return [(similarity, chance(similarity, bands, rows)) for similarity in CURVE]


def stars(keys: pa.Table) -> pa.Table:
    """Edges (`left`, `right`: uint64, left < right) of a table of `band`, `bucket` and `doc`, sorted, each once.

    Every bucket's smallest document is the left end of its edges.
    """
    band, bucket, doc = (keys.column(name).to_numpy() for name in ("band", "bucket", "doc"))
    rows, starts = runs(bucket, band)
    right = doc[rows]
    return edges_of(np.repeat(smallest(right, starts), sizes(starts, len(rows))), right)
