"""Which tokens a step learns from: a pure function of (seed, step), whatever the number of processes and of restarts.

As the original did, documents are shuffled, joined, and cut into sequences; every token is predicted once an epoch, the
first of a source's epoch apart. Each source has its own stream, shuffled anew every epoch, and `core.mixture` says of
which stream sequence number n is. Nothing is kept between steps: an epoch's order is found again from its number.
Memory: 16 bytes a document of the source, twice. Source: Qwen technical report, section 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kiloq.core.errors import FormatError, UsageError
from kiloq.core.mixture import Mixture, places_of, shuffled
from kiloq.core.safe_json import load_object
from kiloq.tokenize.corpus.shards import Corpus

MAX_MIX_BYTES = 16 << 20

Array = np.ndarray[Any, np.dtype[Any]]


class Sequences(NamedTuple):
    """Some sequences: token t of a row is to be predicted from those before it."""

    ids_BT: Array  # int64 [rows, sequence + 1]
    segments_BT: Array  # int32 [rows, sequence + 1]: 0, 1, … for each document in the row
    documents: list[list[int]]  # of each row, numbers in the corpus


class Stream:
    """The documents of one source, joined in an order of their own for every epoch and cut into sequences."""

    def __init__(self, corpus: Corpus, documents: Array, lengths: Array, sequence: int, key: tuple[int, int]) -> None:
        self._corpus, self._documents, self._lengths = corpus, documents, lengths
        self._sequence, self._key = sequence, key
        self.sequences = max(0, (int(lengths.sum()) - 1) // sequence)
        self._order = lru_cache(maxsize=2)(self._ordered)

    def _ordered(self, epoch: int) -> tuple[Array, Array]:
        """Documents in the epoch's order, and where each begins in the joined tokens."""
        order = shuffled(len(self._documents), *self._key, epoch)
        return self._documents[order], np.concatenate([[0], np.cumsum(self._lengths[order])])

    def read(self, epoch: int, number: int, ids_T: Array, segments_T: Array) -> list[int]:
        """Fill in sequence `number` of an epoch; the documents that it has parts of."""
        documents, starts = self._order(epoch)
        at, end = number * self._sequence, number * self._sequence + self._sequence + 1
        place = int(np.searchsorted(starts, at, side="right")) - 1
        found, begin = list[int](), at
        while begin < end:
            document = int(documents[place])
            stop = min(int(starts[place + 1]), end)
            offset = int(starts[place])
            ids_T[begin - at : stop - at] = self._corpus.document(document)[begin - offset : stop - offset]
            segments_T[begin - at : stop - at] = len(found)
            found.append(document)
            begin, place = stop, place + 1
        return found


class Batches:
    """Batches of training sequences from a corpus."""

    def __init__(self, streams: Sequence[Stream], mixture: Mixture, sequence: int, left_out: Sequence[str]) -> None:
        self._streams, self._mixture, self._sequence = streams, mixture, sequence
        self.left_out = left_out  # sources that have no whole sequence

    def rows(self, numbers: Sequence[int]) -> Sequences:
        """The sequences number `numbers` of the whole run."""
        width = self._sequence + 1
        ids_BT = np.empty((len(numbers), width), np.int64)
        segments_BT = np.empty((len(numbers), width), np.int32)
        documents = []
        for row, number in enumerate(numbers):
            draw = self._mixture.draw(number)
            documents.append(self._streams[draw.source].read(draw.epoch, draw.document, ids_BT[row], segments_BT[row]))
        return Sequences(ids_BT, segments_BT, documents)


def training_batches(corpus: Corpus, sequence: int, seed: int, mix: Path | None, held_out: int | None) -> Batches:
    """The batches of a run. `held_out`: of each source one document of so many is left to `evaluation_rows`.

    A source that has no whole sequence is left out. Raises UsageError where all are, or the mix names others than the
    corpus has.
    """
    wanted = _shares(mix, corpus) if mix is not None else None
    lengths = _lengths(corpus)
    streams, shares = [], []
    for key, name in enumerate(corpus.sources):
        documents = corpus.documents_of(name)
        if held_out is not None:
            documents = documents[~_held(len(documents), held_out)]
        stream = Stream(corpus, documents, lengths[documents], sequence, (seed, key))
        streams.append(stream)
        shares.append(float(stream.sequences) if wanted is None else wanted[name] if stream.sequences else 0.0)
    if not any(shares):
        raise UsageError(f"{corpus.folder}: has no sequence of {sequence} tokens: give more text or a shorter sequence")
    places = places_of(shares)
    mixture = Mixture([max(1, stream.sequences) for stream in streams], places, seed)
    short = [name for name, stream in zip(corpus.sources, streams, strict=True) if not stream.sequences]
    return Batches(streams, mixture, sequence, short)


def evaluation_rows(corpus: Corpus, sequence: int, most: int, held_out: int | None) -> dict[str, Array]:
    """For each source int64 [rows, sequence + 1]: its held-out documents, or all, joined in their order and cut.

    About `most` rows in all, shared out by size; a source that has a whole row has one here.
    """
    lengths, chosen, counts = _lengths(corpus), {}, {}
    for name in corpus.sources:
        documents = corpus.documents_of(name)
        chosen[name] = documents if held_out is None else documents[_held(len(documents), held_out)]
        if (count := (int(lengths[chosen[name]].sum()) - 1) // sequence) > 0:
            counts[name] = count
    share = min(1.0, most / max(1, sum(counts.values())))
    return {name: _joined(corpus, chosen[name], sequence, max(1, int(count * share))) for name, count in counts.items()}


def _held(count: int, every: int) -> Array:
    """Which of the documents of a source are held out: the last of every so many."""
    held: Array = np.arange(count) % every == every - 1
    return held


def _joined(corpus: Corpus, documents: Array, sequence: int, rows: int) -> Array:
    """The first `rows` sequences of documents that are joined; they overlap by one token."""
    ids = np.concatenate(list(_first(corpus, documents, rows * sequence + 1)))
    return np.stack([ids[at * sequence : (at + 1) * sequence + 1] for at in range(rows)])


def _first(corpus: Corpus, numbers: Array, tokens: int) -> Iterator[Array]:
    """Documents until there are so many tokens."""
    have = 0
    for number in numbers.tolist():
        if have >= tokens:
            return
        found = corpus.document(number).astype(np.int64)
        have += len(found)
        yield found


def _lengths(corpus: Corpus) -> Array:
    """Tokens of every document, int64."""
    return np.concatenate([*(np.diff(shard.offsets) for shard in corpus.shards), np.empty(0, np.int64)])


def _shares(path: Path, corpus: Corpus) -> dict[str, float]:
    """Each source's share of the tokens, by mix.json."""
    record = load_object(path, MAX_MIX_BYTES)
    try:
        shares = {str(row["name"]): float(row["share"]) for row in record["sources"]}
    except (KeyError, TypeError, ValueError):
        raise FormatError(
            f"{path}: is no mix.json of `kiloq prepare`: a list `sources` with shares was expected"
        ) from None
    if unknown := sorted(name for name, share in shares.items() if share > 0 and name not in corpus.sources):
        raise UsageError(f"{path}: mixes the source {unknown[0]}, and the corpus has {', '.join(corpus.sources)}")
    return {name: shares.get(name, 0.0) for name in corpus.sources}
