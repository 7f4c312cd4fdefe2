"""A corpus, shard by shard: which files make a shard, processes that encode them, and going on after a kill.

A shard is made from whole input files, small ones together, so shards are independent: any number of processes gives
the same bytes, and a run that was killed makes only the shards that it had not finished. Of every shard some documents
are encoded a second time, the exact way.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError
from kiloq.core.files import atomic_file
from kiloq.core.manifest import read_manifest
from kiloq.core.safe_json import load_object, write_json
from kiloq.core.work import MAX_BYTES, RESULT
from kiloq.tokenize.corpus.encode import Encoder, ExactEncoder
from kiloq.tokenize.corpus.shards import DTYPES, OFFSETS, SOURCES, TOKENS, write_index
from kiloq.tokenize.texts import Text, input_files, read_file
from kiloq.tokenize.tokenizer import Tokenizer

SHARD_BYTES = 64 << 20  # of input files that share a shard. Ours: seconds of work, and shards of some 100 MB
BATCH_CHARS = 4 << 20  # encoded in one call; ours
CHECKED = 64  # one of so many documents is checked, the first of a shard among them; ours
MAX_SOURCES = 1 << 16

Progress = Callable[[int, int], None]  # (shards done, of)


def units(inputs: Sequence[Path]) -> list[list[tuple[Path, str]]]:
    """The files of each shard, each with the group of its documents. Of a prepared folder, its documents alone."""
    found: list[list[tuple[Path, str]]] = []
    size = 0
    for path, group in input_files([_documents(path) for path in inputs]):
        if not found or size + path.stat().st_size > SHARD_BYTES:
            found.append([])
            size = 0
        found[-1].append((path, group))
        size += path.stat().st_size
    return found


def is_prepared(path: Path) -> bool:
    """Whether `kiloq prepare` wrote this folder."""
    try:
        return bool(read_manifest(path)["kind"] == "documents")
    except (MissingError, FormatError, NotADirectoryError):
        return False


def _documents(path: Path) -> Path:
    return path / "documents" if is_prepared(path) else path


def job_of(inputs: Sequence[Path], tokenizer: str, encoder: Encoder, by: str | None, exact: bool) -> dict[str, Any]:
    """What a run is to do: all that decides its bytes, with the size and time of change of every input file."""
    files = [[[str(path.absolute()), group] for path, group in unit] for unit in units(inputs)]
    states = [[(status := Path(path).stat()).st_size, status.st_mtime_ns] for unit in files for path, _ in unit]
    return {"units": files, "states": states, "tokenizer": tokenizer, "tokenizer_sha256": encoder.fingerprint,
            "end": encoder.end_id, "by": by, "exact": exact}  # fmt: skip


def encode_corpus(job: Mapping[str, Any], folder: Path, processes: int, progress: Progress) -> list[dict[str, Any]]:
    """The records of all shards, in order; those that an earlier run has finished in `folder` are kept.

    Raises KiloqError for what cannot be read or encoded.
    """
    count = len(job["units"])
    done = {number: found for number in range(count) if (found := _finished(folder, number)) is not None}
    progress(len(done), count)
    for number, record in _encoded(job, folder, [n for n in range(count) if n not in done], processes):
        done[number] = record
        progress(len(done), count)
    return [done[number] for number in range(count)]


def finish(folder: Path, records: Sequence[Mapping[str, Any]], encoder: Encoder) -> dict[str, int]:
    """Number the sources of all shards alike and write the index; returns its counts."""
    names = list(dict.fromkeys(name for record in records for name in record["sources"]))
    if len(names) > MAX_SOURCES:
        raise UsageError(
            f"the corpus has {len(names):,} sources, at most {MAX_SOURCES:,} can be: group by another field"
        )
    places = {name: place for place, name in enumerate(names)}
    for number, record in enumerate(records):
        to_all = np.array([places[name] for name in record["sources"]] or [0], DTYPES[SOURCES])
        local = np.fromfile(_file(folder, number, SOURCES), DTYPES[SOURCES])
        with atomic_file(folder / RESULT / f"{record['name']}{SOURCES}") as file:
            file.write(to_all[local].tobytes())
    totals = {key: sum(record[key] for record in records) for key in ("documents", "tokens", "bytes")}
    by_source = Counter[str]()
    for record in records:
        by_source.update(record["tokens_by_source"])
    shown = ("name", "documents", "tokens", "bytes")
    write_index(
        folder / RESULT,
        {
            "vocab_size": encoder.tokenizer.vocab_size,
            "end_id": encoder.end_id,
            "tokenizer_sha256": encoder.fingerprint,
            **totals,
            "sources": names,
            "tokens_by_source": {name: by_source[name] for name in names},
            "shards": [{key: record[key] for key in shown} for record in records],
        },
    )
    return totals


def _encoded(
    job: Mapping[str, Any], folder: Path, numbers: Sequence[int], processes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    if processes <= 1 or len(numbers) <= 1:
        yield from ((number, encode_shard(dict(job), folder, number)) for number in numbers)
        return
    pool = ProcessPoolExecutor(
        min(processes, len(numbers)), multiprocessing.get_context("spawn"), _end_with, (os.getpid(),)
    )
    try:
        waiting = {pool.submit(encode_shard, dict(job), folder, number): number for number in numbers}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        raise KiloqError(
            "a process that encodes was killed: there may be too little memory, try --processes 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """Let this process end when its parent has: nobody else would stop it if that is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finished(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard whose files are all there."""
    try:
        record = load_object(folder / f"{number:05}.json", MAX_BYTES)
        whole = all(_file(folder, number, kind).stat().st_size == size for kind, size in record["sizes"].items())
    except (OSError, MissingError, FormatError, KeyError):
        return None
    return record if whole else None


def _file(folder: Path, number: int, kind: str) -> Path:
    """Where a file of a shard lies: what is ready for the result in RESULT, the sources, which are not, beside it."""
    return (folder if kind == SOURCES else folder / RESULT) / f"{number:05}{kind}"


@cache
def _encoder(source: str, fingerprint: str, end_id: int, exact: bool) -> Encoder:
    """The encoder of a vocabulary, which another file under the same name does not share."""
    return (ExactEncoder if exact else Encoder)(Tokenizer.load(source), end_id)


def encode_shard(job: dict[str, Any], folder: Path, number: int) -> dict[str, Any]:
    """Encode one unit into its files and return its record, which is written last."""
    encoder = _encoder(job["tokenizer"], job["tokenizer_sha256"], job["end"], job["exact"])
    shard = _Shard(encoder, folder, number)
    with shard:
        for path, group in job["units"][number]:
            for batch in _batches(read_file(Path(path), group, job["by"])):
                shard.add(batch)
    record = shard.record()
    write_json(folder / f"{number:05}.json", record)
    return record


def _batches(texts: Iterator[Text]) -> Iterator[list[Text]]:
    held: list[Text] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text.text)
        if size >= BATCH_CHARS:
            yield held
            held, size = [], 0
    if held:
        yield held


class _Shard:
    """The three files of a shard while they are written."""

    def __init__(self, encoder: Encoder, folder: Path, number: int) -> None:
        self._encoder, self._folder, self._number = encoder, folder, number
        self._stack = ExitStack()
        self._sources: dict[str, int] = {}
        self._of: list[int] = []  # source of each document
        self._offsets: list[int] = [0]
        self._tokens = self._bytes = 0
        self._open = False  # a document has begun whose end may not have come yet
        self._tokens_of = Counter[str]()

    def __enter__(self) -> _Shard:
        self._file = self._stack.enter_context(atomic_file(_file(self._folder, self._number, TOKENS)))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self._end_document()
            for name, values in ((OFFSETS, self._offsets), (SOURCES, self._of)):
                with atomic_file(_file(self._folder, self._number, name)) as file:
                    file.write(np.array(values, DTYPES[name]).tobytes())
        self._stack.__exit__(kind, error, trace)

    def add(self, texts: Sequence[Text]) -> None:
        """Encode and write some texts."""
        ids, counts = self._encoder.encode(texts)
        ends = np.cumsum(counts)
        for text, count, end in zip(texts, counts.tolist(), ends.tolist(), strict=True):
            if not text.continues:
                self._end_document()
                self._begin_document(text)
            self._write(ids[end - count : end], text.group)
            self._bytes += len(text.text.encode("utf-8", "surrogatepass"))

    def _begin_document(self, text: Text) -> None:
        if len(self._sources) == MAX_SOURCES - 1 and text.group not in self._sources:
            raise UsageError(
                f"a shard has more than {MAX_SOURCES - 1:,} sources: group them by another field with --by"
            )
        if len(self._of) % CHECKED == 0:
            self._encoder.check(text.text)
        self._of.append(self._sources.setdefault(text.group, len(self._sources)))
        self._open = True

    def _end_document(self) -> None:
        if self._open:
            names = list(self._sources)
            self._write(np.array([self._encoder.end_id], np.uint32), names[self._of[-1]])
            self._offsets.append(self._tokens)
            self._open = False

    def _write(self, ids: Any, source: str) -> None:
        self._file.write(ids.astype(DTYPES[TOKENS], copy=False).tobytes())
        self._tokens += len(ids)
        self._tokens_of[source] += len(ids)

    def record(self) -> dict[str, Any]:
        """What the index needs to know, and the size of each file."""
        items = {TOKENS: self._tokens, OFFSETS: len(self._offsets), SOURCES: len(self._of)}
        return {
            "name": f"{self._number:05}",
            "documents": len(self._of),
            "tokens": self._tokens,
            "bytes": self._bytes,
            "sources": list(self._sources),
            "tokens_by_source": dict(self._tokens_of),
            "sizes": {kind: count * DTYPES[kind].itemsize for kind, count in items.items()},
        }
