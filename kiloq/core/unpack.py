"""Bytes out of plain, .gz, .bz2 and .zst files, and lines out of bytes, both in bounded memory whatever the file is.

A packed file can hold a thousand times its size and more. It is unpacked block by block, and reading ends where it
has given more than MAX_RATIO times its own size and more than MAX_FREE_BYTES: text that repeats itself passes, a bomb
does not. A line that is longer than allowed is cut and the rest of it passed over, so that one bad line does not cost
the file. Sources: RFC 1952 (gzip), RFC 8878 (Zstandard), its windows up to 128 MiB as the `zstd` program takes them.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from kiloq.core.errors import FormatError, MissingError
from kiloq.core.files import regular_size

PACKED = (".gz", ".zst", ".bz2")
BLOCK_BYTES = 1 << 18  # ours
ZSTD_BYTES = 1 << 10  # a block of 128 KiB takes four bytes at least (RFC 8878), so this unpacks to 32 MiB at most
MAX_RATIO = 500  # ours: gzip cannot go beyond 1,032; there one line of text that repeats for ever has 300 to 400
MAX_FREE_BYTES = 1 << 30  # ours: up to here the ratio does not matter


def ending(name: str | Path) -> str:
    """The ending of a file's name in lower case, without that of a packed file."""
    path = Path(str(name).lower())
    return (Path(path.stem) if path.suffix in PACKED else path).suffix


def is_packed(name: str | Path) -> bool:
    """Whether a file is packed, by its ending."""
    return Path(str(name).lower()).suffix in PACKED


class Line(NamedTuple):
    """A line with its end, or the beginning of one that is too long."""

    start: int  # bytes before it
    data: bytes
    cut: bool  # longer than allowed: `data` is its beginning


class _Unpacked(io.RawIOBase):
    """The blocks of a file as a stream, for io.BufferedReader to cut into lines and parts."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def close(self) -> None:
        self._blocks.close()  # type: ignore[attr-defined]  # a generator: closes the file under it
        super().close()


def open_unpacked(path: Path, block_bytes: int = BLOCK_BYTES, start: int = 0) -> io.BufferedReader:
    """The contents of a regular file, unpacked by its ending; of one that is not packed, those from byte `start` on.

    This and every read raise FormatError (damaged, cut short, a bomb, not a regular file) or MissingError; what was
    read before is good.
    """
    size = regular_size(path)
    return io.BufferedReader(_Unpacked(_unpacked(path, size, block_bytes, start)), block_bytes)


def lines(file: io.BufferedReader, most_bytes: int, start: int = 0) -> Iterator[Line]:
    """The lines of a stream that begins `start` bytes into its file; of one longer than `most_bytes` the beginning."""
    while data := file.readline(most_bytes + 1):
        cut = len(data) > most_bytes and data[-1:] != b"\n"
        yield Line(start, data, cut)
        start += len(data)
        while cut and (rest := file.readline(BLOCK_BYTES)):
            start += len(rest)
            cut = rest[-1:] != b"\n"


def whole_lines(path: Path, most_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[Line]:
    """The lines of a file of which none may be longer. Raises FormatError for one that is."""
    with open_unpacked(path, block_bytes) as file:
        for line in lines(file, most_bytes):
            if line.cut:
                raise FormatError(f"{path}: has a line longer than {most_bytes:,} bytes: break it into lines first")
            yield line


def _unpacked(path: Path, size: int, block_bytes: int, start: int) -> Iterator[bytes]:
    total = 0
    most = max(MAX_FREE_BYTES, MAX_RATIO * size)
    packed = is_packed(path)
    if packed and size == 0:
        return  # as gzip and zstd read it; bzip2 alone would call it cut short
    try:
        with path.open("rb") as file:
            file.seek(start)
            for block in _blocks(path, file, block_bytes):
                total += len(block)
                if packed and total > most:
                    raise FormatError(
                        f"{path}: unpacks to more than {most:,} bytes from {size:,}: it is a bomb, or pack it in parts"
                    )
                yield block
    except MissingError:  # of a package; it is an OSError too
        raise
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise FormatError(f"{path}: cannot be read ({said}): it is damaged or cut short") from None


def _blocks(path: Path, file: IO[bytes], block_bytes: int) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        yield from _unzstd(path, file)
    elif suffix in PACKED:
        import bz2
        import gzip

        with gzip.open(file) if suffix == ".gz" else bz2.open(file) as unpacked:
            # read1, not read: what comes before a damaged place is handed out
            yield from iter(lambda: unpacked.read1(block_bytes), b"")
    else:
        yield from iter(lambda: file.read(block_bytes), b"")


def _unzstd(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingError(f"{path}: .zst needs another package: run `pip install 'kiloq[data]'` to get it") from None
    unpacker = None
    try:
        while packed := file.read(ZSTD_BYTES):
            while packed:
                unpacker = unpacker or zstandard.ZstdDecompressor().decompressobj()
                yield unpacker.decompress(packed)
                packed = unpacker.unused_data if unpacker.eof else b""
                unpacker = None if unpacker.eof else unpacker
    except zstandard.ZstdError as error:
        raise FormatError(f"{path}: cannot be unpacked ({error}): it is damaged") from None
    if unpacker is not None:
        raise FormatError(f"{path}: ends inside its packed data: it was cut short")
