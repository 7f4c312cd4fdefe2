"""The files of a run: tables of documents and keys in Parquet, and marks of finished tasks.

Every file appears whole under its name or not at all, and a task's mark, which holds its tally and the sizes of its
files, is written last. So a run that was killed finds out by names alone what is left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from kiloq.core.errors import FormatError, MissingError
from kiloq.core.files import atomic_file
from kiloq.core.safe_json import load_object, write_json
from kiloq.core.work import MAX_BYTES, RESULT

LEVEL = 3  # of zstd; ours: text packs to about 40%, at some 300 MB/s


class Store:
    """The names in the working folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def result(self) -> Path:
        """What will become the output folder."""
        return self.folder / RESULT

    def documents(self, stage: int, part: int, *, last: bool = False) -> Path:
        """Documents of a part as a stage left them; those of the last stage are the result's."""
        base = self.result if last else self.folder / f"stage-{stage}"
        return base / "documents" / f"{part:05}.parquet"

    def removed(self, label: str, part: int) -> Path:
        """Documents that a step took out of a part."""
        return self.result / "removed" / label / f"{part:05}.parquet"

    def table(self, stage: int, kind: str, number: int) -> Path:
        """Keys or ranks of a part, or what the group `number` came to."""
        return self.folder / f"stage-{stage}" / kind / f"{number:05}.parquet"

    def tables(self, stage: int, kind: str) -> list[Path]:
        """All tables of a kind, in order."""
        return sorted((self.folder / f"stage-{stage}" / kind).glob("[0-9]*.parquet"))

    def mark(self, stage: int, kind: str, number: int) -> Path:
        return self.folder / "done" / f"stage-{stage}-{kind}" / f"{number:05}.json"

    def finish(self, stage: int, kind: str, number: int, files: Sequence[Path], tally: Mapping[str, Any]) -> None:
        """Mark a task as finished, with its files and what it counted."""
        sizes = {str(path.relative_to(self.folder)): path.stat().st_size for path in files}
        write_json(self.mark(stage, kind, number), {"files": sizes, "tally": dict(tally)})

    def finished(self, stage: int, kind: str, number: int, *, check: bool = True) -> dict[str, Any] | None:
        """The tally of a finished task; None if it is to be done (again). `check`: its files must be there."""
        try:
            mark = load_object(self.mark(stage, kind, number), MAX_BYTES)
            if check and any((self.folder / name).stat().st_size != size for name, size in mark["files"].items()):
                return None
            tally: dict[str, Any] = mark["tally"]
        except (OSError, MissingError, FormatError, KeyError):
            return None
        return tally


Write = Callable[[pa.RecordBatch | pa.Table], None]


@contextmanager
def table_file(path: Path, schema: pa.Schema, group_rows: int | None = None) -> Iterator[Write]:
    """A function that appends rows to a Parquet file, `group_rows` to a row group (default: all that it is given).

    The file appears under its name when the block ends well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    packing = {"compression": "zstd", "compression_level": LEVEL}
    with atomic_file(path) as file, pq.ParquetWriter(file, schema, **packing) as writer:

        def write(rows: pa.RecordBatch | pa.Table) -> None:
            table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
            if table.num_rows:
                writer.write_table(table, row_group_size=group_rows or table.num_rows)

        yield write


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The row groups of one of our tables, one batch each."""
    with path.open("rb") as stream, pq.ParquetFile(stream) as file:  # a name for Arrow would have to be UTF-8
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).combine_chunks().to_batches()


def read_table(path: Path) -> pa.Table:
    """All of one of our tables."""
    with path.open("rb") as stream:
        return pq.read_table(stream)


def count_rows(paths: Sequence[Path]) -> int:
    """How many rows some tables have together."""
    count = 0
    for path in paths:
        with path.open("rb") as stream:
            count += pq.read_metadata(stream).num_rows
    return count


def read_between(path: Path, column: str, low: int, high: int, band: int | None = None) -> pa.Table:
    """Rows of one of our tables whose `column`, uint64, is from `low` to below `high`, and of one band if it is given.

    Tables are sorted, at least in runs, so few row groups are read.
    """
    wanted = pc.field(column) >= pa.scalar(low, pa.uint64())
    if high < 1 << 64:
        wanted &= pc.field(column) < pa.scalar(high, pa.uint64())
    if band is not None:
        wanted &= pc.field("band") == pa.scalar(band, pa.uint16())
    with path.open("rb") as stream:
        return pq.read_table(stream, filters=wanted)
