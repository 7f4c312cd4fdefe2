"""Sources and pieces: which files are read, how they are cut, and that the cuts change no document."""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shared

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError
from kiloq.prepare.readers import plan as planning
from kiloq.prepare.readers.plan import list_files, plan
from kiloq.prepare.readers.read import read
from kiloq.prepare.readers.source import Bad, Piece, Source

from .reading import bads, reasons, records, rows, texts


def source(path: Path, **fields: Any) -> Source:
    return Source(name="s", path=str(path), **fields)


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    return folder


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a b"}, "name is 'a b': give 1 to 100 letters"),
        ({"name": "a/../b"}, "name is 'a/../b'"),
        ({"path": ""}, "path is ''"),
        ({"path": "a\0b"}, r"path is 'a\\x00b'"),
        ({"reader": "pdf"}, "reader is 'pdf': choose one of html, warc"),
        ({"format": "pdf"}, "format is 'pdf': choose one of html, text"),
        ({"split": "pages"}, "split is 'pages'"),
        ({"most_bytes": 63}, "most_bytes is 63: give 64 or more"),
        ({"document_bytes": 0}, "document_bytes is 0: give 1 or more"),
        ({"language": "a\tb"}, r"language is 'a\\tb': give a code such as en or zh-Hant"),
        ({"least_alphanumeric": 2.0}, "least_alphanumeric is 2.0"),
        ({"encoding": "utf-16"}, "encoding is 'utf-16': give one that Python knows"),
        ({"encoding": "utf-8-sig"}, "encoding is 'utf-8-sig'"),
        ({"encoding": "hex"}, "encoding is 'hex'"),
        ({"encoding": "idna"}, "encoding is 'idna'"),
        ({"encoding": "no such"}, "encoding is 'no such'"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Source(**{"name": "s", "path": "x", **fields})
    assert "\n" not in str(caught.value)


def test_files_come_in_order_and_only_those_that_can_be_read(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "b.txt",
        "a/z.md",
        "a/b/c.jsonl",
        "a.txt",
        "B.TXT",
        "x.pdf",
        ".hidden.txt",
        ".git/x.txt",
        "c.py",
        "Makefile",
    )
    tree(tmp_path / "d", "page.htm.gz")
    listed = ["B.TXT", "a.txt", "a/b/c.jsonl", "a/z.md", "b.txt", "c.py", "d/page.htm.gz"]
    assert list_files(source(tmp_path))[1] == listed
    assert list_files(source(tmp_path, reader="text"))[1] == ["B.TXT", "a.txt", "b.txt"]
    assert list_files(source(tmp_path, reader="code"))[1] == ["Makefile", "c.py"]
    assert list_files(source(tmp_path, reader="text", include=("*.pdf", "a/*")))[1] == [
        "a/b/c.jsonl",
        "a/z.md",
        "x.pdf",
    ]
    assert list_files(source(tmp_path, include=("*.pdf", "*.txt"), exclude=("b*",)))[1] == ["a.txt"]
    assert list_files(source(tmp_path / "x.pdf", reader="text"))[1] == ["x.pdf"]


def test_nothing_outside_and_nothing_but_files_is_read(tmp_path: Path) -> None:
    inside, outside = tree(tmp_path / "in", "a.txt", "sub/b.txt"), tree(tmp_path / "out", "secret.txt")
    (inside / "out.txt").symlink_to(outside / "secret.txt")
    (inside / "up").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "gone.txt").symlink_to(inside / "nothing")
    (inside / "null.txt").symlink_to("/dev/null")
    (inside / "same.txt").symlink_to("a.txt")
    os.mkfifo(inside / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(inside / "socket.txt"))
        assert list_files(source(inside))[1] == ["a.txt", "same.txt", "sub/b.txt"]
    linked = tmp_path / "link"
    linked.symlink_to(inside)
    assert len(list_files(source(linked))[1]) == 3, "the folder itself may be a link"
    for path in (inside / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(UsageError, match="is not a regular file"):
            plan(source(path, reader="text"), 100)


def test_paths_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="No such file"):
        plan(source(tmp_path / "none"), 100)
    with pytest.raises(UsageError, match=r"has no file to read for s: files like \.html .* were looked for"):
        plan(source(tmp_path), 100)
    tree(tmp_path, "a.pdf", "sub/x.txt")
    with pytest.raises(UsageError, match="has an ending that no reader is known for: give reader = one of html"):
        plan(source(tmp_path / "a.pdf"), 100)
    with pytest.raises(UsageError, match="pieces of 0 bytes"):
        plan(source(tmp_path), 0)

    def refuse(folder: Path, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", f"{folder}/sub"))
        yield from ()

    monkeypatch.setattr(planning.os, "walk", refuse)
    with pytest.raises(FormatError, match=r"sub: cannot be listed \(Permission denied\)"):
        plan(source(tmp_path), 100)


def test_small_files_share_a_piece_and_large_ones_have_their_own(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{n}.txt" for n in range(4)))  # 14 bytes each
    (tmp_path / "2.txt").write_text("line\n" * 20)
    (tmp_path / "3.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1000))
    found = plan(source(tmp_path, split="lines"), 30)
    assert [piece.files for piece in found] == [("0.txt", "1.txt"), *[("2.txt",)] * 4, ("3.jsonl.gz",), ("3.txt",)]
    assert [(p.start, p.end, p.first) for p in found[1:5]] == [(0, 30, 1), (30, 60, 7), (60, 90, 13), (90, None, 19)]
    for piece in found:
        assert Piece.from_json(json.loads(json.dumps(piece.to_json()))) == piece


ALPHABET = [
    "\n",
    "\n",
    "\n\n",
    " \n",
    "a",
    "字",
    "bcd ",
    "\r\n",
    '{"text": "x"}\n',
    "x" * 30,
    " " * 63 + "\n",
    " " * 64 + "\n",
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_cut_changes_a_document(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Named invariant: for any size of pieces, the same rows and bad records in the same order, packed or not."""
    text = "".join(data.draw(st.lists(st.sampled_from(ALPHABET), max_size=60)))
    ending = data.draw(st.sampled_from(["txt", "jsonl"]))
    fields = {
        "split": data.draw(st.sampled_from(["file", "paragraphs", "lines"])),
        "document_bytes": data.draw(st.integers(1, 60)),
        "most_bytes": data.draw(st.integers(64, 100)),
    }
    path = tmp_path_factory.getbasetemp() / f"cuts.{ending}"
    path.write_bytes(text.encode())
    whole = records(path, 1 << 20, **fields)
    for piece_bytes in (1, data.draw(st.integers(2, 200))):
        assert records(path, piece_bytes, **fields) == whole
    packed = path.with_suffix(f".{ending}.gz")
    packed.write_bytes(gzip.compress(text.encode()))
    name = json.dumps(whole).replace(path.name, packed.name)
    again = json.dumps(records(packed, 1, **fields))
    assert again == name or not text.strip()  # blank lines alone are an empty file


def test_cut_real_text_is_all_of_it(tmp_path: Path) -> None:
    """WikiText, cut into documents at its blank lines and into pieces of three sizes; the oracle is the text itself."""
    zstandard = pytest.importorskip("zstandard")
    with zstandard.open(shared("data", "pretrain_text", "wikitext2_valid.txt.zst"), "rb") as file:
        text = file.read()
    path = tmp_path / "wiki.txt"
    path.write_bytes(text)
    for piece_bytes in (10_000, 77_777, 1 << 30):
        found = rows(path, piece_bytes, document_bytes=20_000)
        assert "".join(row["text"] for row in found).encode() == text
        assert [row["id"] for row in found[:2]] == ["wiki.txt#1", f"wiki.txt#{1 + found[0]['text'].count(chr(10))}"]
        assert all(row["text"].endswith(" \n") for row in found), "a document ends with a blank line"
        assert len(found) == len(text) // 20_000 + 1
    lines = text.decode().split("\n")
    assert texts(path, 50_000, split="lines") == [line.rstrip("\r") for line in lines if line.strip()]
    paragraphs = [
        part for part in "\n".join(line if line.strip() else "" for line in lines).split("\n\n") if part.strip()
    ]
    assert [part.strip("\n") for part in texts(path, 50_000, split="paragraphs")] == [p.strip("\n") for p in paragraphs]


def test_files_that_cannot_be_read_are_bad_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a.txt", "b.txt", "c.txt", "d.txt")
    (tmp_path / "e.jsonl").write_bytes(b"")
    (tmp_path / "f.html.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "g.warc").write_bytes(b"")
    (tmp_path / "h.parquet").write_bytes(b"")
    (tmp_path / "i.jsonl.gz").write_bytes(gzip.compress(b"\n\n"))
    planned = plan(source(tmp_path), 1 << 20)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").unlink()
    (tmp_path / "c.txt").mkdir()
    opened = Path.open

    def refuse(path: Path, *arguments: Any) -> Any:
        if path.name == "d.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    found = [record for piece in planned for record in read(source(tmp_path), piece)]
    assert [record["text"] for record in found if not isinstance(record, Bad)] == ["text of a.txt\n"]
    said = {record.where: record.reason for record in found if isinstance(record, Bad)}
    assert said.pop("h.parquet").startswith("read: the file cannot be read as Parquet")
    assert said.pop("g.warc") == said.pop("e.jsonl") == said.pop("f.html.gz") == said.pop("i.jsonl.gz")
    assert said == {
        "b.txt": "read: the file is not there any more",
        "c.txt": "read: the file is a folder: a regular file was expected here",
        "d.txt": "read: the file cannot be read (Permission denied): it is damaged or cut short",
    }


def test_names_that_are_not_utf8_and_other_odd_ones(tmp_path: Path) -> None:
    for name in (b"\xff.txt", "字 a#1.txt".encode(), b"new\nline.txt"):
        (tmp_path / os.fsdecode(name)).write_text("x")
    found = rows(tmp_path, 1)
    assert [row["id"] for row in found] == ["new\nline.txt#1", "字 a#1.txt#1", "\\xff.txt#1"]


@pytest.mark.parametrize(("ending", "package"), [("jsonl.zst", "zstandard"), ("html", "resiliparse.parse")])
def test_a_missing_package_is_named(ending: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"x.{ending}").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=r"pip install 'kiloq\[data\]'"):
        records(tmp_path)


@pytest.mark.parametrize("ending", ["html", "warc", "arc.gz", "jsonl", "parquet", "txt.zst", "md", "py", "jsonl.gz"])
def test_random_bytes_are_rows_or_bad_records(tmp_path: Path, ending: str) -> None:
    """Any bytes under any ending: no other error, and every sentence in order (bads() asserts it)."""
    draw = random.Random(0)
    for number in range(40):
        path = tmp_path / f"{number:02}.{ending}"
        path.write_bytes(
            draw.choice([b"", b"WARC/1.0\r\n", b"\x1f\x8b\x08\0", b"PAR1", b"{", b"---\n"]) + draw.randbytes(300)
        )
    try:
        bads(tmp_path), rows(tmp_path)
    except KiloqError as error:
        assert ending == "parquet", error


def test_reasons_have_no_path_in_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 100)[:-6])
    assert len(rows(tmp_path)) in range(101)
    (reason,) = reasons(tmp_path)
    assert reason.startswith("the file cannot be read (Compressed file ended before") and str(tmp_path) not in reason
