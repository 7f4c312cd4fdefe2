"""Tallies: any order and grouping of the parts is the same whole, JSON keeps it, and samples are the smallest hashes."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiloq.prepare.documents import batch_of, with_column
from kiloq.prepare.pipeline.tally import READ, SAMPLE_CHARS, SAMPLES, Tally, bin_of, grouped, text_bytes

ROWS: list[dict[str, Any]] = [
    {"id": str(at), "source": "web" if at % 3 else "code", "text": "é" * at, "language": ("en", "zh", None)[at % 3]}
    for at in range(60)
]


def counted(rows: list[dict[str, Any]]) -> Tally:
    """A run of one step over `rows`: every fourth is removed."""
    tally = Tally()
    batch = batch_of(rows)
    scored = with_column(batch, "quality", [int(row["id"]) / 60 for row in rows], pa.float32())
    tally.read(batch, batch_of([]))
    gone = [int(row["id"]) % 4 == 0 for row in rows]
    kept = scored.filter(pa.array([not is_gone for is_gone in gone], pa.bool_()))
    removed = scored.filter(pa.array(gone, pa.bool_()))
    tally.passed("01-rule", scored, kept)
    tally.removed("01-rule", removed, [f"rule: words: {row['id']}, at least 50 are needed" for row in rows
                                       if int(row["id"]) % 4 == 0])  # fmt: skip
    tally.edited("01-rule", {"lines": len(rows)})
    tally.contaminated("02-tests", ['[["gsm8k", 3], ["题", 1]]', None, ""])
    tally.kept(kept)
    return tally


def summed(parts: list[Tally]) -> Tally:
    whole = Tally()
    for part in parts:
        whole.add(part)
    return whole


def as_bytes(tally: Tally) -> str:
    return json.dumps(tally.to_json())


def test_parts_in_any_order_and_grouping_are_the_same_whole() -> None:
    chance = random.Random(0)
    expected = as_bytes(counted(ROWS)).replace('"[\\"gsm8k\\", 3]": 1', "hits")
    for size in (1, 7, 30):
        parts = [counted(ROWS[at : at + size]) for at in range(0, 60, size)]
        before = [as_bytes(part) for part in parts]
        whole = summed(parts)
        for _ in range(3):
            order = list(range(len(parts)))
            chance.shuffle(order)
            cut = chance.randrange(len(parts))
            halves = [summed([parts[at] for at in order[:cut]]), summed([parts[at] for at in order[cut:]])]
            assert as_bytes(summed(halves)) == as_bytes(whole)
        assert [as_bytes(part) for part in parts] == before  # adding changes no part
        assert whole.hits["02-tests"] == {'["gsm8k", 3]': len(parts), '["\\u9898", 1]': len(parts)}
        whole.hits = counted(ROWS).hits
        assert as_bytes(whole).replace('"[\\"gsm8k\\", 3]": 1', "hits") == expected


def test_counts_are_those_of_the_rows() -> None:
    tally = counted(ROWS)
    gone = [row for row in ROWS if int(row["id"]) % 4 == 0]
    sizes = [sum(len(row["text"].encode()) for row in rows) for rows in (ROWS, gone)]
    whole = {"documents in": 60, "bytes in": sizes[0]}
    assert tally.steps[READ] == {**whole, "documents out": 60, "bytes out": sizes[0]}
    assert tally.steps["01-rule"] == {**whole, "documents out": 45, "bytes out": sizes[0] - sizes[1]}
    assert tally.reasons["01-rule"] == {"rule: words: N, at least N are needed": 15}
    assert tally.edits["01-rule"] == {"lines": 60}
    code = [row for row in ROWS if row["source"] == "code"]
    assert tally.sizes["read"]["code\ten\tdocuments"] == len(code) == 20
    assert tally.sizes["read"]["web\tunknown\tbytes"] == 2 * sum(range(2, 60, 3))
    assert sum(count for key, count in tally.sizes["kept"].items() if key.endswith("documents")) == 45
    bins = tally.scores["quality"]
    assert sum(count for name, count in bins.items() if name.startswith("kept ")) == 45
    assert sum(count for name, count in bins.items() if name.startswith("removed ")) == 15


def test_what_could_not_be_read_went_in_and_not_out() -> None:
    tally = Tally()
    tally.read(batch_of([{"text": "ab"}]), batch_of([{"text": "cde"}, {"text": ""}]))
    assert tally.steps[READ] == {"documents in": 3, "bytes in": 5, "documents out": 1, "bytes out": 2}


def test_samples_are_the_smallest_hashes_of_all() -> None:
    tally = summed([counted(ROWS[at : at + 9]) for at in range(0, 60, 9)])
    kept = [row for row in ROWS if int(row["id"]) % 4]
    names = {f"{row['source']}/{row['id']}": row["text"] for row in kept}
    hashed = sorted((hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), name) for name in names)
    assert tally.samples["kept"] == [[key, name, "", names[name]] for key, name in hashed[:SAMPLES]]
    assert all(reason.startswith("rule: words: ") for _, _, reason, _ in tally.samples["01-rule"])


def test_an_excerpt_is_short() -> None:
    tally = Tally()
    tally.kept(batch_of([{"id": "1", "source": "web", "text": "混" * 5000}]))
    assert tally.samples["kept"][0][3] == "混" * SAMPLE_CHARS


def test_json_keeps_everything() -> None:
    tally = counted(ROWS)
    again = Tally.from_json(json.loads(as_bytes(tally)))
    assert again == tally
    assert as_bytes(again) == as_bytes(tally)
    again.add(counted(ROWS[:5]))  # counters still count
    assert again.steps[READ]["documents in"] == 65
    assert Tally.from_json(Tally().to_json()) == Tally()


def test_empty_batches_and_null_texts_count_nothing() -> None:
    tally = Tally()
    empty = batch_of([])
    tally.read(empty, empty)
    tally.kept(empty)
    tally.removed("01-rule", empty, [])
    tally.edited("01-rule", {})
    assert not tally.edits
    assert not any(tally.steps[READ].values())
    null = with_column(batch_of([{"id": "1", "source": "web", "text": ""}]), "text", [None], pa.large_string())
    assert (text_bytes(empty), text_bytes(null)) == (0, 0)
    tally.kept(null)
    assert tally.sizes["kept"] == {"web\tunknown\tdocuments": 1, "web\tunknown\tbytes": 0}


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("gopher: words: 12, at least 50 are needed", "gopher: words: N, at least N are needed"),
        ("share 12.5% of 'a b' and 'c'", "share N of N and N"),
        ("1,234.5, then 7.", "N, then N."),
        ("1" + "," * 100_000, "N" + "," * 100_000),
        ("no values", "no values"),
        ("'" + "x" * 10, "'" + "x" * 10),
    ],
    ids=["words", "quotes", "points", "commas", "none", "open"],
)
def test_reasons_are_grouped_without_their_values(reason: str, expected: str) -> None:
    assert grouped(reason) == expected


@given(st.floats(width=32))
def test_a_bin_is_named_by_its_lower_edge(value: float) -> None:
    name = bin_of(value)
    if value != value:
        assert name == "nan"
    elif value < 0:
        assert name == "-0"
    elif value <= 1:
        assert float(name) <= value <= float(name) + 1 / 40 + 1e-9
    else:
        assert float(name) * 0.999 <= min(value, 1e30) <= float(name) * 2**0.25 * 1.001


def test_bins_are_few() -> None:
    assert len({bin_of(at / 10_000) for at in range(10_001)}) == 40
    assert len({bin_of(2.0**at) for at in range(-100, 1000)}) < 150
