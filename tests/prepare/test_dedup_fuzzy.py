"""Near copies: buckets to edges, edges to losers, the best copy stays; and recall on real texts with planted copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import naive_dedup

from kiloq.core.errors import UsageError
from kiloq.prepare.dedup import fuzzy
from kiloq.prepare.dedup.fuzzy import KEYS, RANKS, Fuzzy, cluster_sizes, losers_of
from kiloq.prepare.dedup.groups import edges_of
from kiloq.prepare.dedup.joins import label_files
from kiloq.prepare.dedup.lsh import stars
from kiloq.prepare.documents import batch_of, with_column, with_scores
from kiloq.prepare.pipeline.stages import GlobalStep

from .planted import pairs
from .samples import CHINESE, ENGLISH

PART = 3 << 32  # the number of a document is its part << 32 | its row


def numbers(count: int) -> Any:
    return np.arange(PART, PART + count, dtype=np.uint64)


def decide(step: Fuzzy, batch: Any) -> list[str | None]:
    """The reasons against the rows of `batch`, as documents 0, 1, … of part 3."""
    docs = numbers(batch.num_rows)
    settled = step.settle([step.group(step.keys(batch, docs))], [step.ranks(batch, docs)])
    return step.drop(batch, docs, settled.losers).reasons


def rows_of(*texts: str) -> Any:
    return batch_of([{"text": text} for text in texts])


def copy_of(number: int) -> str:
    return f"fuzzy: a near copy of document {number} in part 3"


LONGER = ENGLISH + "\nThe tea was good."


def test_the_longest_copy_stays() -> None:
    texts = rows_of(ENGLISH, CHINESE, LONGER, CHINESE.replace("画家", "诗人"), "", "", "!", ENGLISH.upper())
    assert decide(Fuzzy(), texts) == [copy_of(2), None, None, copy_of(1), None, None, None, copy_of(2)]


def test_the_best_copy_stays_and_unknown_is_worst() -> None:
    batch = rows_of(LONGER, ENGLISH, ENGLISH, ENGLISH)
    for scores, kept in (
        ([None, -5.0, 2.0, 2.0], 2),
        ([None] * 4, 0),
        ([float("nan"), 0.1, -1, 0], 1),
        ([1, 1, 1, 1], 0),
    ):
        scored = with_scores(batch, "quality", scores)
        wanted = [None if row == kept else copy_of(kept) for row in range(4)]
        assert decide(Fuzzy(score="quality"), scored) == wanted
        assert decide(Fuzzy(), scored) == decide(Fuzzy(score="other"), scored) == [None, *[copy_of(0)] * 3]


def test_a_score_may_be_whole_numbers_but_no_text() -> None:
    batch = rows_of(ENGLISH, ENGLISH)
    assert decide(Fuzzy(score="stars"), with_column(batch, "stars", [None, 3], pa.int64())) == [copy_of(1), None]
    with pytest.raises(UsageError, match="the column 'id' has string: give one that has numbers"):
        decide(Fuzzy(score="id"), batch)


KEY_ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 9)), max_size=25)


def table(rows: list[tuple[int, int, int]]) -> Any:
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, KEYS, strict=True)], schema=KEYS)


@given(KEY_ROWS, st.randoms())
def test_stars_join_what_meets_in_any_order(rows: list[tuple[int, int, int]], random: Any) -> None:
    edges = stars(table(rows))
    found = list(zip(*edges.to_pydict().values(), strict=True))
    meetings = naive_dedup.meetings(rows)
    assert set(found) <= meetings
    assert found == sorted(set(found))
    assert naive_dedup.components(found) == naive_dedup.components(meetings)
    random.shuffle(rows)
    assert stars(table(rows)) == edges


@given(KEY_ROWS, st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=10, max_size=10), st.randoms())
def test_settling_agrees_with_a_naive_choice_in_any_order(
    rows: list[tuple[int, int, int]], values: list[tuple[int, int]], random: Any
) -> None:
    """A score of 0 stands for none."""
    roots = naive_dedup.components(naive_dedup.meetings(rows))
    clusters = [[doc for doc in roots if roots[doc] == root] for root in sorted(set(roots.values()))]
    best = {doc: max(docs, key=lambda one: (*values[one], -one)) for docs in clusters for doc in docs}
    ranks = [(doc, float(score) if score else None, size) for doc, (score, size) in enumerate(values)]
    random.shuffle(ranks)
    tables = [pa.table([pa.array(column, field.type) for column, field in zip(zip(*part, strict=True), RANKS, strict=True)], schema=RANKS) for part in (ranks[:4], ranks[4:])]  # fmt: skip
    random.shuffle(rows)
    settled = Fuzzy().settle([stars(table(rows[:12])), stars(table(rows))], tables)
    assert dict(zip(*settled.losers.to_pydict().values(), strict=True)) == {a: b for a, b in best.items() if a != b}
    assert settled.losers.column("doc").to_pylist() == sorted(settled.losers.column("doc").to_pylist())
    assert sum(size * count for size, count in settled.clusters.items()) == len(roots)
    assert settled.clusters == cluster_sizes(settled.losers)


def test_many_places_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows_of(ENGLISH, "", CHINESE, "one two", ENGLISH)
    whole = Fuzzy().keys(batch, numbers(5))
    monkeypatch.setattr(fuzzy, "SIGNATURE_NUMBERS", 2 * 112)
    assert Fuzzy().keys(batch, numbers(5)) == whole


def test_labels_from_files_settle_alike(tmp_path: Path) -> None:
    pytest.importorskip("daft")
    rng = np.random.default_rng(2)
    edges = edges_of(*np.sort(rng.integers(0, 200, (2, 150), dtype=np.uint64), axis=0))
    ranks = pa.table([np.arange(200, dtype=np.uint64), pa.nulls(200, pa.float32()), rng.integers(0, 9, 200, dtype=np.uint32)], schema=RANKS)  # fmt: skip
    pq.write_table(edges, tmp_path / "edges.parquet")
    labels = label_files([tmp_path / "edges.parquet"], tmp_path / "labels", tmp_path / "work", edges_in_memory=100)
    columns = [[column.to_numpy() for column in pq.read_table(path).columns] for path in labels]
    parts = [losers_of(nodes, roots, [ranks]) for nodes, roots in columns]
    assert len(parts) > 1
    assert pa.concat_tables(parts).sort_by("doc") == Fuzzy().settle([edges], [ranks]).losers


def test_a_million_buckets() -> None:
    rng = np.random.default_rng(1)
    bucket = rng.integers(0, 2**64, 1_000_000, dtype=np.uint64)
    docs = rng.permutation(1_100_000).astype(np.uint64)
    columns = [np.zeros(1_100_000, np.uint16), np.concatenate([bucket, bucket[:100_000]]), docs]
    edges = stars(pa.table(columns, schema=KEYS))
    assert edges.num_rows == 100_000
    ends = np.sort(np.stack([docs[:100_000], docs[1_000_000:]]), axis=0)
    order = np.lexsort((ends[1], ends[0]))
    assert np.array_equal(edges.column("left").to_numpy(), ends[0][order])
    assert np.array_equal(edges.column("right").to_numpy(), ends[1][order])


def test_a_bucket_of_a_million() -> None:
    columns = [np.zeros(10**6, np.uint16), np.zeros(10**6, np.uint64), np.arange(10**6, dtype=np.uint64)[::-1]]
    edges = stars(pa.table(columns, schema=KEYS))
    assert edges.num_rows == 10**6 - 1
    assert not edges.column("left").to_numpy().any()


@pytest.mark.parametrize("chinese", [False, True])
def test_planted_copies_of_real_texts_are_found(chinese: bool) -> None:
    """Of pairs alike to .8 at least .98 get one document dropped; of those dropped .95 are alike to .5."""
    size = 400 if chinese else 1500
    planted = pairs(chinese, 600, size // 4, size, seed=8)
    batch = rows_of(*(one for one, _ in planted), *(other for _, other in planted))
    reasons = decide(Fuzzy(), batch)
    similar = [naive_dedup.jaccard(*(naive_dedup.shingles(text, 5) for text in pair)) for pair in planted]
    lost = [bool(reasons[row] or reasons[row + 600]) for row in range(600)]
    alike = [gone for gone, likeness in zip(lost, similar, strict=True) if likeness >= 0.8]
    dropped = [likeness for gone, likeness in zip(lost, similar, strict=True) if gone]
    assert len(alike) >= 100
    assert np.mean(alike) >= 0.98
    assert np.mean(np.array(dropped) >= 0.5) >= 0.95


def test_tables_have_the_promised_columns() -> None:
    step = Fuzzy(bands=3, rows=2)
    assert isinstance(step, GlobalStep)
    batch = rows_of(ENGLISH, "", CHINESE)
    keys = step.keys(batch, numbers(3))
    assert keys.schema == KEYS
    assert keys.column("band").to_pylist() == [0, 0, 1, 1, 2, 2]
    assert keys.column("doc").to_pylist() == [PART, PART + 2] * 3
    assert step.keys(batch.slice(0, 0), numbers(0)).num_rows == 0
    ranks = step.ranks(batch, numbers(3))
    assert ranks.schema == RANKS
    assert ranks.to_pydict() == {
        "doc": numbers(3).tolist(),
        "score": [None] * 3,
        "size": [len(ENGLISH), 0, len(CHINESE)],
    }


@pytest.mark.parametrize("field", ["bands", "rows", "words", "characters"])
def test_settings(field: str) -> None:
    with pytest.raises(UsageError, match=f"{field} is 0: give 1 or more"):
        Fuzzy(**{field: 0})
    with pytest.raises(UsageError, match="bands \\* rows is 4500: give at most 4096"):
        Fuzzy(bands=450, rows=10)
