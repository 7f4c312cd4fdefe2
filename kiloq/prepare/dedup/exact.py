"""Exact deduplication: of documents, paragraphs or lines that say the same, the first stays.

Texts are the same when their comparable characters are (kiloq.prepare.dedup.normal), program text when it is the same
but for the space around it. Paragraph and line are CCNet's and RefinedWeb's units (Wenzek et al. 2020, section 3.1);
here the first copy always stays, and pieces too short to matter, such as a closing bracket, are never cut. Keys have
128 bits of xxh3 (XXH3_128bits 0.8, a stable format): among 10^12 pieces two differ under one key with probability
10^-15. It is no cryptographic hash: who wants a collision can have one, and gains that a text of his choice is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from kiloq.core.errors import MissingError, UsageError
from kiloq.prepare.dedup.groups import near, runs, sizes, smallest
from kiloq.prepare.dedup.normal import ALONE, GAP, PIECE_CHARS, Array, cut, fold, groups
from kiloq.prepare.documents import FORMATS, Result, strings_of, texts_of, with_texts
from kiloq.prepare.rules.fineweb import CHARS_WIDE
from kiloq.prepare.settings import check_choice, check_counts

UNITS = ("document", "paragraph", "line")
KEYS = pa.schema(
    [
        ("band", pa.uint16()),  # always 0
        ("bucket", pa.uint64()),  # the first 64 bits of the hash
        ("doc", pa.uint64()),
        ("check", pa.uint64()),  # the last 64
        ("place", pa.uint32()),  # the paragraph's or line's number in the text, from 0
    ]
)
_SEPARATORS = {"paragraph": re.compile(r"(\n(?:[^\S\n]*\n)+)"), "line": re.compile("(\n)")}
_NONE = np.iinfo(np.uint32).max


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Drops documents that came before; or cuts paragraphs or lines that did, and drops what is left empty."""

    name: ClassVar[str] = "exact"
    clustered: ClassVar[bool] = False  # a group's losers are known at once

    unit: str = "document"  # what is compared: one of UNITS
    # Letters, digits and symbols of a paragraph or line, a Han character being CHARS_WIDE; shorter ones stay.
    least_chars: int = 30  # a line of fewer is short: FineWeb, section 3.6
    # Formats whose paragraphs and lines stay: a program without the lines that others have too does not run. Ours
    whole_formats: tuple[str, ...] = ("code",)

    def __post_init__(self) -> None:
        check_choice(self, "unit", UNITS)
        if unknown := set(self.whole_formats) - set(FORMATS):
            raise UsageError(f"exact: whole_formats has {sorted(unknown)[0]!r:.40}: choose from {', '.join(FORMATS)}")
        check_counts(self, "least_chars", least=1)

    def keys(self, batch: pa.RecordBatch, docs: Array) -> pa.Table:
        """A table of KEYS, one row for each piece that counts. `docs`: uint64 [rows]."""
        least = 1 if self.unit == "document" else self.least_chars
        pieces: list[str] = []
        owners: list[int] = []
        places: list[int] = []
        plain: list[bool] = []
        rows = zip(docs.tolist(), texts_of(batch), strings_of(batch, "format"), strict=True)
        for doc, text, kind in rows:
            if self.unit != "document" and kind in self.whole_formats:
                continue
            found = [
                (place, piece) for place, piece in enumerate(self._pieces(text)) if len(piece) * CHARS_WIDE >= least
            ]
            places += [place for place, _ in found]
            pieces += [piece for _, piece in found]
            owners += repeat(doc, len(found))
            plain += repeat(kind == "code", len(found))
        hashes, widths = _hashed(pieces, np.array(plain, bool))
        long = np.flatnonzero(widths >= least)
        columns = [np.zeros(len(long), np.uint16), hashes[long, 0], np.array(owners, np.uint64)[long]]
        columns += [hashes[long, 1], np.array(places, np.uint32)[long]]
        return pa.table(columns, schema=KEYS)

    def ranks(self, batch: pa.RecordBatch, docs: Array) -> None:
        """None: the first copy stays, whatever it is like."""

    def group(self, keys: pa.Table) -> pa.Table:
        """The copies that go: `doc`, `place` and `kept`, the document with the first copy; sorted by doc and place."""
        bucket, check, doc, place = (keys.column(name).to_numpy() for name in ("bucket", "check", "doc", "place"))
        rows, starts = runs(bucket, check)
        doc, place, counts = doc[rows], place[rows], sizes(starts, len(rows))
        kept = np.repeat(smallest(doc, starts), counts)
        first = np.repeat(smallest(np.where(doc == kept, place, _NONE), starts), counts)
        lost = np.flatnonzero((doc != kept) | (place != first))
        lost = lost[np.lexsort((place[lost], doc[lost]))]
        return pa.table({"doc": doc[lost], "place": place[lost], "kept": kept[lost]})

    def drop(self, batch: pa.RecordBatch, docs: Array, losers: pa.Table) -> Result:
        """The batch without its losers. Of a paragraph or line only the copies go."""
        if self.unit == "document":
            return Result(batch, copies("exact: a copy", docs, losers))
        lost: dict[int, set[int]] = {}
        here = near(losers, docs)
        for doc, place in zip(here.column("doc").to_pylist(), here.column("place").to_pylist(), strict=True):
            lost.setdefault(doc, set()).add(place)
        texts, reasons, count = [], [], 0
        for doc, text in zip(docs.tolist(), texts_of(batch), strict=True):
            gone = lost.get(doc, set())
            left = self._without(text, gone) if gone else text
            texts.append(left)
            reasons.append(f"exact: all that it says are copied {self.unit}s" if gone and not left.strip() else None)
            count += len(gone)
        return Result(with_texts(batch, texts), reasons, Counter({f"copied {self.unit}s cut": count} if count else {}))

    def _pieces(self, text: str) -> Sequence[str]:
        return [text] if self.unit == "document" else _SEPARATORS[self.unit].split(text)[::2]

    def _without(self, text: str, gone: set[int]) -> str:
        """`text` without the pieces `gone`, each with what separates it from the piece before."""
        parts = ["", *_SEPARATORS[self.unit].split(text)]
        kept = [place for place in range(len(parts) // 2) if place not in gone]
        return "".join(parts[2 * place] * (place != kept[0]) + parts[2 * place + 1] for place in kept)


def copies(what: str, docs: Array, losers: pa.Table) -> list[str | None]:
    """For each of `docs` the reason against it, which names the copy that stays; None if it is no loser."""
    here = near(losers, docs)
    kept = dict(zip(here.column("doc").to_pylist(), here.column("kept").to_pylist(), strict=True))
    return [f"{what} of {_called(kept[doc])}" if doc in kept else None for doc in docs.tolist()]


def _called(doc: int) -> str:
    return f"document {doc & 0xFFFFFFFF} in part {doc >> 32}"


def _hashed(pieces: Sequence[str], plain: Array) -> tuple[Array, Array]:
    """Hashes, uint64 [pieces, 2], and widths in characters, int64 [pieces]. What is `plain` is not folded first."""
    digests: list[bytes] = []
    widths: list[int] = []
    for start, end in groups(pieces):
        for digest, width in _hashed_group(pieces[start:end]):
            digests.append(digest)
            widths.append(width)
    hasher = _hasher()
    for place in np.flatnonzero(plain).tolist():
        stripped = pieces[place].strip()
        digests[place], widths[place] = hasher(stripped.encode("utf-8", "surrogatepass")).digest(), len(stripped)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2), np.array(widths, np.int64)


def _hashed_group(pieces: Sequence[str]) -> Iterator[tuple[bytes, int]]:
    """Digest and width of each piece; a long one is alone in its group and is folded part by part."""
    hasher = _hasher()
    if len(pieces[0]) > PIECE_CHARS:
        whole, width = hasher(), 0
        for part in cut(pieces[0]):
            data, _, widths = _comparable([part])
            whole.update(data)
            width += int(widths[0])
        yield whole.digest(), width
        return
    data, bounds, widths = _comparable(pieces)
    for start, end, width in zip(bounds[:-1].tolist(), bounds[1:].tolist(), widths.tolist(), strict=True):
        yield hasher(data[start:end]).digest(), width


def _comparable(pieces: Sequence[str]) -> tuple[memoryview, Array, Array]:
    """The bytes that are compared, where each piece's begin and end, int64 [pieces + 1], and widths, int64 [pieces]."""
    codes, kinds, bounds = fold(pieces)
    kept = kinds != GAP
    counts, alone = (np.add.reduceat(found, bounds[:-1], dtype=np.int64) for found in (kept, kinds == ALONE))
    ends = np.concatenate([[0], np.cumsum(counts)])
    data = codes[kept].astype("<u4")
    return memoryview(data).cast("B"), ends * data.itemsize, counts + (CHARS_WIDE - 1) * alone


def _hasher() -> Any:
    try:
        from xxhash import xxh3_128
    except ImportError:
        raise MissingError("deduplication needs more packages: run `pip install 'kiloq[data]'` to get them") from None
    return xxh3_128
