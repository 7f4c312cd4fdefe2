"""Reading a file that a stranger wrote, and replacing one of ours: the only places that open paths for the formats.

A reader never blocks on a pipe or reads a device without end: whatever is not a regular file is refused before it is
opened, and every read has a limit in bytes. A writer never leaves half a file under the final name: temporary file
beside it, fsync, one rename (the recipe of POSIX rename(2); the folder is synced too, so the name survives a crash).
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError


def shown(value: object, limit: int = 80) -> str:
    """`value` in quotes for an error sentence: control characters escaped, never longer than `limit` + 2."""
    text = value if isinstance(value, str) else str(value)
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut) + "'"


def regular_size(path: Path) -> int:
    """Size in bytes of a regular file. Raises MissingError (not there) or FormatError (a folder, pipe, device)."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{path}: there is no such file: check the path") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be opened ({error}): check the path and its permissions") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise FormatError(f"{path}: is {kind}: a regular file was expected here")
    return status.st_size


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes."""
    size = regular_size(path)
    if size > limit:
        raise FormatError(f"{path}: has {size:,} bytes, more than the {limit:,} that such a file may have")
    try:
        with path.open("rb") as file:
            return file.read(size)  # not `limit`: the buffer is made before the bytes arrive
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error}): check its permissions") from None


def map_file(path: Path, least: int) -> mmap.mmap:
    """A private, copy-on-write map of a regular file of at least `least` > 0 bytes.

    Copy-on-write, because torch wants writable memory: a write would stay in this process and never reach the file.
    """
    size = regular_size(path)
    if size < least:
        raise FormatError(f"{path}: has {size} bytes, too short for its format: it is empty or truncated")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be mapped ({error}): check its permissions") from None


def check_target(path: Path) -> None:
    """Raises UsageError or MissingError where no regular file can be put under `path` by a rename.

    A rename would replace a device such as /dev/null, and a pipe, for everybody.
    """
    if not path.name:
        raise UsageError(f"{shown(path)} is not the name of a file: give one, such as out.json")
    if not path.parent.is_dir():
        raise MissingError(f"{path}: there is no folder {path.parent}: make it first, or choose another place")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is a folder or a device: give the name of a file")


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under `path` complete and on disk, or not at all. A link stays; its target is replaced."""
    check_target(path)
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise  # about another file
        raise KiloqError(
            f"{path}: cannot be written ({error.strerror or error}): make room, or choose another place"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync of a file or folder by name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
