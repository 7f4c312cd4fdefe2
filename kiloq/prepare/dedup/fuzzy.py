"""Fuzzy deduplication: of documents that share most of their shingles, directly or through others, the best stays.

MinHash signatures (kiloq.prepare.dedup.minhash) are cut into bands (lsh); documents that agree in a band are joined,
and of each connected component one document stays: the one with the highest score where the batch has scores, else the
longest, else the first. Sources: Penedo et al. 2024 (FineWeb), section 3.4: 5-grams of words, 14 bands of 8 rows, which
find 92% of the pairs at a Jaccard similarity of 0.8; that similarity is carried on through components is theirs too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from kiloq.core.errors import UsageError
from kiloq.prepare.dedup.components import forest
from kiloq.prepare.dedup.exact import copies
from kiloq.prepare.dedup.lsh import buckets, stars
from kiloq.prepare.dedup.minhash import EMPTY, signatures
from kiloq.prepare.dedup.normal import Array
from kiloq.prepare.documents import Result, texts_of
from kiloq.prepare.pipeline.stages import Settled
from kiloq.prepare.settings import check_counts

MOST_PLACES = 4096  # bands * rows: ours; a signature then has 32 KB. Lee et al. 2022 use 9,000, FineWeb 112
SIGNATURE_NUMBERS = 1 << 23  # held at once: 64 MB. Ours
KEYS = pa.schema([("band", pa.uint16()), ("bucket", pa.uint64()), ("doc", pa.uint64())])
RANKS = pa.schema([("doc", pa.uint64()), ("score", pa.float32()), ("size", pa.uint32())])


@dataclass(frozen=True, kw_only=True)
class Fuzzy:
    """Drops near copies. A text without words is like no other; one shorter than a shingle is a shingle itself."""

    name: ClassVar[str] = "fuzzy"
    clustered: ClassVar[bool] = True  # a group's edges are joined by `settle`

    bands: int = 14  # FineWeb, section 3.4
    rows: int = 8  # hashes of a band, FineWeb, section 3.4
    words: int = 5  # in a shingle of spaced text, FineWeb, section 3.4
    # In a shingle of unspaced text: Leskovec et al., section 3.2.2, for alphabets of 20 letters; more in Han are more.
    characters: int = 5
    score: str | None = None  # the column of numbers by which the best copy is chosen, higher is better

    def __post_init__(self) -> None:
        check_counts(self, "bands", "rows", "words", "characters", least=1)
        if self.bands * self.rows > MOST_PLACES:
            raise UsageError(f"fuzzy: bands * rows is {self.bands * self.rows}: give at most {MOST_PLACES}")

    def keys(self, batch: pa.RecordBatch, docs: Array) -> pa.Table:
        """A table of KEYS, a row for each band of each document with a word. `docs`: uint64 [rows]."""
        texts = texts_of(batch)
        count = max(1, SIGNATURE_NUMBERS // (self.bands * self.rows))
        parts = [self._buckets(texts[start : start + count]) for start in range(0, len(texts), count)] or [
            self._buckets([])
        ]
        worded, hashes = (np.concatenate(column) for column in zip(*parts, strict=True))
        bands = np.repeat(np.arange(self.bands, dtype=np.uint16), len(hashes))
        return pa.table([bands, hashes.T.ravel(), np.tile(docs[worded], self.bands)], schema=KEYS)

    def _buckets(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Which texts have words, bool [texts], and the buckets of those, uint64 [texts with words, bands]."""
        found = signatures(texts, self.bands * self.rows, self.words, self.characters)
        worded = found[:, 0] != EMPTY
        return worded, buckets(found[worded], self.bands, self.rows)

    def ranks(self, batch: pa.RecordBatch, docs: Array) -> pa.Table:
        """A table of RANKS: the score, null where there is none, and the characters of each document."""
        scores = np.full(batch.num_rows, np.nan, np.float32)
        if self.score is not None and self.score in batch.schema.names:
            column = batch.column(self.score)
            if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
                raise UsageError(
                    f"fuzzy: the column {self.score!r:.40} has {column.type}: give one that has numbers as score"
                )
            scores = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        sizes = np.array([len(text) for text in texts_of(batch)], np.uint32)
        return pa.table([docs, pa.array(scores, from_pandas=True), sizes], schema=RANKS)

    def group(self, keys: pa.Table) -> pa.Table:
        """Edges between the documents of each bucket: `left`, `right`."""
        return stars(keys)

    def settle(self, edges: Iterable[pa.Table], ranks: Iterable[pa.Table]) -> Settled:
        """The documents that go, `doc`, and for each the one that stays, `kept`; sorted by doc. And cluster sizes."""
        pairs = ((table.column("left").to_numpy(), table.column("right").to_numpy()) for table in edges)
        lost = losers_of(*forest(pairs), ranks)
        return Settled(lost, cluster_sizes(lost))

    def drop(self, batch: pa.RecordBatch, docs: Array, losers: pa.Table) -> Result:
        """The batch with a reason against each of the losers."""
        return Result(batch, copies("fuzzy: a near copy", docs, losers))


def losers_of(nodes: Array, roots: Array, ranks: Iterable[pa.Table]) -> pa.Table:
    """All `nodes` (uint64, sorted) but the best of each component, as Fuzzy.settle gives them. `roots`: uint64 [nodes].

    A document that no rank tells of has no score and no size.
    """
    scores, sizes = np.full(len(nodes), -np.inf, np.float32), np.zeros(len(nodes), np.int64)
    for table in ranks:
        docs = table.column("doc").to_numpy()
        places = np.searchsorted(nodes, docs)
        known = np.flatnonzero(nodes[np.minimum(places, len(nodes) - 1)] == docs) if len(nodes) else places[:0]
        given = table.column("score").to_numpy()[known]
        scores[places[known]] = np.where(np.isnan(given), -np.inf, given)
        sizes[places[known]] = table.column("size").to_numpy()[known]
    order = np.lexsort((nodes, -sizes, -scores, roots))
    first = np.ones(len(order), bool)
    first[1:] = roots[order[1:]] != roots[order[:-1]]
    kept = np.empty_like(nodes)
    kept[order] = nodes[order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]]
    lost = np.flatnonzero(kept != nodes)
    return pa.table({"doc": pa.array(nodes[lost], pa.uint64()), "kept": pa.array(kept[lost], pa.uint64())})


def cluster_sizes(losers: pa.Table) -> dict[int, int]:
    """How many components have how many documents, from the table of losers (all of it, or whole components)."""
    _, counts = np.unique(losers.column("kept").to_numpy(), return_counts=True)
    found, times = np.unique(counts + 1, return_counts=True)
    return dict(zip(found.tolist(), times.tolist(), strict=True))
