"""The tasks of a run, each from files to files: a part through a stage, or a range of keys into groups.

A worker is made from the run's folder alone, in whatever process or on whatever machine the engine puts it; it finds
the recipe there. Rows are read and written in batches of at most BATCH_ROWS rows or BATCH_CHARS characters (more only
if one document is longer), so memory does not depend on the size of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from kiloq.core.errors import KiloqError
from kiloq.core.manifest import sha256_file
from kiloq.core.work import WorkFolder
from kiloq.prepare.decontaminate import COLUMN as CONTAMINATED
from kiloq.prepare.decontaminate import Decontaminate
from kiloq.prepare.documents import Result, batch_of
from kiloq.prepare.pipeline.recipe import from_tables
from kiloq.prepare.pipeline.stages import ROW_BITS, GlobalStep, docs_of, numbered, stages_of
from kiloq.prepare.pipeline.store import Store, Write, read_batches, read_between, table_file
from kiloq.prepare.pipeline.tally import READ, Tally
from kiloq.prepare.readers.plan import root_of
from kiloq.prepare.readers.read import read
from kiloq.prepare.readers.source import Bad, Piece

BATCH_ROWS, BATCH_CHARS = 1024, 8 << 20  # ours: some 10 MB of text at a time
RUN_ROWS = 1 << 20  # keys that are sorted at a time; ours, about 30 MB
KEY_GROUP_ROWS = 1 << 16  # keys in a row group, the least that a range of buckets reads; ours


class Worker:
    """Does tasks of the run in `folder`."""

    def __init__(self, folder: str) -> None:
        self.store = Store(Path(folder))
        job = WorkFolder(self.store.folder).job()
        self.recipe = from_tables(job["recipe"], Path("/")).ready(self.store.folder)
        self.pieces = job["pieces"]
        self.stages = stages_of(self.recipe.step)

    def run(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Do one task and return its tally. Raises KiloqError for what people can put right."""
        if task["do"] == "part":
            return Part(self, task["stage"], task["number"]).run()
        return self._group(**{key: value for key, value in task.items() if key != "do"})

    def _group(self, stage: int, number: int, band: int, low: int, high: int) -> dict[str, Any]:
        """All keys of one range, from every part, to losers or edges."""
        step = self.recipe.step[self.stages[stage].keys or 0]
        assert isinstance(step, GlobalStep)
        tables = [read_between(path, "bucket", low, high, band) for path in self.store.tables(stage, "keys")]
        keys = pa.concat_tables(tables).combine_chunks()
        found = step.group(keys)
        target = self.store.table(stage, "groups", number)
        with table_file(target, found.schema, KEY_GROUP_ROWS) as write:
            write(found)
        tally = {"keys": keys.num_rows, "found": found.num_rows}
        self.store.finish(stage, "group", number, [target], tally)
        return tally


class Part:
    """One part of the documents on its way through one stage."""

    def __init__(self, worker: Worker, stage: int, part: int) -> None:
        self.store, self.recipe, self.part, self.stage = worker.store, worker.recipe, part, stage
        self.spec = worker.stages[stage]
        self.last = stage == len(worker.stages) - 1
        self.stages, self.pieces = worker.stages, worker.pieces
        self.tally = Tally()
        self.inputs: dict[str, str] = {}  # files that begin in this part -> sha256
        self.files: list[Path] = []
        self._removed: dict[str, Write] = {}
        self._stack = ExitStack()

    def run(self) -> dict[str, Any]:
        """Write what the stage makes of the part, mark it as finished, return the tally."""
        with self._stack:
            write = self._open(self.store.documents(self.stage, self.part, last=self.last), self.schema)
            keys = Keys(self) if self.spec.keys is not None else None
            for batch in self._batches():
                kept = self._through(batch)
                if kept.num_rows:
                    write(kept)
                    if self.last:
                        self.tally.kept(kept)
                    if keys is not None:
                        keys.add(kept)
            if keys is not None:
                keys.flush()
        found = {**self.tally.to_json(), "inputs": self.inputs}
        if keys is not None:
            found |= {"keys": keys.rows, "bands": keys.bands}
        self.store.finish(self.stage, "part", self.part, self.files, found)
        return found

    def _open(self, path: Path, schema: pa.Schema, group_rows: int | None = None) -> Write:
        self.files.append(path)
        return self._stack.enter_context(table_file(path, schema, group_rows))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self.stage:
            yield from read_batches(self.store.documents(self.stage - 1, self.part))
            return
        at, found = self.pieces[self.part]
        source, piece, row = self.recipe.source[at], Piece.from_json(found), 0
        if piece.start == 0:
            self.inputs = {f"{source.name}/{name}": _hash(root_of(source) / name) for name in piece.files}
        for rows, bad in _batched(read(source, piece)):
            batch = numbered(batch_of(rows), self.part, row)
            row += batch.num_rows
            self._read(batch, bad, source.name)
            if rows:
                yield batch

    def _read(self, batch: pa.RecordBatch, bad: Sequence[Bad], source: str) -> None:
        """Count what the reader gave, and keep a trace of what it could not read."""
        lost = batch_of([{"id": b.where, "source": source, "text": b.sample} for b in bad])
        self.tally.read(batch, lost)
        if bad:
            self._drop(READ, lost, [b.reason for b in bad])

    def _through(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What the steps of the stage leave of `batch`."""
        if (at := self.spec.drop) is not None:
            batch = self._applied(at, batch, self.recipe.step[at].drop(batch, docs_of(batch), self._losers))
        for at in self.spec.local:
            batch = self._applied(at, batch, self.recipe.step[at].apply(batch))
        return batch

    def _applied(self, at: int, before: pa.RecordBatch, result: Result) -> pa.RecordBatch:
        """Count the result of step `at` and take out the rows that are to go."""
        label = self.recipe.labels[at + 1]
        stays = np.array([reason is None for reason in result.reasons], bool)
        after = result.batch if stays.all() else result.batch.filter(pa.array(stays))
        self.tally.passed(label, before, after)
        self.tally.edited(label, result.edits)
        if isinstance(self.recipe.step[at], Decontaminate):
            self.tally.contaminated(label, result.batch.column(CONTAMINATED).to_pylist())
        if after.num_rows < before.num_rows:
            reasons = [reason for reason in result.reasons if reason is not None]
            self._drop(label, result.batch.filter(pa.array(~stays)), reasons)
        return after

    def _drop(self, label: str, rows: pa.RecordBatch, reasons: Sequence[str]) -> None:
        self.tally.removed(label, rows, reasons)
        rows = rows.append_column(pa.field("reason", pa.string()), pa.array(reasons, pa.string()))
        if label not in self._removed:
            self._removed[label] = self._open(self.store.removed(label, self.part), rows.schema)
        self._removed[label](rows)

    @cached_property
    def _losers(self) -> pa.Table:
        """What the global step before this stage decided about this part."""
        low, high = self.part << ROW_BITS, (self.part + 1) << ROW_BITS
        kind = "losers" if self.recipe.step[self.spec.drop or 0].clustered else "groups"
        tables = [read_between(path, "doc", low, high) for path in self.store.tables(self.stage - 1, kind)]
        return pa.concat_tables(tables).combine_chunks()

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the documents behind this stage: those that the steps add, in order, also where a part is empty."""
        batch = numbered(batch_of([]), 0, 0)
        for stage in self.stages[: self.stage + 1]:
            for at in stage.local:
                batch = self.recipe.step[at].apply(batch).batch
        return batch.schema


class Keys:
    """The keys and ranks of a part: sorted in runs, so that a range of buckets is found by row groups."""

    def __init__(self, part: Part) -> None:
        step = part.recipe.step[part.spec.keys or 0]
        assert isinstance(step, GlobalStep)
        self.rows, self.bands = 0, list[int]()
        self._step, self._held, self._held_rows = step, list[pa.Table](), 0
        empty = pa.RecordBatch.from_pylist([], schema=part.schema)
        self._write = self._open(part, "keys", step.keys(empty, docs_of(empty)).schema)
        ranks = step.ranks(empty, docs_of(empty))
        self._write_ranks = self._open(part, "ranks", ranks.schema) if ranks is not None else None

    @staticmethod
    def _open(part: Part, kind: str, schema: pa.Schema) -> Write:
        return part._open(part.store.table(part.stage, kind, part.part), schema, KEY_GROUP_ROWS)

    def add(self, batch: pa.RecordBatch) -> None:
        """Keys of some documents."""
        docs = docs_of(batch)
        keys = self._step.keys(batch, docs)
        self._held.append(keys)
        self._held_rows += keys.num_rows
        if self._write_ranks is not None:
            self._write_ranks(self._step.ranks(batch, docs))
        if self._held_rows >= RUN_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one sorted run."""
        if not self._held_rows:
            return
        table = pa.concat_tables(self._held)
        order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in table.schema.names])
        self._write(table.take(order))
        self.rows += table.num_rows
        self.bands = sorted({*self.bands, *pc.unique(table.column("band")).to_pylist()})
        self._held, self._held_rows = [], 0


def _hash(path: Path) -> str:
    """sha256 of an input; empty if it cannot be read, which the reader reports."""
    try:
        return sha256_file(path)
    except (KiloqError, OSError):
        return ""


def _batched(records: Iterator[dict[str, Any] | Bad]) -> Iterator[tuple[list[dict[str, Any]], list[Bad]]]:
    """Records in batches of rows, each with the bad records that came among them."""
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    chars = 0
    for record in records:
        if isinstance(record, Bad):
            bad.append(record)
        else:
            rows.append(record)
            chars += len(record["text"])
        if len(rows) >= BATCH_ROWS or chars >= BATCH_CHARS or len(bad) >= BATCH_ROWS:
            yield rows, bad
            rows, bad, chars = [], [], 0
    if rows or bad:
        yield rows, bad
