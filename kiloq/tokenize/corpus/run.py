"""A corpus, shard by shard: which files make a shard, processes that encode them, and going on after a kill.

A shard is made from whole input files, small ones together, or from some row groups of a large Parquet file, so shards
are independent: any number of processes gives the same bytes, and a run that was killed makes only the shards that it
had not finished. Of every shard some documents are encoded a second time, the exact way. With Qwen's vocabulary a
process starts in about 3 s of its core and takes up to 0.9 GB, however large the files are.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.files import atomic_file
from kiloq.core.safe_json import load_object, write_json
from kiloq.core.unpack import ending
from kiloq.core.work import MAX_BYTES, RESULT
from kiloq.tokenize.corpus.encode import Encoder, ExactEncoder
from kiloq.tokenize.corpus.shards import DTYPES, OFFSETS, SOURCES, TOKENS, write_index
from kiloq.tokenize.pool import workers
from kiloq.tokenize.texts import Text, input_files, read_file, row_group_bytes
from kiloq.tokenize.tokenizer import Tokenizer

SHARD_BYTES = 64 << 20  # of input files that share a shard. Ours: seconds of work, and shards of some 100 MB
BATCH_CHARS = 4 << 20  # encoded in one call; ours
CHECKED = 256  # one of so many documents is checked, the first of a shard among them. Ours: 2% of the time
MAX_SOURCES = 1 << 16

Progress = Callable[[int, int], None]  # (shards done, of)


class Part(NamedTuple):
    """A file, or some row groups of a Parquet file, and the group of those of its documents that name none."""

    path: str
    group: str
    row_groups: list[int] | None


def units(inputs: Sequence[Path]) -> list[list[Part]]:
    """What each shard is made from."""
    found: list[list[Part]] = []
    room = 0
    for path, group in input_files(inputs):
        for row_groups, size in _parts(path):
            if size > room or not found:
                found.append([])
                room = SHARD_BYTES
            found[-1].append(Part(str(path.absolute()), group, row_groups))
            room -= size
    return found


def _parts(path: Path) -> Iterator[tuple[list[int] | None, int]]:
    """Row groups of a Parquet file that is too large for a shard, None for any other file; and their bytes."""
    whole = path.stat().st_size
    if whole <= SHARD_BYTES or ending(path) != ".parquet":
        yield None, whole
        return
    held: list[int] = []
    size = 0
    for number, more in enumerate(row_group_bytes(path)):
        if held and size + more > SHARD_BYTES:
            yield held, size
            held, size = [], 0
        held.append(number)
        size += more
    yield held, size


def job_of(inputs: Sequence[Path], tokenizer: str, encoder: Encoder, by: str | None, exact: bool) -> dict[str, Any]:
    """What a run is to do: all that decides its bytes, with the size and time of change of every input file."""
    parts = units(inputs)
    states = [[(status := Path(part.path).stat()).st_size, status.st_mtime_ns] for unit in parts for part in unit]
    return {"units": parts, "states": states, "tokenizer": tokenizer, "tokenizer_sha256": encoder.fingerprint,
            "end": encoder.end_id, "by": by, "exact": exact}  # fmt: skip


def encode_corpus(
    job: Mapping[str, Any], encoder: Encoder, folder: Path, processes: int, progress: Progress
) -> list[dict[str, Any]]:
    """The records of all shards, in order; those that an earlier run has finished in `folder` are kept.

    encoder: what the job says, for this process; others load their own.

    Raises KiloqError for what cannot be read or encoded.
    """
    count = len(job["units"])
    done = {number: found for number in range(count) if (found := _finished(folder, number)) is not None}
    progress(len(done), count)
    for number, record in _encoded(job, encoder, folder, [n for n in range(count) if n not in done], processes):
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
    job: Mapping[str, Any], encoder: Encoder, folder: Path, numbers: Sequence[int], processes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    if processes <= 1 or len(numbers) <= 1:
        yield from ((number, encode_shard(dict(job), folder, number, encoder)) for number in numbers)
        return
    with workers(min(processes, len(numbers)), "encodes") as pool:
        waiting = {pool.submit(encode_shard, dict(job), folder, number): number for number in numbers}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()


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


def encode_shard(job: dict[str, Any], folder: Path, number: int, encoder: Encoder | None = None) -> dict[str, Any]:
    """Encode one unit into its files and return its record, which is written last."""
    encoder = encoder or _encoder(job["tokenizer"], job["tokenizer_sha256"], job["end"], job["exact"])
    shard = _Shard(encoder, folder, number)
    with shard:
        for path, group, row_groups in job["units"][number]:
            for batch in _batches(read_file(Path(path), group, job["by"], row_groups)):
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
    """The three files of a shard while they are written. What is held of a document is where it begins: 10 bytes."""

    def __init__(self, encoder: Encoder, folder: Path, number: int) -> None:
        self._encoder, self._folder, self._number = encoder, folder, number
        self._stack = ExitStack()
        self._sources: dict[str, int] = {}
        self._of = array("H")  # source of each document
        self._offsets = array("q", [0])
        self._tokens = self._bytes = 0
        self._open = False  # a document has begun whose end may not have come yet
        self._tokens_of = Counter[str]()  # of each source, without end tokens

    def __enter__(self) -> _Shard:
        self._file = self._stack.enter_context(atomic_file(_file(self._folder, self._number, TOKENS)))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            if self._open:
                self._write(np.empty(0, np.uint32), np.zeros(1, np.int64))
            for name, values in ((OFFSETS, self._offsets), (SOURCES, self._of)):
                with atomic_file(_file(self._folder, self._number, name)) as file:
                    file.write(np.array(values, DTYPES[name]).tobytes())
        self._stack.__exit__(kind, error, trace)

    def add(self, texts: Sequence[Text]) -> None:
        """Encode and write some texts."""
        ids, counts = self._encoder.encode(texts)
        begins = np.cumsum(counts, dtype=np.int64) - counts
        begins = begins[[not text.continues for text in texts]]
        self._write(ids, begins if self._open else begins[1:])
        self._open = True
        for text, count in zip(texts, counts.tolist(), strict=True):
            if not text.continues:
                self._begin_document(text)
            self._tokens_of[text.group] += count
            self._bytes += len(text.text if text.text.isascii() else text.text.encode("utf-8", "surrogatepass"))

    def _begin_document(self, text: Text) -> None:
        if len(self._sources) == MAX_SOURCES - 1 and text.group not in self._sources:
            raise UsageError(
                f"a shard has more than {MAX_SOURCES - 1:,} sources: group them by another field with --by"
            )
        if len(self._of) % CHECKED == 0:
            self._encoder.check(text.text)
        self._of.append(self._sources.setdefault(text.group, len(self._sources)))

    def _write(self, ids: Any, ends: Any) -> None:
        """Write `ids` with an end token before each of the places `ends`, where a document has ended."""
        ended = np.insert(ids, ends, self._encoder.end_id).astype(DTYPES[TOKENS], copy=False)
        self._file.write(ended.data)
        self._offsets.extend((self._tokens + ends + np.arange(1, len(ends) + 1)).tolist())
        self._tokens += len(ended)

    def record(self) -> dict[str, Any]:
        """What the index needs to know, and the size of each file."""
        items = {TOKENS: self._tokens, OFFSETS: len(self._offsets), SOURCES: len(self._of)}
        documents = np.bincount(self._of, minlength=len(self._sources)).tolist()
        return {
            "name": f"{self._number:05}",
            "documents": len(self._of),
            "tokens": self._tokens,
            "bytes": self._bytes,
            "sources": list(self._sources),
            "tokens_by_source": {name: self._tokens_of[name] + documents[at] for name, at in self._sources.items()},
            "sizes": {kind: count * DTYPES[kind].itemsize for kind, count in items.items()},
        }
