"""Web pages in files: the bytes as text, in the charset that they or the page name. The rest is extraction's."""

from __future__ import annotations

from collections.abc import Iterator

from kiloq.prepare.extract import decode_page
from kiloq.prepare.readers.contents import whole
from kiloq.prepare.readers.source import Bad, File, Row


def rows(file: File) -> Iterator[Row | Bad]:
    """One row of format "html"."""
    data = whole(file)
    if isinstance(data, Bad):
        yield data
    elif not data.strip():
        yield file.bad("the file is empty")
    else:
        yield file.row(decode_page(data, file.source.encoding), "html", {})
