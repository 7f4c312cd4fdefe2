"""Records of WARC and ARC files, one after another out of a stream, each within limits.

Both formats are a header, a length and that many bytes; damage costs a record and not the file: reading goes on at the
next line that begins a record. The header tells the two apart, not the ending. FastWARC, which is quicker, reads
no ARC, ends at the first damaged header and needs a stream that can seek, which unpacking within limits cannot offer.
Sources: ISO 28500:2017 (WARC 1.1), the Internet Archive's ARC format of 1996.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_HEADER_BYTES = 64 << 10  # ours; FastWARC takes 32 KiB
SKIP_BYTES = 1 << 18  # read at a time while passing over

_VERSION = re.compile(rb"WARC/[01]\.[0-9]+\s*\Z")
_ARC = re.compile(rb"(\S.*) (\S+) (\d{8,17}) (\S+) (?:(\d+) \S+ \S+ \d+ \S+ )?(\d{1,15})\s*\Z")
_ARC_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)?(\d\d)?(\d\d)?")


@dataclass(frozen=True)
class Record:
    """A record of a web archive."""

    number: int  # from 1, damaged ones counted
    kind: str  # its WARC type; "" for what is damaged
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    length: int = 0  # of the body, as the header gives it
    body: bytes | None = None  # None: not asked for, or longer than allowed
    damage: str | None = None  # what is wrong with it


def records(stream: io.BufferedReader, wanted: frozenset[str], most_bytes: int) -> Iterator[Record]:
    """The records of an archive; bodies of `wanted` kinds up to `most_bytes`, the others are passed over.

    Raises what the stream raises; the records before are good.
    """
    number, damaged = 0, False
    while line := stream.readline(MAX_HEADER_BYTES):
        if not line.strip():
            continue
        if _VERSION.match(line):
            head = _warc_head(stream)
        elif found := _ARC.match(line):
            head = _arc_head(found)
        elif damaged:
            continue  # one damaged place is one bad record, however long it is
        else:
            head = "a record does not begin with a header"
        number += 1
        damaged = isinstance(head, str)
        if isinstance(head, str):
            yield Record(number, "", body=line, damage=head)
        else:
            yield _with_body(stream, number, *head, wanted, most_bytes)


def _warc_head(stream: io.BufferedReader) -> tuple[str, dict[str, str], int] | str:
    """Type, headers and length of a record whose first line is read, or what is wrong with it."""
    headers = header_lines(stream)
    if headers is None:
        return f"a record's header has more bytes than {MAX_HEADER_BYTES}"
    length = headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,15}", length):
        return "a record's header has no length"
    return headers.get("warc-type", "unknown").lower(), headers, int(length)


def header_lines(stream: io.BufferedReader | io.BytesIO) -> dict[str, str] | None:
    """Headers up to the blank line, or None if they are too long; a line that begins with space goes on the last."""
    headers: dict[str, str] = {}
    name, left = "", MAX_HEADER_BYTES
    while line := stream.readline(left):
        left -= len(line)
        text = line.decode("utf-8", "replace")
        if not text.strip():
            return headers
        if left <= 0:
            return None
        if text[0] in " \t" and name:
            headers[name] += " " + text.strip()
        elif ":" in text:
            name, _, value = text.partition(":")
            name = name.strip().lower()
            headers[name] = value.strip()
    return headers


def _arc_head(found: re.Match[bytes]) -> tuple[str, dict[str, str], int]:
    """The same of the one line of an ARC record: address, IP, date, type and length, or version 2's ten fields."""
    url, _, date, kind, _, length = (part.decode("utf-8", "replace") if part else "" for part in found.groups())
    day = _ARC_DATE.match(date)
    assert day is not None  # eight digits at least
    parts = [part or "00" for part in day.groups()]
    headers = {
        "warc-target-uri": url,
        "warc-date": "{}-{}-{}T{}:{}:{}Z".format(*parts),
        "content-type": "application/http" if url.lower().startswith("http") else kind,
    }
    return "arc-header" if url.startswith("filedesc:") else "response", headers, int(length)


def _with_body(
    stream: io.BufferedReader,
    number: int,
    kind: str,
    headers: dict[str, str],
    length: int,
    wanted: frozenset[str],
    most_bytes: int,
) -> Record:
    body = None
    if kind in wanted and length <= most_bytes:
        body = stream.read(length)
        missing = length - len(body)
    else:
        missing = length
        while missing and (block := stream.read(min(missing, SKIP_BYTES))):
            missing -= len(block)
    damage = f"a record is cut short, bytes that are missing: {missing}" if missing else None
    return Record(number, kind, headers, length, body, damage)
