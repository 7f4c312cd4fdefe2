"""report.html and the data card of counts made by hand: well-formed, self-contained, safe to open, and they add up."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kiloq.prepare.documents import batch_of, with_column
from kiloq.prepare.pipeline.funnel import Funnel
from kiloq.prepare.pipeline.recipe import from_tables
from kiloq.prepare.pipeline.tally import READ, Tally
from kiloq.prepare.report.card import data_card
from kiloq.prepare.report.page import report_page

from .samples import CHINESE, ENGLISH

HOSTILE = (
    "\0\x1b]0;x\x07</pre></td></details><script>alert(1)</script><img src=x onerror=alert(1)> &amp; \"'|\n---\n# \x85"
)
VOID = {"meta", "rect", "line", "path", "circle", "polyline"}
SAFE = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "code", "table", "tr", "th", "td", "svg", "text",
    "rect", "line", "details", "summary", "div", "pre", "b",
}  # fmt: skip
TABLES: dict[str, Any] = {
    "name": HOSTILE,
    "source": [{"name": "web", "path": "a"}, {"name": "books", "path": "b"}, {"name": "none", "path": "c"}],
    "step": [
        {"kind": "gopher"},
        {"kind": "exact"},
        {"kind": "fuzzy", "bands": 5},
        {"kind": "words", "terms": [HOSTILE]},
    ],
    "mix": {"weights": {"books": 3.0}},
}


def scored(rows: list[dict[str, Any]], values: list[float | None]) -> pa.RecordBatch:
    return with_column(batch_of(rows), "quality", values, pa.float32())


def tallies(count: int = 12) -> list[Tally]:
    """One for each part: a document is too short, one is a copy, one is hostile and stays."""
    found = []
    for part in range(count):
        tally = Tally()
        rows = [
            {"id": f"{part}<b>{at}", "source": ("web", "books")[at % 2], "text": text, "language": language}
            for at, (text, language) in enumerate(
                [(ENGLISH, "en"), (CHINESE, "zh"), (HOSTILE, None), ("short", "<i>"), (ENGLISH, "en")]
            )
        ]
        whole = scored(rows, [0.5, float("nan"), -1.0, 0.0, None])
        bad = batch_of([{"id": f"{part}#9", "source": "web", "text": HOSTILE}])
        tally.read(whole, bad)
        tally.removed(READ, bad, [f"read: {HOSTILE!r}"])
        for at, (label, gone, reason) in enumerate(
            [("01-gopher", 3, "gopher: words: 1, at least 50 are needed"),
             ("02-exact", 4, f"exact: a copy of document 0 in part {part}"),
             ("03-fuzzy", None, ""), ("04-words", None, "")]
        ):  # fmt: skip
            before = whole.slice(0, 5 - min(at, 2))
            after = whole.slice(0, before.num_rows - (gone is not None))
            tally.passed(label, before, after)
            if gone is not None:
                tally.removed(label, whole.slice(gone, 1), [reason])
        tally.edited("01-gopher", {HOSTILE: 2})
        tally.kept(whole.slice(0, 3))
        found.append(tally)
    return found


def funnel_of(parts: list[Tally]) -> Funnel:
    funnel = Funnel(from_tables(TABLES, Path("/")), len(parts))
    for tally in parts:
        funnel.tally.add(tally)
    funnel.keys["03-fuzzy"] = 60
    funnel.clusters["03-fuzzy"] = {2: 3, 10: 1}
    return funnel


@pytest.fixture(scope="module")
def page() -> str:
    return report_page(funnel_of(tallies()))


class Tags(HTMLParser):
    """Every element is closed in its order, and none can do or fetch anything."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        for name, _ in attrs:
            assert not name.startswith("on") and name not in ("src", "href", "style", "srcset", "action"), (tag, name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def test_the_page_is_well_formed_and_can_do_nothing(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert tags.seen <= SAFE, tags.seen - SAFE
    assert page.startswith("<!doctype html>")
    assert not re.search(r"url\(|@import|http", page)


def test_hostile_text_is_shown_as_text(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    shown = "".join(tags.data)
    assert "<script>alert(1)</script>" in shown and "\\x00\\x1b]0;x\\x07" in shown
    assert not set(map(chr, (*range(9), *range(11, 32), *range(127, 160)))) & set(page)


def test_the_numbers_of_the_steps_add_up(page: str) -> None:
    table = page.split("<table>")[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["00-read", "01-gopher", "02-exact", "03-fuzzy", "04-words"]
    numbers = [[int(row[at].replace(",", "")) for at in (1, 2, 4)] for row in rows]
    assert numbers == [[72, 12, 60], [60, 12, 48], [48, 12, 36], [36, 0, 36], [36, 0, 36]]
    assert "72 documents were read, 36 are kept (50.0%" in page


def test_sources_and_languages_add_up() -> None:
    funnel = funnel_of(tallies())
    for what in ("source", "language"):
        found = funnel.by(what)
        assert sum(both["read"].documents for both in found.values()) == 60  # what could not be read is no document
        assert sum(both["kept"].documents for both in found.values()) == funnel.documents_out == 36
        assert sum(both["kept"].bytes for both in found.values()) == funnel.bytes_out
    assert [part.source for part in funnel.mix()] == ["web", "books", "none"]
    assert funnel.mix()[2].places == 0


def test_a_report_does_not_depend_on_the_order_of_the_parts(page: str) -> None:
    for seed in range(5):
        parts = tallies()
        random.Random(seed).shuffle(parts)
        funnel = funnel_of(parts)
        assert report_page(funnel) == page
        assert data_card(funnel) == data_card(funnel_of(tallies()))
    bins = page.split("<h3>quality</h3>")[1].split("</svg>")[0]
    assert bins.index(">-0<") < bins.index(">0<") < bins.index(">0.5<") < bins.index(">nan<")


def test_a_run_without_documents_has_a_report() -> None:
    funnel = Funnel(from_tables(TABLES, Path("/")), 0)
    tags = Tags()
    tags.feed(report_page(funnel))
    assert (tags.open, funnel.mix(), funnel.documents_in) == ([], [], 0)
    assert "0 documents" in data_card(funnel)


def test_a_mix_that_draws_from_empty_sources_alone_is_none() -> None:
    tables = {**TABLES, "mix": {"weights": {"web": 0.0, "books": 0.0}}}
    funnel = Funnel(from_tables(tables, Path("/")), 1)
    funnel.tally.add(tallies(1)[0])
    assert funnel.documents_out and funnel.mix() == []


def test_the_card_has_whole_tables_and_its_own_headings_only() -> None:
    card = data_card(funnel_of(tallies()))
    _, front, body = card.split("---\n", 2)
    assert [line for line in front.splitlines() if line.startswith("- ")][1:] == ['- "en"', '- "zh"']
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings[1:] == ["## Sources", "## Languages", "## What was done", "## What to know"]
    assert "<script" not in card and "\0" not in card and "\x1b" not in card
    for table in re.findall(r"(?:^\|.*\|\n)+", body, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "| 03-fuzzy | bands = 5 | 36 | 0 |" in card
    assert "near copies were looked for" in card and "Personal data was not masked" in card
