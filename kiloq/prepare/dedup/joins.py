"""Connected components of more edges than memory holds: joins on Daft, with Parquet files between the rounds.

Alternates the large-star and small-star operations until every node points at the smallest of its component (Kiveris et
al. 2014, "Connected components in MapReduce and beyond"; at most logarithmic squared rounds, and edges never get more).
Each operation needs the neighbours of a node together, so edges lie in as many partitions as keep one inside
EDGES_IN_MEMORY: one partition at a time is grouped, joined and written to where the next operation looks for it. Daft
has no shuffle of bounded memory, hence the partitions; on its Ray runner the same joins run on many machines. Nothing
depends on the order of rows or on the number of partitions, and the labels equal those of
kiloq.prepare.dedup.components.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from kiloq.prepare.daft import quiet_daft

EDGES_IN_MEMORY = 4_000_000  # both ways; ours: some 1.5 GB in Daft

LABELS = pa.schema([("doc", pa.uint64()), ("root", pa.uint64())])


def label_files(edges: Sequence[Path], out: Path, work: Path, edges_in_memory: int = EDGES_IN_MEMORY) -> list[Path]:
    """Writes the component of every document in the Parquet files `edges` (`left`, `right`: uint64, left < right).

    The files `out`/labels-NNNNN.parquet have LABELS, the root being the smallest document of the component; all rows of
    a root are in one file, sorted by document, as kiloq.prepare.dedup.fuzzy.losers_of takes them. `work` must not
    exist; it holds the rounds and is gone on return. A document with more neighbours than `edges_in_memory` takes the
    memory that those need. Raises MissingError without Daft.
    """
    count = sum(pq.read_metadata(path).num_rows for path in edges)
    rounds = _Rounds(work, partitions=max(1, -(-2 * count // edges_in_memory)))
    try:
        rounds.begin(edges)
        while rounds.run(_large_star) + rounds.run(_small_star):
            pass
        out.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for frame in rounds.frames():
            written.append(out / f"labels-{len(written):05}.parquet")
            pq.write_table(_labels(frame), written[-1])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return written


class _Rounds:
    """Edges on disk, as rows of `node` and `near` in partitions by node, and the operations that rewrite them."""

    def __init__(self, work: Path, partitions: int) -> None:
        self._daft = quiet_daft()
        self._work, self._partitions, self._number = work, partitions, 0
        work.mkdir(parents=True)

    def begin(self, edges: Sequence[Path]) -> None:
        """Reads the edges, file by file."""
        for path in edges:
            frame = self._daft.read_parquet(_plain(path))
            self._write(_both_ways(frame.select(self._col("left").alias("node"), self._col("right").alias("near"))))

    def run(self, operation: Callable[[Any], tuple[Any, int]]) -> int:
        """Replaces all edges by what `operation` makes of each partition; how many it changed."""
        changed, old = 0, self._folder
        frames = self.frames()
        self._number += 1
        for frame in frames:
            result, count = operation(frame)
            self._write(result)
            changed += count
        shutil.rmtree(old, ignore_errors=True)
        return changed

    def frames(self) -> Iterator[Any]:
        """The partitions that have edges, each edge once."""
        folders = sorted(self._folder.glob("part=*"))
        return (
            self._daft.read_parquet(f"{_plain(folder)}/*.parquet").select("node", "near").distinct()
            for folder in folders
        )

    @property
    def _folder(self) -> Path:
        return self._work / f"round-{self._number}"

    def _col(self, name: str) -> Any:
        return self._daft.col(name)

    def _write(self, frame: Any) -> None:
        placed = frame.with_column("part", self._col("node") % self._partitions)
        placed.write_parquet(str(self._folder), partition_cols=["part"], write_mode="append")


def _large_star(frame: Any) -> tuple[Any, int]:
    """Every larger neighbour of a node goes to the smallest of the node and its neighbours."""
    col = quiet_daft().col
    least = frame.groupby("node").agg(col("near").min().alias("least"))
    larger = frame.where(col("near") > col("node")).join(least, on="node").collect()
    moved = larger.where(col("least") < col("node"))
    stays = larger.where(col("least") >= col("node"))
    result = moved.select(col("near").alias("node"), col("least").alias("near")).concat(
        stays.select(col("near").alias("node"), col("node").alias("near"))
    )
    return result, moved.count_rows()


def _small_star(frame: Any) -> tuple[Any, int]:
    """A node and all its smaller neighbours go to the smallest of them; all neighbours here are smaller."""
    col = quiet_daft().col
    least = frame.groupby("node").agg(col("near").min().alias("least")).collect()
    moved = frame.join(least, on="node").where(col("near") > col("least")).collect()
    own = least.select("node", col("least").alias("near"))
    return _both_ways(own.concat(moved.select(col("near").alias("node"), col("least").alias("near")))), len(moved)


def _both_ways(frame: Any) -> Any:
    """Each edge under both of its ends."""
    col = quiet_daft().col
    return frame.concat(frame.select(col("near").alias("node"), col("node").alias("near")))


def _labels(frame: Any) -> pa.Table:
    """A table of LABELS, sorted, of a partition in which all edges are those of stars."""
    col = quiet_daft().col
    below = frame.where(col("near") > col("node"))
    own = below.select("node").distinct().select(col("node").alias("doc"), col("node").alias("root"))
    every = own.concat(below.select(col("near").alias("doc"), col("node").alias("root")))
    return every.to_arrow().cast(LABELS).sort_by("doc")


def _plain(path: Path) -> str:
    """`path` as Daft takes it, for which every path is a pattern."""
    return re.sub(r"[*?\[{}]", r"[\g<0>]", str(path))
