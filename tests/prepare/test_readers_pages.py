"""Web pages and Markdown out of files, and text that is hostile: front matter, charsets, lines without end."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import shared

from kiloq.prepare.documents import meta_of
from kiloq.prepare.readers.markdown import front_matter

from .reading import bads, reasons, rows, texts


def test_real_pages_are_the_bytes_as_text(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    with zstandard.open(shared("data", "webpages", "pages.jsonl.zst"), "rt", encoding="utf-8") as lines:
        wanted = [json.loads(line)["html"] for line, _ in zip(lines, range(20), strict=False)]
    for number, html in enumerate(wanted):
        path = tmp_path / f"{number % 3}" / f"{number:02}.htm{'.gz' if number % 2 else ''}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(html.encode()) if number % 2 else html.encode())
    found = rows(tmp_path)
    assert [row["id"] for row in found][:2] == ["0/00.htm", "0/03.htm.gz"]
    order = sorted(range(20), key=lambda number: (number % 3, number))
    assert [row["text"] for row in found] == [wanted[number].replace("\0", "\ufffd") for number in order]
    assert {row["format"] for row in found} == {"html"}


def test_a_page_s_charset_and_size(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(b'<meta charset="gbk">' + "灯塔已经很多年".encode("gbk"))
    (tmp_path / "b.html").write_bytes("é".encode("latin-1"))
    (tmp_path / "c.html").write_bytes(b"<p>" + b"x" * 100)
    (tmp_path / "d.html").write_bytes(b" \n ")
    assert texts(tmp_path, most_bytes=100, encoding="latin-1")[1] == "é"
    assert texts(tmp_path, most_bytes=100)[0] == '<meta charset="gbk">灯塔已经很多年'
    assert reasons(tmp_path, most_bytes=100) == {"the file has more bytes than 100": 1, "the file is empty": 1}


FRONT = [
    ("---\ntitle: A page\ndate: 2023-08-03\n---\n\n# Text", {"title": "A page", "date": "2023-08-03"}, "# Text"),
    ("---\r\ntags: [a, 'b c']\r\n...\r\nText", {"tags": ("a", "b c")}, "Text"),
    ('---\ntags:\n  - a\n- "b"\nempty:\n# note\n\n---\nText', {"tags": ("a", "b"), "empty": ""}, "Text"),
    ("---\nurl: http://x.org/a: b # note\nnone: []\n---", {"url": "http://x.org/a: b", "none": ()}, ""),
    ("text\n---\na: b\n---\n", {}, None),
    ("---\n---\n", {}, None),
    ("---\n\n---\ntext", {}, None),
    ("---\nJust a rule above.\n---\nMore.", {}, None),
    ("---\na: b\nno end", {}, None),
    ("---\na: b\na: c\n---\n", {}, None),
    ("---\na:\n  b: c\n---\n", {}, None),
    ("---\na: |\n  text\n---\n", {}, None),
    ("---\na: &x b\n---\n", {}, None),
    ("---\na: [b\n---\n", {}, None),
    ('---\na: "b\n---\n', {}, None),
    ("---\n- a\n---\n", {}, None),
    ("---\na: " + "[" * 8000 + "]" * 8000 + "\n---\n", {}, None),
    ("---\n" + "a: b\n" * 200_000 + "---\n", {}, None),
    ("---\n" + "".join(f"a{n}: b\n" for n in range(101)) + "---\n", {}, None),
]


@pytest.mark.parametrize(("text", "meta", "body"), FRONT)
def test_front_matter(text: str, meta: dict[str, Any], body: str | None) -> None:
    assert front_matter(text) == (meta, text if body is None else body)


def test_a_markdown_file(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("\ufeff" + FRONT[1][0])
    (tmp_path / "b.rst").write_text("Title\n=====\n")
    (tmp_path / "c.md").write_bytes(b"\xff")
    found = rows(tmp_path)
    assert [(row["id"], row["format"], row["text"]) for row in found] == [
        ("a.md", "markdown", "Text"), ("b.rst", "markdown", "Title\n=====\n")
    ]  # fmt: skip
    assert meta_of(found[0]["meta"]) == {"tags": ["a", "b c"]}
    assert bads(tmp_path) == [("c.md", "read: a byte is not utf-8: 0xff", "\ufffd")]


def test_a_real_book_is_cut_at_blank_lines() -> None:
    zstandard = pytest.importorskip("zstandard")
    path = shared("data", "long_documents", "en_war_and_peace.txt.zst")
    with zstandard.open(path, "rb") as file:
        book = file.read()
    for size in (5_000, 1 << 20):
        found = rows(path, document_bytes=size)
        assert "".join(row["text"] for row in found) == book.decode().removeprefix("\ufeff")
        assert all(row["text"].endswith("\r\n\r\n") for row in found[:-1])
        assert max(len(row["text"].encode()) for row in found) < 2 * size


def test_one_wrong_line_costs_its_document_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good one\n\nbad \xff\nline\n\n" + b"x" * 101 + b"\nafter\n\nlast")
    fields: dict[str, Any] = {"split": "paragraphs", "most_bytes": 100}
    for piece_bytes in (1, 10, 1000):
        assert texts(path, piece_bytes, **fields) == ["good one\n", "after\n", "last"]
        assert [(bad.where, bad.reason) for bad in bads(path, piece_bytes, **fields)] == [
            ("a.txt#3", "read: a byte is not utf-8: 0xff"), ("a.txt#6", "read: the line has more bytes than 100")
        ]  # fmt: skip
    assert texts(path, most_bytes=100, encoding="latin-1") == ["good one\n\nbad ÿ\nline\n\nafter\n\nlast"]
    path.write_bytes(b"word word\n" * 11 + b"\nshort")
    assert texts(path, 1, **fields) == ["short"]
    assert reasons(path, 1, **fields) == {"the paragraph has more bytes than 100": 1}


def test_gigantic_text_takes_no_memory(tmp_path: Path) -> None:
    """100 MB of zeros in one line, and a paragraph of 21 MB, with records of 1 MB."""
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(100 << 20)  # a hole: takes no disk
    (tmp_path / "b.txt").write_bytes(b"many words in a line\n" * 1_000_000 + b"\nend\n")
    code = (
        "import resource, sys\nfrom kiloq.prepare.readers.plan import plan\nfrom kiloq.prepare.readers.read import read\n"
        "from kiloq.prepare.readers.source import Bad, Source\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "source = Source(name='s', path=sys.argv[1], split='paragraphs', most_bytes=1 << 20)\n"
        "for piece in plan(source, 8 << 20):\n"
        "    for found in read(source, piece):\n"
        "        print(found.reason if isinstance(found, Bad) else repr(found['text']))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    *said, megabytes = done.stdout.splitlines()
    assert said == [
        "read: the line has more bytes than 1048576",
        "read: the paragraph has more bytes than 1048576",
        r"'end\n'",
    ]
    assert int(megabytes) < 20
