"""A stored HTTP answer as the page that was sent: status, headers, and the body out of its chunks and its packing.

Archives keep answers as they came over the wire, or claim to: where the body is not chunked or packed as the headers
say, it is taken as it is, for crawlers often store it unpacked under the old headers. What unpacks to more than the
limit is refused. Sources: RFC 9110 (content codings), RFC 9112 (chunks).
"""

from __future__ import annotations

import io
import re
import zlib
from typing import NamedTuple

from kiloq.core.errors import MissingError
from kiloq.prepare.readers.archive import header_lines

MAX_CODINGS = 3  # one in the other: ours; a browser sees one
STEP_BYTES = 1 << 16  # packed bytes at a time

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,4096})?\r?\n")


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes  # still chunked and packed


class TooLargeError(Exception):
    """A body unpacks to more than the limit."""


def parse_answer(data: bytes) -> Answer | None:
    """The answer in `data`, or None if it does not begin as one."""
    stream = io.BytesIO(data)
    found = _STATUS.match(stream.readline(4096))
    headers = header_lines(stream) if found else None
    return None if found is None or headers is None else Answer(int(found[1]), headers, stream.read())


def media_type(header: str) -> tuple[str, str | None]:
    """The type and the charset of a Content-Type header, in lower case."""
    charset = re.search(r"""charset\s{0,8}=\s{0,8}["']?([\w.:+-]{1,40})""", header[:1000], re.IGNORECASE)
    return header.partition(";")[0].strip().lower(), charset[1].lower() if charset else None


def payload(answer: Answer, most_bytes: int) -> bytes:
    """The body, joined and unpacked. Raises TooLargeError above `most_bytes`."""
    body = answer.body
    if "chunked" in answer.headers.get("transfer-encoding", "").lower():
        body = joined(body)
    codings = [coding.strip().lower() for coding in answer.headers.get("content-encoding", "").split(",")]
    for coding in reversed(codings[-MAX_CODINGS:]):
        body = _unpacked(body, coding, most_bytes)
    return body


def joined(body: bytes) -> bytes:
    """The chunks of a body as one; a body that is not in chunks as it is, one that is cut short as far as it goes."""
    parts = []
    at = 0
    while found := _CHUNK.match(body, at):
        size = int(found[1], 16)
        parts.append(body[found.end() : found.end() + size])
        at = found.end() + size
        if size == 0 or at >= len(body):
            return b"".join(parts)
        if body[at : at + 2] == b"\r\n":
            at += 2
        elif body[at : at + 1] == b"\n":
            at += 1
        else:
            break
    return body if at == 0 or len(parts) < 2 else b"".join(parts)


def _unpacked(data: bytes, coding: str, most_bytes: int) -> bytes:
    """`data` out of one coding; as it is if it is in another or in none. What is cut short counts as far as it goes."""
    answers: tuple[bytes | None, ...]
    if coding in ("gzip", "x-gzip"):
        answers = (_inflated(data, 31, most_bytes),)
    elif coding == "deflate":  # with zlib's header, or without as some servers send it
        answers = (_inflated(data, 15, most_bytes), _inflated(data, -15, most_bytes))
    elif coding == "br":
        answers = (_brotli(data, most_bytes),)
    else:
        answers = ()
    return next((answer for answer in answers if answer is not None), data)


def _inflated(data: bytes, window_bits: int, most_bytes: int) -> bytes | None:
    """What zlib unpacks, or None if the data is damaged or not packed."""
    unpacker = zlib.decompressobj(window_bits)
    parts: list[bytes] = []
    try:
        size = 0
        for at in range(0, len(data), STEP_BYTES):
            parts.append(unpacker.decompress(data[at : at + STEP_BYTES], most_bytes - size + 1))
            size += len(parts[-1])
            if size > most_bytes:
                raise TooLargeError
            if unpacker.eof:
                break
    except zlib.error:
        return None
    return b"".join(parts)


def _brotli(data: bytes, most_bytes: int) -> bytes | None:
    try:
        import brotli  # type: ignore[import-untyped]
    except ImportError:
        raise MissingError(
            "a page is packed with Brotli: run `pip install 'kiloq[data]'` to get what reads it"
        ) from None
    unpacker = brotli.Decompressor()
    parts: list[bytes] = []
    try:
        size = 0
        while part := unpacker.process(b"" if parts else data, output_buffer_limit=STEP_BYTES):
            parts.append(part)
            size += len(part)
            if size > most_bytes:
                raise TooLargeError
    except brotli.error:
        return None
    return b"".join(parts)
