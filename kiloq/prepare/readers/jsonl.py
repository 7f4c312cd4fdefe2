"""JSON lines: one object a line, of which one field is the document.

A line that is too long, not JSON, not UTF-8 or without the field is a bad record and the next one is read. Lines of
more than BIG_BYTES are counted before they are parsed (core/safe_json), for `[[],[],…]` takes 25 times its bytes in
memory; that parser is also stricter: it takes no NaN and no key twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kiloq.core.errors import FormatError
from kiloq.core.safe_json import parse
from kiloq.core.unpack import Line, lines, open_unpacked
from kiloq.prepare.readers.contents import decoded
from kiloq.prepare.readers.source import Bad, File, Row, row_language, row_meta

BIG_BYTES = 1 << 20  # ours: a line below takes 30 MB at most


def numbered_lines(file: File) -> Iterator[tuple[int, Line]]:
    """The lines of the wanted part of a file with their numbers. Raises FormatError where it is damaged."""
    with open_unpacked(file.path, start=file.start) as stream:
        for number, line in enumerate(lines(stream, file.source.most_bytes, file.start), start=file.first):
            if file.end is not None and line.start >= file.end:
                return
            yield number, line


def rows(file: File) -> Iterator[Row | Bad]:
    """The rows of a file of JSON lines."""
    for number, line, found in objects(file):
        if isinstance(found, Bad):
            yield found
        elif isinstance(text := found.get(file.source.text), str):
            meta, language = row_meta(file.source, found), row_language(file.source, found)
            yield file.row(text, file.source.format, meta, number, language)
        else:
            yield file.bad(f"the row has no field of text: {file.source.text}", line, number)


def objects(file: File) -> Iterator[tuple[int, bytes, dict[str, Any] | Bad]]:
    """The numbered lines of a file of JSON lines and their objects; blank lines are passed over."""
    for number, line in numbered_lines(file):
        if line.data.isspace():
            continue
        if number == 1 and begins_array(line.data):
            yield (
                number,
                line.data,
                file.bad("the file is one JSON array: lines of objects were expected", line.data, number),
            )
            return
        yield number, line.data, _object(file, line, number)


def begins_array(line: bytes) -> bool:
    """Whether the first line of a file is the beginning of an array that goes on, as many tools write them."""
    return line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[") and line.rstrip()[-1:] in b"[{,"


def _object(file: File, line: Line, number: int) -> dict[str, Any] | Bad:
    if line.cut:
        return file.bad(f"the line has more bytes than {file.source.most_bytes}", line.data, number)
    text = decoded(file, line.data, number)
    if isinstance(text, Bad):
        return text
    try:
        value = json.loads(text) if len(line.data) <= BIG_BYTES else parse(text.encode(), "")
    except FormatError:
        return file.bad("the line is not JSON, or has too many values", line.data, number)
    except (ValueError, RecursionError):
        return file.bad("the line is not JSON", line.data, number)
    return value if isinstance(value, dict) else file.bad("the line is not a JSON object", line.data, number)
