"""A file or a line as text within limits: what the readers of whole files, lines and code share.

Text that is not in its encoding is refused rather than repaired, for a wrong guess would spread through a corpus
unseen; web pages are the exception (extract.decode_page), where nobody else says what the bytes are.
"""

from __future__ import annotations

from kiloq.core.unpack import open_unpacked
from kiloq.prepare.readers.source import Bad, File


def whole(file: File) -> bytes | Bad:
    """The contents of a file, or a Bad if it has more than `most_bytes`. Raises FormatError for a damaged one."""
    most = file.source.most_bytes
    parts, size = [], 0
    with open_unpacked(file.path) as stream:
        while block := stream.read1(1 << 18):
            parts.append(block)
            size += len(block)
            if size > most:
                return file.bad(f"the file has more bytes than {most}", parts[0])
    return b"".join(parts)


def decoded(file: File, data: bytes, at: int | None = None) -> str | Bad:
    """`data` as text without a byte order mark, or a Bad that names the first wrong byte."""
    encoding = file.source.encoding or "utf-8"
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        return file.bad(f"a byte is not {encoding}: {data[error.start]:#04x}", data, at)
