"""Plain text: a file, its paragraphs or its lines as documents, and where a long file is cut.

A file is cut near every multiple of `document_bytes`: at the first line after a blank one in the next `document_bytes`,
else at the first line. Where a cut falls depends on the bytes around it alone, so that a file gives the same documents
however it is divided among tasks, and no more than two documents are held. A document's id has the number of its first
line.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path

from kiloq.core.unpack import Line, lines, open_unpacked
from kiloq.prepare.readers.contents import decoded
from kiloq.prepare.readers.jsonl import numbered_lines
from kiloq.prepare.readers.source import LEAST_BYTES, Bad, File, Row

BLANK_BYTES = LEAST_BYTES  # a longer line of spaces is not taken for a blank one, so that looking back has a limit

Numbered = tuple[int, Line]


def rows(file: File) -> Iterator[Row | Bad]:
    """The documents of a text file; a line above the limit is a Bad and left out of its document."""
    split = {"file": _parts, "paragraphs": _paragraphs, "lines": _lines}[file.source.split]
    for part in split(file):
        if part[0][1].cut:
            yield file.bad(f"the line has more bytes than {file.source.most_bytes}", part[0][1].data, part[0][0])
        elif (size := sum(len(line.data) for _, line in part)) > file.source.most_bytes:
            yield file.bad(f"the paragraph has more bytes than {file.source.most_bytes}", part[0][1].data, part[0][0])
        else:
            yield from _row(file, part, size)


def _row(file: File, part: list[Numbered], size: int) -> Iterator[Row | Bad]:
    number, data = part[0][0], b"".join(line.data for _, line in part)
    assert len(data) == size
    text = decoded(file, data, number)
    if isinstance(text, Bad):
        yield text
    elif not text.isspace():
        yield file.row(text, "text", {}, number)


def is_blank(line: Line) -> bool:
    """Whether a line parts paragraphs."""
    return not line.cut and len(line.data) <= BLANK_BYTES and line.data.isspace()


def _lines(file: File) -> Iterator[list[Numbered]]:
    for number, line in numbered_lines(file):
        yield [(number, line._replace(data=line.data.rstrip(b"\r\n")))]


def _paragraphs(file: File) -> Iterator[list[Numbered]]:
    """Stretches between blank lines; of one that is too long only as much is kept as shows that."""
    held: list[Numbered] = []
    size = 0
    for number, line in numbered_lines(file):
        if is_blank(line) or line.cut:
            if held:
                yield held
            if line.cut:
                yield [(number, line)]
            held, size = [], 0
        elif size <= file.source.most_bytes:
            held.append((number, line))
            size += len(line.data)
    if held:
        yield held


def _parts(file: File) -> Iterator[list[Numbered]]:
    """The file between its cuts; `file.start` is one, and so is `file.end` unless it is None."""
    step = file.source.document_bytes
    mark = (file.start // step + 1) * step
    held: list[Numbered] = []
    spare: int | None = None  # place in `held` of the first line after the mark
    blank = False
    for number, line in numbered_lines(file):
        while line.start >= mark:
            spare = len(held) if spare is None else spare
            if not blank and line.start < mark + step:
                break
            place = len(held) if blank else spare
            yield from _without_cut_lines(held[:place])
            held, spare = held[place:], None
            mark += step
        held.append((number, line))
        blank = is_blank(line)
    ends_in_cut = blank and file.end is not None
    place = len(held) if spare is None or ends_in_cut else spare
    yield from _without_cut_lines(held[:place])
    yield from _without_cut_lines(held[place:])


def _without_cut_lines(part: list[Numbered]) -> Iterator[list[Numbered]]:
    """A part, and before it every line of it that is too long, alone."""
    yield from ([entry] for entry in part if entry[1].cut)
    if rest := [entry for entry in part if not entry[1].cut]:
        yield rest


def cut_near(path: Path, mark: int, step: float, size: int) -> int:
    """Where a file is cut for a mark at byte `mark`: after a blank line less than `step` bytes away, else at a line.

    `step` 0: at a line; infinite: after a blank line only. The file has `size` bytes and is not packed; `size` is also
    the answer where no line begins after the mark.
    """
    start = max(0, mark - BLANK_BYTES - 1)
    spare = None
    blank = False
    with open_unpacked(path, start=start) as stream:
        for line in lines(stream, 1 << 16, start):
            if line.start >= mark and (line.start > start or start == 0):
                spare = line.start if spare is None else spare
                if blank:
                    return line.start
                if line.start >= mark + step:
                    return spare
            blank = is_blank(line) and (line.start > start or start == 0)
    return size if spare is None or step == inf else spare
