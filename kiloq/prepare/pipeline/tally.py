"""What a run counts: documents in and out of every step, why, from where, in which language, and a few samples.

Each task counts its own part; tallies add up in any order to the same whole, so the numbers do not depend on how many
workers there were. Samples are the documents with the smallest hashes of their ids: a random choice that every part can
make by itself. A tally is plain JSON on disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

SAMPLES = 5  # of each step; ours
SAMPLE_CHARS = 600
UNIT_BINS = 40  # of a score from 0 to 1
OCTAVE_BINS = 4  # of a score that goes beyond 1, per doubling
UNKNOWN = "unknown"
COUNTERS = ("steps", "reasons", "edits", "sizes", "scores", "hits")  # the fields that are dictionaries of counts
READ = "00-read"  # the label of reading, before all steps

_VALUES = re.compile(r"'[^']*'|(?<![A-Za-z\d])\d(?:[\d,.]*\d)?%?")


@dataclass
class Tally:
    """Counts of one task, or of many added up."""

    steps: dict[str, Counter[str]] = field(default_factory=dict)  # label -> documents and bytes, in and out
    reasons: dict[str, Counter[str]] = field(default_factory=dict)  # label -> reason without its values -> documents
    edits: dict[str, Counter[str]] = field(default_factory=dict)  # label -> what was changed -> how often
    sizes: dict[str, Counter[str]] = field(default_factory=dict)  # "read" and "kept" -> "source\tlanguage\tunit"
    scores: dict[str, Counter[str]] = field(default_factory=dict)  # column -> "kept 17", "removed 3": bins
    hits: dict[str, Counter[str]] = field(default_factory=dict)  # label -> [set, item] as JSON -> documents that had it
    samples: dict[str, list[list[str]]] = field(default_factory=dict)  # label -> [hash, id, reason, excerpt]

    def read(self, batch: pa.RecordBatch, bad: pa.RecordBatch) -> None:
        """A batch as it comes from a reader, and what could not be read on the way."""
        self._sizes("read", batch)
        for way, rows in (("in", batch), ("in", bad), ("out", batch)):
            self._count(READ, way, rows)

    def passed(self, label: str, before: pa.RecordBatch, after: pa.RecordBatch) -> None:
        """A batch as it went into a step and as it came out of it."""
        self._count(label, "in", before)
        self._count(label, "out", after)

    def edited(self, label: str, edits: Mapping[str, int]) -> None:
        """What a step changed."""
        if edits:
            self.edits.setdefault(label, Counter()).update(edits)

    def removed(self, label: str, batch: pa.RecordBatch, reasons: Iterable[str]) -> None:
        """The rows that a step took out, and why."""
        reasons = list(reasons)
        self.reasons.setdefault(label, Counter()).update(map(grouped, reasons))
        self._scores("removed", batch)
        self._sample(label, batch, reasons)

    def contaminated(self, label: str, names: Iterable[str | None]) -> None:
        """The items of test sets that documents had: a JSON list of [set, item] for each, or None."""
        for text in filter(None, names):
            self.hits.setdefault(label, Counter()).update(map(json.dumps, json.loads(text)))

    def kept(self, batch: pa.RecordBatch) -> None:
        """Rows that went through everything."""
        self._sizes("kept", batch)
        self._scores("kept", batch)
        self._sample("kept", batch, [""] * batch.num_rows)

    def add(self, other: Tally) -> None:
        """Count what `other` has counted too."""
        for name in COUNTERS:
            mine, theirs = getattr(self, name), getattr(other, name)
            for key, counts in theirs.items():
                mine.setdefault(key, Counter()).update(counts)
        for label, rows in other.samples.items():
            self.samples[label] = sorted([*self.samples.get(label, []), *rows])[:SAMPLES]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, keys sorted, so that equal tallies are equal bytes."""
        found: dict[str, Any] = {
            name: {key: dict(sorted(counts.items())) for key, counts in sorted(getattr(self, name).items())}
            for name in COUNTERS
        }
        return {**found, "samples": dict(sorted(self.samples.items()))}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Tally:
        counters = {name: {key: Counter(counts) for key, counts in found[name].items()} for name in COUNTERS}
        return cls(**counters, samples={label: list(rows) for label, rows in found["samples"].items()})

    def _count(self, label: str, way: str, batch: pa.RecordBatch) -> None:
        counts = self.steps.setdefault(label, Counter())
        counts[f"documents {way}"] += batch.num_rows
        counts[f"bytes {way}"] += text_bytes(batch)

    def _sizes(self, when: str, batch: pa.RecordBatch) -> None:
        counts = self.sizes.setdefault(when, Counter())
        sizes = pc.binary_length(batch.column("text")).to_pylist()
        rows = zip(batch.column("source").to_pylist(), batch.column("language").to_pylist(), sizes, strict=True)
        for source, language, size in rows:
            key = f"{source}\t{language or UNKNOWN}"
            counts[f"{key}\tdocuments"] += 1
            counts[f"{key}\tbytes"] += size or 0

    def _scores(self, fate: str, batch: pa.RecordBatch) -> None:
        for at, column in enumerate(batch.schema):
            if pa.types.is_float32(column.type):
                bins = self.scores.setdefault(column.name, Counter())
                bins.update(f"{fate} {bin_of(value)}" for value in batch.column(at).to_pylist() if value is not None)

    def _sample(self, label: str, batch: pa.RecordBatch, reasons: list[str]) -> None:
        ids = [f"{source}/{name}" for source, name in zip(*map(batch.column, ("source", "id")), strict=True)]
        hashes = [hashlib.blake2b(name.encode(), digest_size=8).hexdigest() for name in ids]
        chosen = sorted(range(len(ids)), key=lambda row: (hashes[row], ids[row]))[:SAMPLES]
        texts = batch.column("text")
        rows = [[hashes[row], ids[row], reasons[row], (texts[row].as_py() or "")[:SAMPLE_CHARS]] for row in chosen]
        self.samples[label] = sorted([*self.samples.get(label, []), *rows])[:SAMPLES]


def text_bytes(batch: pa.RecordBatch) -> int:
    """UTF-8 bytes of all texts."""
    return pc.sum(pc.binary_length(batch.column("text"))).as_py() or 0


def grouped(reason: str) -> str:
    """A reason without its values, so that reports can count it: "gopher: words: N, at least N are needed"."""
    return _VALUES.sub("N", reason)


def bin_of(value: float) -> str:
    """The bin of a score, by its lower edge: UNIT_BINS from 0 to 1, beyond it OCTAVE_BINS to a doubling."""
    if math.isnan(value):
        return "nan"
    if 0 <= value <= 1:
        return f"{min(int(value * UNIT_BINS), UNIT_BINS - 1) / UNIT_BINS:g}"
    if value < 0:
        return "-0"
    return f"{2 ** (math.floor(math.log2(min(value, 1e30)) * OCTAVE_BINS) / OCTAVE_BINS):.4g}"
