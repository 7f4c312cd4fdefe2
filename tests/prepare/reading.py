"""What the tests of readers share: a source read through its pieces, and the rows and bad records of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from kiloq.prepare.documents import batch_of
from kiloq.prepare.readers.plan import plan
from kiloq.prepare.readers.read import read
from kiloq.prepare.readers.source import Bad, Piece, Source

PIECE_BYTES = 1 << 20


def records(path: Path, piece_bytes: int = PIECE_BYTES, **fields: Any) -> list[dict[str, Any] | Bad]:
    """Everything that a source gives, piece by piece; the pieces go through JSON as they do on their way to a task."""
    source = Source(name="s", path=str(path), **fields)
    pieces = [Piece.from_json(json.loads(json.dumps(piece.to_json()))) for piece in plan(source, piece_bytes)]
    return [found for piece in pieces for found in read(source, piece)]


def rows(path: Path, piece_bytes: int = PIECE_BYTES, **fields: Any) -> list[dict[str, Any]]:
    """The rows of a source, which Arrow has taken."""
    found = [record for record in records(path, piece_bytes, **fields) if not isinstance(record, Bad)]
    assert batch_of(found).to_pylist() == found
    assert len({row["id"] for row in found}) == len(found), "ids are not unique"
    return found


def bads(path: Path, piece_bytes: int = PIECE_BYTES, **fields: Any) -> list[Bad]:
    """The bad records of a source; what holds for each of them is asserted here."""
    found = [record for record in records(path, piece_bytes, **fields) if isinstance(record, Bad)]
    for bad in found:
        assert bad.reason.startswith("read: ") and "\n" not in bad.reason and str(path) not in bad.reason
        assert len(bad.sample) <= 200
        json.dumps(bad, ensure_ascii=False).encode()
    return found


def texts(path: Path, piece_bytes: int = PIECE_BYTES, **fields: Any) -> list[str]:
    """The texts of a source."""
    return [row["text"] for row in rows(path, piece_bytes, **fields)]


def reasons(path: Path, piece_bytes: int = PIECE_BYTES, **fields: Any) -> Counter[str]:
    """The reasons of a source's bad records, without "read: "."""
    return Counter(bad.reason.removeprefix("read: ") for bad in bads(path, piece_bytes, **fields))
