"""Exact copies of documents, paragraphs and lines: which are found, which stay, and what is left of a text."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.naive_dedup import copies

from kiloq.core.errors import MissingError, UsageError
from kiloq.prepare.dedup import exact, normal
from kiloq.prepare.dedup.exact import Exact
from kiloq.prepare.documents import Result, batch_of, texts_of
from kiloq.prepare.pipeline.stages import GlobalStep

from .samples import CHINESE, ENGLISH

PINNED = [[9252971217335368855, 14408743359802425630], [6772415347425562712, 10551892104702533529]]
PART = 3 << 32  # the number of a document is its part << 32 | its row


def numbers(count: int) -> Any:
    return np.arange(PART, PART + count, dtype=np.uint64)


def deduplicated(step: Exact, *texts: str, **row: Any) -> Result:
    """What `step` leaves of `texts`, as documents 0, 1, … of part 3."""
    batch, docs = batch_of([{"text": text, **row} for text in texts]), numbers(len(texts))
    return step.drop(batch, docs, step.group(step.keys(batch, docs)))


def test_the_first_document_stays() -> None:
    texts = [
        ENGLISH,
        CHINESE,
        ENGLISH.upper().replace("\n", " "),
        CHINESE.replace("，", " ,"),
        ENGLISH + " More.",
        "",
        "",
    ]
    result = deduplicated(Exact(), *texts)
    assert result.reasons == [
        None, None, "exact: a copy of document 0 in part 3", "exact: a copy of document 1 in part 3", None, None, None,
    ]  # fmt: skip
    assert texts_of(result.batch) == texts


def test_program_text_is_compared_as_it_is() -> None:
    texts = ["a = b * c\n", "a = b / c\n", "\na = b * c", "A = b * c"]
    assert [bool(reason) for reason in deduplicated(Exact(), *texts).reasons] == [False, True, True, True]
    assert [bool(reason) for reason in deduplicated(Exact(), *texts, format="code").reasons] == [0, 0, 1, 0]


def test_a_program_keeps_the_lines_that_others_have_too() -> None:
    line = "from collections.abc import Iterator, Mapping, Sequence\n"
    texts = [line + "a = 1\n", line + "b = 2\n"]
    kept = deduplicated(Exact(unit="line"), *texts, format="code")
    assert (texts_of(kept.batch), kept.edits) == (texts, {})
    assert deduplicated(Exact(unit="line", whole_formats=()), *texts, format="code").edits == {"copied lines cut": 1}
    with pytest.raises(UsageError, match="whole_formats has 'program': choose from html, text, code, markdown"):
        Exact(whole_formats=("program",))


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_later_copies_are_cut(unit: str) -> None:
    joint = "\n" if unit == "line" else "\n \n\n"
    first, second, third, *_ = ENGLISH.split("\n")
    result = deduplicated(
        Exact(unit=unit),
        joint.join([first, "}", second, "}"]),
        joint.join(["}", second, third, first.lower(), third]),
        second,
    )
    assert texts_of(result.batch) == [joint.join([first, "}", second, "}"]), joint.join(["}", third]), ""]
    assert result.reasons == [None, None, f"exact: all that it says are copied {unit}s"]
    assert result.edits == {f"copied {unit}s cut": 4}


def test_lines_of_a_paragraph_stand_together() -> None:
    text = ENGLISH + "\n\n" + CHINESE
    step = Exact(unit="paragraph")
    assert (
        texts_of(deduplicated(step, text, ENGLISH.split("\n")[0] + "\n\n" + CHINESE).batch)[1] == ENGLISH.split("\n")[0]
    )


@pytest.mark.parametrize(
    ("least", "line"), [(30, "x" * 30), (31, "x" * 30), (9, "北方的"), (10, "北方的"), (1, "}"), (3, "a-b")]
)
def test_short_lines_stay(least: int, line: str) -> None:
    """A Han character is as wide as three; punctuation has no width."""
    result = deduplicated(Exact(unit="line", least_chars=least), f"{line}\nA", f"{line}\nB")
    assert result.edits == ({} if least in (31, 10) or line in ("}", "a-b") else {"copied lines cut": 1})


@given(
    st.lists(st.lists(st.sampled_from(["Aa", "aa!", "bB", "b", "}", "北", "北。", ""]), max_size=5), max_size=6),
    st.randoms(),
)
def test_losers_agree_with_a_naive_search_in_any_order(documents: list[list[str]], random: Any) -> None:
    step = Exact(unit="line", least_chars=1)
    batch, docs = batch_of([{"text": "\n".join(lines)} for lines in documents]), numbers(len(documents))
    keys = step.keys(batch, docs)
    order = list(range(keys.num_rows))
    random.shuffle(order)
    losers = step.group(keys.take(np.array(order, np.int64)))
    naive = copies(
        [(PART + row, place, line) for row, lines in enumerate(documents) for place, line in enumerate(lines)]
    )
    columns = (losers.column(name).to_pylist() for name in ("doc", "place", "kept"))
    assert list(zip(*columns, strict=True)) == naive


def test_half_a_hash_does_not_make_a_copy() -> None:
    rows = {"band": [0] * 5, "bucket": [7] * 5, "doc": [5, 4, 3, 2, 1], "check": [1, 2, 1, 2, 3], "place": [0] * 5}
    losers = Exact().group(pa.table(rows, schema=exact.KEYS))
    assert losers.to_pydict() == {"doc": [4, 5], "place": [0, 0], "kept": [2, 3]}


def test_keys_are_those_of_every_version() -> None:
    keys = Exact().keys(batch_of([{"text": ENGLISH}, {"text": CHINESE}]), numbers(2))
    assert keys.schema == exact.KEYS
    assert keys.column("bucket").to_pylist() == PINNED[0]
    assert keys.column("check").to_pylist() == PINNED[1]


def test_a_long_text_is_hashed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of([{"text": (ENGLISH + CHINESE) * 9}, {"text": ENGLISH}])
    whole = Exact().keys(batch, numbers(2))
    monkeypatch.setattr(exact, "PIECE_CHARS", 1 << 10)
    monkeypatch.setattr(normal, "PIECE_CHARS", 1 << 10)
    assert Exact().keys(batch, numbers(2)) == whole


def test_losers_of_other_documents_are_passed_over() -> None:
    losers = pa.table({"doc": pa.array([1, PART, PART + 9], pa.uint64()), "place": pa.array([0] * 3, pa.uint32()), "kept": pa.array([0] * 3, pa.uint64())})  # fmt: skip
    batch = batch_of([{"text": "a"}, {"text": "b"}])
    assert Exact().drop(batch, numbers(2), losers).reasons == ["exact: a copy of document 0 in part 0", None]
    assert Exact().drop(batch.slice(0, 0), numbers(0), losers).reasons == []


@pytest.mark.parametrize("step", [Exact(), Exact(unit="paragraph"), Exact(unit="line")])
def test_hostile_text_ends(step: Exact) -> None:
    assert isinstance(step, GlobalStep)
    texts = [
        "a" * 10**6,
        " " * 10**6,
        "\n " * 500_000,
        "}\n" * 500_000,
        "e" + "\u0301\u0323" * 500_000,
        "\n" + " " * 10**6 + "x",
    ]
    assert not any(deduplicated(step, *texts).reasons)
    reasons = deduplicated(step, *texts, *texts).reasons
    assert sum(map(bool, reasons[6:])) == (3 if step.unit == "document" else 1)


def test_settings() -> None:
    with pytest.raises(UsageError, match="unit is 'page': choose one of document, paragraph, line"):
        Exact(unit="page")
    with pytest.raises(UsageError, match="least_chars is 0: give 1 or more"):
        Exact(least_chars=0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingError, match=r"pip install 'kiloq\[data\]'"):
        deduplicated(Exact(), "some words")
