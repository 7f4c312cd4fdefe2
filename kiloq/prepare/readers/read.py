"""Reading a piece: each of its files by its reader, and whatever is wrong with a file as one more bad record."""

from __future__ import annotations

from collections.abc import Iterator

from kiloq.core.errors import FormatError, KiloqError, MissingError
from kiloq.core.files import regular_size
from kiloq.core.unpack import is_packed
from kiloq.prepare.readers import code, gsm8k, html, jsonl, markdown, parquet, text, warc
from kiloq.prepare.readers.plan import reader_of, root_of
from kiloq.prepare.readers.source import Bad, File, Piece, Row, Source

ROWS = {
    "html": html.rows,
    "warc": warc.rows,
    "jsonl": jsonl.rows,
    "parquet": parquet.rows,
    "text": text.rows,
    "markdown": markdown.rows,
    "code": code.rows,
    "gsm8k": gsm8k.rows,
}


def read(source: Source, piece: Piece) -> Iterator[Row | Bad]:
    """The documents of a piece as rows for documents.batch_of, in their order, and a Bad for each record that is none.

    Raises MissingError for a package that is not installed, and nothing else: files that cannot be read are Bads.
    """
    root = root_of(source)
    licenses: dict[str, str | None] = {}
    for name in piece.files:
        file = File(source, root, name, piece.start, piece.end, piece.first, licenses)
        yield from _file(file)


def _file(file: File) -> Iterator[Row | Bad]:
    """The records of one file, and a Bad for what is wrong with the whole or the rest of it."""
    reader = reader_of(file.source, file.name)
    assert reader is not None, f"{file.name} was planned without a reader"
    try:
        size = regular_size(file.path)
    except KiloqError as error:
        yield file.bad(_said(file, error))
        return
    some = False
    try:
        for found in ROWS[reader](file):
            some = True
            yield found
    except FormatError as error:
        some = True
        yield file.bad(_said(file, error))
    if not some and (size == 0 or is_packed(file.name)):
        yield file.bad("the file is empty")


def _said(file: File, error: KiloqError) -> str:
    """An error's sentence without the path, which is not part of a reason."""
    said = str(error).removeprefix(f"{file.path}: ")
    return "the file is not there any more" if isinstance(error, MissingError) else f"the file {said}"
