"""Shards: token ids on disk as training reads them, flat and mapped.

A corpus is a folder. Shard k has `k.tokens` (uint32, all documents in a row, each ended by its end token),
`k.offsets` (int64: where each document begins, and the end) and `k.sources` (uint16: which source each document is of);
`index.json` names the tokenizer, the sources and the shards with their counts, `manifest.json` has the hashes. All
numbers are little-endian. A window of tokens is a slice of a map, so reading costs what the memory costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kiloq.core.errors import FormatError, UsageError
from kiloq.core.files import regular_size
from kiloq.core.manifest import read_manifest, verify_manifest
from kiloq.core.safe_json import load_object, write_json

INDEX, FORMAT_VERSION = "index.json", 1
MAX_INDEX_BYTES = 256 << 20
TOKENS, OFFSETS, SOURCES = ".tokens", ".offsets", ".sources"
DTYPES: dict[str, np.dtype[Any]] = {TOKENS: np.dtype("<u4"), OFFSETS: np.dtype("<i8"), SOURCES: np.dtype("<u2")}

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Shard:
    """One shard, its files mapped when they are first asked for."""

    folder: Path
    name: str
    tokens: int
    documents: int

    @cached_property
    def ids(self) -> Array:
        """uint32 [tokens]."""
        return self._map(TOKENS, self.tokens)

    @cached_property
    def offsets(self) -> Array:
        """int64 [documents + 1]."""
        offsets = self._map(OFFSETS, self.documents + 1)
        if offsets[0] != 0 or offsets[-1] != self.tokens or (np.diff(offsets) < 1).any():
            raise FormatError(
                f"{self.folder / self.name}{OFFSETS}: does not cut the shard into documents: it is damaged"
            )
        return offsets

    @cached_property
    def sources(self) -> Array:
        """uint16 [documents]: places in the corpus' list of sources."""
        return self._map(SOURCES, self.documents)

    def document(self, number: int) -> Array:
        """The ids of one document, its end token included."""
        if not 0 <= number < self.documents:
            raise IndexError(f"document {number} of {self.documents}")
        begin, end = self.offsets[number : number + 2]
        return self.ids[begin:end]

    def _map(self, kind: str, count: int) -> Array:
        path = self.folder / f"{self.name}{kind}"
        size, wanted = regular_size(path), count * DTYPES[kind].itemsize
        if size != wanted:
            raise FormatError(f"{path}: has {size:,} bytes and its index says {wanted:,}: it is damaged")
        if not count:
            return np.empty(0, DTYPES[kind])
        return np.asarray(np.memmap(path, DTYPES[kind], "r"))  # a plain array: numpy's own class is slow to slice


class Place(NamedTuple):
    """Where a document of the whole corpus lies."""

    shard: int
    number: int  # within the shard


class Corpus:
    """A folder of shards. Raises MissingError or FormatError where it is unfinished, damaged or of something else."""

    def __init__(self, folder: str | Path, *, verify: bool = False) -> None:
        self.folder = Path(folder)
        manifest = verify_manifest(self.folder) if verify else read_manifest(self.folder)
        if manifest["kind"] != "corpus":
            raise FormatError(
                f"{folder}: is {manifest['kind']}: a folder that `kiloq tokenize corpus` wrote was expected"
            )
        index = load_object(self.folder / INDEX, MAX_INDEX_BYTES)
        try:
            if index["format_version"] != FORMAT_VERSION:
                raise FormatError(
                    f"{folder}: has format {index['format_version']!r:.20}, and this kiloq reads {FORMAT_VERSION}"
                )
            self.vocab_size = _count(index["vocab_size"], 1, 1 << 32)
            self.end_id = _count(index["end_id"], 0, self.vocab_size)
            if not isinstance(index["sources"], list):
                raise ValueError("`sources`")
            self.tokenizer_sha256, self.sources = (
                str(index["tokenizer_sha256"]),
                [str(name) for name in index["sources"]],
            )
            self.shards = [
                Shard(self.folder, _checked_name(row["name"]), _count(row["tokens"]), _count(row["documents"]))
                for row in index["shards"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{self.folder / INDEX}: lacks or garbles {error}: it is damaged") from None

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @cached_property
    def _starts(self) -> Array:
        return np.cumsum([0, *(shard.documents for shard in self.shards)])

    def place(self, document: int) -> Place:
        """Where document 0, 1, … of the corpus lies."""
        if not 0 <= document < self.documents:
            raise IndexError(f"document {document} of {self.documents}")
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        return Place(shard, document - int(self._starts[shard]))

    def document(self, document: int) -> Array:
        """The ids of document 0, 1, … of the corpus."""
        shard, number = self.place(document)
        return self.shards[shard].document(number)

    @cached_property
    def tokens_of_sources(self) -> dict[str, int]:
        """Source -> the tokens of its documents, end tokens included."""
        counts = np.zeros(len(self.sources), np.int64)
        for shard in self.shards:
            np.add.at(counts, shard.sources, np.diff(shard.offsets))
        return dict(zip(self.sources, counts.tolist(), strict=True))

    def documents_of(self, source: str) -> Array:
        """The numbers of all documents of one source, int64, in order."""
        if source not in self.sources:
            raise UsageError(f"{self.folder}: has no source {source!r:.60}: it has {', '.join(self.sources)}"[:500])
        at = self.sources.index(source)
        found = [
            np.flatnonzero(shard.sources == at) + start for shard, start in zip(self.shards, self._starts, strict=False)
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not (name.isascii() and name.isdecimal()):
        raise ValueError(f"the shard name {name!r:.40}")
    return name


def _count(value: Any, least: int = 0, below: int = 1 << 62) -> int:
    if type(value) is not int or not least <= value < below:
        raise ValueError(f"the number {value!r:.40}")
    return value


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """index.json of a corpus."""
    write_json(folder / INDEX, {"format_version": FORMAT_VERSION, **index})
