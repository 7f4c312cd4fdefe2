"""Web archives: the pages of real files as two independent readers see them, and archives that are broken on purpose."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import shared

from kiloq.prepare.documents import meta_of
from kiloq.prepare.readers import http
from kiloq.prepare.readers.archive import records

from .reading import bads, reasons, rows, texts

SAMPLES = ("data", "warc_samples")
PAGE = b"<p>The old lighthouse</p>"
EVERYTHING = frozenset({"warcinfo", "response", "resource", "request", "metadata", "revisit", "conversion"})


def warc(kind: str, body: bytes, *headers: str, length: object = None) -> bytes:
    """One WARC record."""
    head = [f"WARC-Type: {kind}", "WARC-Target-URI: http://x.org/", *headers]
    head.append(f"Content-Length: {len(body) if length is None else length}")
    return ("WARC/1.0\r\n" + "\r\n".join(head) + "\r\n\r\n").encode() + body + b"\r\n\r\n"


def answer(body: bytes = PAGE, *headers: str, status: str = "200 OK", content: str = "text/html") -> bytes:
    """A WARC record with an HTTP answer."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {content}", *headers]).encode()
    return warc("response", head + b"\r\n\r\n" + body, "Content-Type: application/http; msgtype=response")


def written(folder: Path, *parts: bytes, name: str = "a.warc") -> Path:
    path = folder / name
    path.write_bytes(b"".join(parts))
    return path


def archives(*endings: str) -> Iterator[Path]:
    for path in sorted(shared(*SAMPLES).iterdir()):
        if path.name.endswith(endings):
            yield path


def test_pages_are_those_that_warcio_reads() -> None:
    warcio = pytest.importorskip("warcio.archiveiterator")
    compared = 0
    for path in archives(".warc", ".warc.gz", ".arc", ".arc.gz"):
        wanted = []
        try:
            with path.open("rb") as file:
                for record in warcio.ArchiveIterator(file):
                    status = record.http_headers.get_statuscode() if record.http_headers else None
                    kind = (record.http_headers or record.rec_headers).get_header("Content-Type") or ""
                    asked = record.rec_type == "resource" or (record.rec_type == "response" and status == "200")
                    if asked and kind.startswith("text/"):
                        wanted.append(record.content_stream().read().decode())
        except Exception:  # it gives up where we go on: what it read before must be ours too
            assert texts(path)[: len(wanted)] == wanted or path.name == "example-wrong-chunks.warc.gz"
            continue
        found = texts(path)
        if path.name == "example-space-in-url.arc":
            assert found == [] and sum("cut short" in reason for reason in reasons(path)) == 1
            continue
        assert found == [text for text in wanted if text], path.name
        compared += len(found)
    assert compared >= 8


def test_records_are_those_that_fastwarc_reads() -> None:
    fastwarc = pytest.importorskip("fastwarc.warc")
    for path in archives("example.warc", "example.warc.gz", "example-resource.warc.gz", "wget-bad-target-uri.warc.gz"):
        data = path.read_bytes()
        wanted = [
            (str(record.record_type), record.headers.get("WARC-Target-URI"), record.reader.read())
            for record in fastwarc.ArchiveIterator(io.BytesIO(data), parse_http=False)
        ]
        plain = gzip.decompress(data) if path.suffix == ".gz" else data
        found = list(records(io.BufferedReader(io.BytesIO(plain)), EVERYTHING, 1 << 20))
        assert [(r.kind, r.headers.get("warc-target-uri"), r.body) for r in found] == wanted
        assert [record.number for record in found] == list(range(1, len(wanted) + 1))


def test_two_archives_that_others_cannot_read(tmp_path: Path) -> None:
    (page,) = rows(shared(*SAMPLES, "example.warc"))
    for name in ("example-bad-non-chunked.warc.gz", "example-bad.warc.gz.bad", "example-wrong-chunks.warc.gz"):
        path = tmp_path / name.removesuffix(".bad")
        path.write_bytes(shared(*SAMPLES, name).read_bytes())
        (found,) = rows(path)
        assert found["text"].strip() == page["text"].strip()


def test_what_is_kept_of_a_page(tmp_path: Path) -> None:
    (page,) = rows(shared(*SAMPLES, "example.arc.gz"))
    assert (page["id"], page["format"]) == ("example.arc.gz#2", "html")
    assert meta_of(page["meta"]) == {"url": "http://example.com/", "date": "2014-02-16T05:02:21Z", "status": 200}
    wet = warc("conversion", b"plain text", "Content-Type: text/plain", "WARC-Identified-Content-Language: eng,zho")
    (page,) = rows(written(tmp_path, wet))
    assert (page["text"], page["format"]) == ("plain text", "text")
    assert meta_of(page["meta"]) == {"url": "http://x.org/", "languages": "eng,zho"}


def test_every_record_is_a_row_or_has_a_reason(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        warc("warcinfo", b"x"),
        answer(),
        answer(status="404 Not Found"),
        answer(content="image/png"),
        answer(content="application/json"),
        answer(b" \n"),
        answer(b"x" * 300),
        warc("request", b"x" * 300),
        warc("response", b"no header", "Content-Type: application/http"),
        warc("response", b"x", "Content-Type: text/dns"),
        warc("what", b""),
        warc("response", b"", length="-5"),
        warc("response", b"", length="9" * 20),
        answer(content="text/plain"),
        b"WARC/1.0\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        answer(),
        answer()[:-20],
    )
    assert [row["format"] for row in rows(path, most_bytes=250)] == ["html", "text", "html"]
    assert [(bad.where[7:], bad.reason.removeprefix("read: ")) for bad in bads(path, most_bytes=250)] == [
        ("1", "not a document: a record of type warcinfo"),
        ("3", "not a document: an answer with status 404"),
        ("4", "not a document: a file of type image"),
        ("5", "not a document: a file of type other"),
        ("6", "the page is empty"),
        ("7", "the record has more bytes than 250"),
        ("8", "not a document: a record of type request"),
        ("9", "an answer has no HTTP header that can be read"),
        ("10", "not a document: an answer that is not of HTTP"),
        ("11", "not a document: a record of type unknown"),
        ("12", "a record's header has no length"),
        ("13", "a record's header has no length"),
        ("15", "a record's header has more bytes than 65536"),
        ("17", "a record is cut short, bytes that are missing: 16"),
    ]


def test_charsets_come_from_the_header_then_from_the_page(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        answer("灯塔".encode("gbk"), content="text/html; charset=GBK"),
        answer(b'<meta charset="big5">' + "燈塔已經很多年沒有人住了".encode("big5")),
        answer("é".encode(), content="text/html; charset=no-such"),
    )
    assert [text.rpartition(">")[2] for text in texts(path)] == ["灯塔", "燈塔已經很多年沒有人住了", "é"]


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x;name=value\r\n%s\r\n" % (len(part), part) for part in [*parts, b""]) + b"\r\n"


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress), ("deflate", deflated), ("identity", bytes)],
)  # fmt: skip
def test_codings_and_chunks(tmp_path: Path, coding: str, pack: Any) -> None:
    encoding = f"Content-Encoding: {coding}"
    path = written(
        tmp_path,
        answer(pack(PAGE), encoding),
        answer(chunked(pack(PAGE), 7), encoding, "Transfer-Encoding: chunked"),
        answer(PAGE, encoding, "Transfer-Encoding: chunked"),  # unpacked by the crawler, headers left as they were
        answer(b"", encoding),
    )
    assert texts(path) == [PAGE.decode()] * 3
    assert reasons(path) == {"the page is empty": 1}


def test_brotli_and_several_codings(tmp_path: Path) -> None:
    brotli = pytest.importorskip("brotli")
    page = PAGE * 5000
    path = written(
        tmp_path,
        answer(brotli.compress(page), "Content-Encoding: br"),
        answer(brotli.compress(gzip.compress(page)), "Content-Encoding: gzip, br"),
        answer(PAGE, "Content-Encoding: br"),
    )
    assert texts(path) == [page.decode(), page.decode(), PAGE.decode()]


def test_pages_that_unpack_without_end(tmp_path: Path) -> None:
    brotli = pytest.importorskip("brotli")
    bomb = bytes(20 << 20)
    path = written(
        tmp_path,
        answer(gzip.compress(bomb), "Content-Encoding: gzip"),
        answer(zlib.compress(bomb), "Content-Encoding: deflate"),
        answer(brotli.compress(bomb), "Content-Encoding: br"),
        answer(gzip.compress(gzip.compress(bomb)), "Content-Encoding: gzip, gzip"),
        answer(gzip.compress(PAGE), "Content-Encoding: " + "gzip," * 1000),
    )
    assert texts(path, most_bytes=1 << 20) == [PAGE.decode()]
    assert reasons(path, most_bytes=1 << 20) == {"the page unpacks to more bytes than 1048576": 4}


@pytest.mark.parametrize(
    ("body", "joined"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"), (b"5\nhello\n0\n", b"hello"), (b"3\r\nabc\r\n5\r\nde", b"abcde"),
        (b"hello", b"hello"), (b"", b""), (b"2\r\nhello", b"2\r\nhello"), (b"5\r\nhello\r\nno chunk", b"5\r\nhello\r\nno chunk"),
        (b"FFFFFFFF\r\nabc", b"abc"), (b"0\r\n\r\n", b""), (b"1\r\na\r\n1\r\nb\r\nzz", b"ab"),
    ],
)  # fmt: skip
def test_chunks(body: bytes, joined: bytes) -> None:
    assert http.joined(body) == joined


def test_damage_costs_a_record_and_not_the_file(tmp_path: Path) -> None:
    """Named invariant: an undamaged record that comes after a damaged one is read."""
    for damage in (
        b"garbage\r\n" * 50,
        b"\0" * 100_000 + b"\n",
        b"WARC/1.0\r\n\r\n",
        warc("response", b"", length="x"),
        b"a" * 70_000,
    ):
        path = written(tmp_path, answer(), damage, b"\r\n", answer())
        assert len(texts(path)) == 2
        assert len(bads(path)) == 1
    members = b"".join(map(gzip.compress, (answer(), answer(), answer())))
    path = written(tmp_path, members[:-30], name="b.warc.gz")
    assert len(texts(path)) == 2 and reasons(path).total() == 1
    path = written(tmp_path, bz2.compress(answer()), name="c.warc.bz2")
    assert len(texts(path)) == 1


def test_hostile_archives_end(tmp_path: Path) -> None:
    """Headers that look back and forth, and records without end; the suite's time limit is the assertion."""
    lines = (
        b"a " * 30_000 + b"\n", b"http://x 1.1.1.1 20140101000000 " * 2_000 + b"\n", b"x 1 20140101 t 1" + b" " * 60_000 + b"x\n",
        b"WARC/1.0\r\n" * 10_000, b"\n" * 1_000_000, b"WARC/1.0\r\nContent-Length: 999999999999999\r\n\r\nx",
        b"WARC/1.0\r\n" + b"a:\r\n" * 100_000, b"WARC/1." + b"1" * 60_000 + b"x\n",
    )  # fmt: skip
    for line in lines:
        path = written(tmp_path, line * 3, name="a.warc")
        assert texts(path) == []


def test_mutations_of_real_archives(tmp_path: Path) -> None:
    """Bytes changed, cut and put in at random: rows and sentences, never another error (bads() looks at each)."""
    draw = random.Random(0)
    originals = [path.read_bytes() for path in archives(".warc", ".arc")]
    originals += [gzip.decompress(path.read_bytes()) for path in archives("example.warc.gz", "example.arc.gz")]
    pieces = [
        b"\r\n",
        b"WARC/1.0\r\n",
        b"Content-Length: 9999\r\n",
        b"HTTP/1.1 200\r\n",
        b"\0" * 50,
        b" " * 99,
        b"\xff",
    ]
    for _ in range(300):
        data = bytearray(draw.choice(originals))
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(data))
            data[at : at + draw.choice([0, 1, 40])] = draw.choice(pieces)
        path = written(tmp_path, bytes(data))
        rows(path), bads(path)
