"""Web archives: the pages among the records of WARC, WET and ARC files.

A document is a `response` with status 200 and a `resource` or `conversion` record (the texts of WET files), whose type
is a page's or plain text's. All other records are counted with their kind as "not a document": a crawl has three to
four records a page. Address, date, status and charset come from the headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kiloq.core.unpack import open_unpacked
from kiloq.prepare.extract import decode_page
from kiloq.prepare.readers import http
from kiloq.prepare.readers.archive import Record, records
from kiloq.prepare.readers.source import NOT_A_DOCUMENT, Bad, File, Row

PAGES = {"text/html": "html", "application/xhtml+xml": "html", "text/plain": "text"}
WANTED = frozenset({"response", "resource", "conversion"})
KNOWN = frozenset({"warcinfo", "request", "metadata", "revisit", "continuation", "arc-header"})  # ISO 28500, section 6


def rows(file: File) -> Iterator[Row | Bad]:
    """The pages of an archive; records are numbered from 1."""
    with open_unpacked(file.path) as stream:
        for record in records(stream, WANTED, file.source.most_bytes):
            yield _record(file, record)


def _record(file: File, record: Record) -> Row | Bad:
    number = record.number
    if record.damage is not None:
        return file.bad(record.damage, record.body or b"", number)
    if record.kind not in WANTED:
        kind = record.kind if record.kind in KNOWN else "unknown"
        return file.bad(f"{NOT_A_DOCUMENT}a record of type {kind}", at=number)
    if record.body is None:
        return file.bad(f"the record has more bytes than {file.source.most_bytes}", at=number)
    url = record.headers.get("warc-target-uri", "").strip("<>")  # old versions of wget write brackets
    meta = {"url": url, "date": record.headers.get("warc-date"), "truncated": record.headers.get("warc-truncated")}
    if record.kind == "response" and record.headers.get("content-type", "").startswith("application/http"):
        return _answer(file, record, meta)
    if record.kind == "response":
        return file.bad(f"{NOT_A_DOCUMENT}an answer that is not of HTTP", at=number)
    languages = record.headers.get("warc-identified-content-language", "")
    meta["languages"] = languages or None
    return _page(file, record, record.headers.get("content-type", ""), record.body, meta)


def _answer(file: File, record: Record, meta: Mapping[str, object]) -> Row | Bad:
    number, body = record.number, record.body or b""
    answer = http.parse_answer(body)
    if answer is None:
        return file.bad("an answer has no HTTP header that can be read", body, number)
    if answer.status != 200:
        return file.bad(f"{NOT_A_DOCUMENT}an answer with status {answer.status}", at=number)
    try:
        page = http.payload(answer, file.source.most_bytes)
    except http.TooLargeError:
        return file.bad(f"the page unpacks to more bytes than {file.source.most_bytes}", at=number)
    kind = answer.headers.get("content-type") or record.headers.get("warc-identified-payload-type", "")
    return _page(file, record, kind, page, {**meta, "status": answer.status})


def _page(file: File, record: Record, content_type: str, data: bytes, meta: Mapping[str, object]) -> Row | Bad:
    media, charset = http.media_type(content_type)
    if media not in PAGES:
        group = media.partition("/")[0] if media.partition("/")[0] in ("image", "audio", "video", "text") else "other"
        return file.bad(f"{NOT_A_DOCUMENT}a file of type {group}", media, record.number)
    if not data.strip():
        return file.bad("the page is empty", at=record.number)
    return file.row(decode_page(data, charset), PAGES[media], meta, record.number)
