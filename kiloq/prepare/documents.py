"""Documents as rows of an Arrow table, and what every step does to them: texts edited, columns added, reasons given.

A *Document* is a row of SCHEMA. Steps take a batch of rows and return a Result with the same rows in the same order;
a row that is to go keeps its place and gets a reason, so that reports can count what each step dropped and why.
Arrow is the one currency of this folder, so its files import pyarrow at the top; who asks for it here first learns what is missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from kiloq.core.errors import MissingError

try:
    import pyarrow as pa  # type: ignore[import-untyped]
except ImportError:
    raise MissingError("preparing text needs more packages: run `pip install 'kiloq[data]'` to get them") from None

FORMATS = ("html", "text", "code", "markdown")

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),  # unique within the source
        pa.field("source", pa.string()),  # the source's name in the recipe
        pa.field("format", pa.string()),  # one of FORMATS
        pa.field("text", pa.large_string()),  # 64-bit offsets: a batch may hold more than 2 GiB
        pa.field("language", pa.string()),  # ISO 639 code; null until it is known
        pa.field("meta", pa.string()),  # a JSON object: url, title and whatever the source has
    ]
)


@dataclass(frozen=True)
class Result:
    """What a step made of a batch."""

    batch: pa.RecordBatch  # as many rows as went in, in the same order
    reasons: list[str | None]  # why a row is to go; None: it stays
    edits: Counter[str] = field(default_factory=Counter)  # what was changed in texts, and how often


class Step(Protocol):
    """A frozen dataclass of settings with one pure, deterministic method."""

    name: ClassVar[str]

    def apply(self, batch: pa.RecordBatch) -> Result: ...


class Outcome(NamedTuple):
    """What a step made of one text."""

    text: str
    reason: str | None = None
    edits: Mapping[str, int] = {}


def texts_of(batch: pa.RecordBatch) -> list[str]:
    """The texts of a batch; a null is an empty text."""
    return [text or "" for text in batch.column("text").to_pylist()]


def strings_of(batch: pa.RecordBatch, name: str) -> list[str | None]:
    """A column of strings; all None when the batch has no such column."""
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    values: list[str | None] = batch.column(name).to_pylist()
    return values


def with_column(batch: pa.RecordBatch, name: str, values: Sequence[Any], kind: pa.DataType) -> pa.RecordBatch:
    """`batch` with the column `name` set to `values`: replaced in its place, or appended."""
    array = pa.array(values, kind)
    place = batch.schema.get_field_index(name)
    if place < 0:
        return batch.append_column(pa.field(name, kind), array)
    return batch.set_column(place, pa.field(name, kind), array)


def with_scores(batch: pa.RecordBatch, name: str, values: Sequence[float | None]) -> pa.RecordBatch:
    """`batch` with a column of scores, float32; None becomes null."""
    return with_column(batch, name, values, pa.float32())


def with_texts(batch: pa.RecordBatch, texts: Sequence[str]) -> pa.RecordBatch:
    """`batch` with its texts replaced."""
    return with_column(batch, "text", texts, SCHEMA.field("text").type)


def each_outcome(batch: pa.RecordBatch, outcomes: Iterable[Outcome]) -> Result:
    """The Result of one Outcome per row."""
    found = list(outcomes)
    assert len(found) == batch.num_rows, f"{len(found)} outcomes for {batch.num_rows} rows"
    edits: Counter[str] = Counter()
    for outcome in found:
        edits.update({name: count for name, count in outcome.edits.items() if count})
    return Result(with_texts(batch, [outcome.text for outcome in found]), [outcome.reason for outcome in found], edits)


def each_text(batch: pa.RecordBatch, function: Callable[[str], Outcome]) -> Result:
    """Apply `function` to every text: for steps that edit."""
    return each_outcome(batch, map(function, texts_of(batch)))


def each_reason(batch: pa.RecordBatch, function: Callable[[str], str | None]) -> Result:
    """Ask `function` for a reason for every text: for steps that only judge. The batch stays as it is."""
    return Result(batch, [function(text) for text in texts_of(batch)])


def meta_of(text: str | None) -> dict[str, Any]:
    """The `meta` column's JSON object; an empty one where there is none or it is damaged."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def meta_text(meta: Mapping[str, Any]) -> str:
    """`meta` as the column holds it: compact, keys sorted, so that equal objects are equal strings."""
    return json.dumps(meta, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def batch_of(rows: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    """A batch of SCHEMA from dictionaries; what a row lacks gets a plain default."""
    plain = {"id": "", "source": "", "format": "text", "text": "", "language": None, "meta": "{}"}
    return pa.RecordBatch.from_pylist([{**plain, **row} for row in rows], schema=SCHEMA)
