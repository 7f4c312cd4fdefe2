"""Which files a source has and how they are divided into pieces, each the work of one task.

Files come in the order of their names. Small ones share a piece, large line files and Parquet files are cut into
ranges; what is packed, and web archives, can only be read from the beginning. A large line file is read once to number
its lines, so that ids do not depend on the pieces. Nothing outside the folder is read: links that lead out of it are
not followed, and pipes, devices and sockets are never opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path

from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.files import shown
from kiloq.core.unpack import ending, is_packed, lines, open_unpacked
from kiloq.prepare.readers.gsm8k import read_reference
from kiloq.prepare.readers.jsonl import begins_array
from kiloq.prepare.readers.languages import CODE_ENDINGS, is_code
from kiloq.prepare.readers.parquet import opened, text_columns
from kiloq.prepare.readers.source import ENDINGS, Piece, Source
from kiloq.prepare.readers.text import cut_near

MAX_FILES = 10_000  # of one piece: ours, so that a piece stays a small message
UNPACKED_RATIO = 4  # ours: what text is packed to by gzip, about


def plan(source: Source, piece_bytes: int) -> list[Piece]:
    """The pieces of a source, of about `piece_bytes` each; all of them in turn give its documents in their order.

    Raises MissingError where there is no such path and UsageError where it has no file that can be read.
    """
    if piece_bytes < 1:
        raise UsageError(f"{source.name}: pieces of {piece_bytes} bytes cannot be: give 1 or more")
    root, names = list_files(source)
    if any(reader_of(source, name) == "parquet" for name in names):
        _check_column(source, root, [name for name in names if reader_of(source, name) == "parquet"])
    if source.reference_path is not None:
        read_reference(source.reference_path)  # what is wrong with it is found before the work
    pieces: list[Piece] = []
    group: list[str] = []
    weight = 0
    for name in names:
        size = _size(root / name)
        weighs = size * UNPACKED_RATIO if is_packed(name) else size
        if group and (weight + weighs > piece_bytes or len(group) == MAX_FILES):
            pieces.append(Piece(tuple(group)))
            group, weight = [], 0
        cut = list(_cut(source, root, name, size, piece_bytes)) if size > piece_bytes else []
        if len(cut) > 1:
            pieces.extend(cut)
        else:
            group.append(name)
            weight += weighs
    return [*pieces, Piece(tuple(group))] if group else pieces


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it went away: the reader says so
        return 0


def root_of(source: Source) -> Path:
    """The folder that the names of files are relative to."""
    path = Path(source.path)
    return path if path.is_dir() else path.parent


def list_files(source: Source) -> tuple[Path, list[str]]:
    """The folder and the files to read, in the order of their names."""
    path, root = Path(source.path), root_of(source)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise MissingError(f"{path}: cannot be opened ({said}): check `path` of the source {source.name}") from None
    if not stat.S_ISDIR(mode):
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path}: is not a regular file: give a file or a folder as path of {source.name}")
        if reader_of(source, path.name) is None:
            raise UsageError(f"{path}: has an ending that no reader is known for: give reader = one of {_readers()}")
        return root, [path.name]
    names = sorted(name for name in _walk(root) if _wanted(source, name))
    if not names:
        kinds = " ".join(_endings(source)) if not source.include else " ".join(source.include)
        raise UsageError(
            f"{path}: has no file to read for {source.name}: files like {kinds} were looked for, also packed; links "
            "out of the folder are not followed, nor names that begin with a dot"
        )
    return root, names


def _readers() -> str:
    return ", ".join((*ENDINGS, "code"))


def _endings(source: Source) -> tuple[str, ...]:
    if source.reader == "code":
        return CODE_ENDINGS[:8]
    return ENDINGS[source.reader] if source.reader else tuple(dict.fromkeys(sum(ENDINGS.values(), ())))


def _walk(root: Path) -> Iterator[str]:
    """Regular files below a folder, without hidden ones and links that lead out of it."""
    inside = Path(os.path.realpath(root))
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(folder) / name
            if name.startswith(".") or (path.is_symlink() and not _is_inside(path, inside)):
                continue
            if path.is_file():
                yield path.relative_to(root).as_posix()


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed is not passed over in silence."""
    raise FormatError(f"{error.filename}: cannot be listed ({error.strerror}): check its permissions") from None


def _is_inside(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def _wanted(source: Source, name: str) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in source.exclude):
        return False
    if source.include and not any(fnmatchcase(name, pattern) for pattern in source.include):
        return False
    return reader_of(source, name) is not None


def reader_of(source: Source, name: str) -> str | None:
    """The reader of a file: the source's, if it is for such files or they are asked for by name, or by the ending."""
    last = ending(name)
    if source.reader == "code":
        return "code" if source.include or is_code(name) or Path(source.path).name == name else None
    if source.reader is not None:
        asked = source.include or last in ENDINGS[source.reader] or not Path(source.path).is_dir()
        return source.reader if asked else None
    found = next((reader for reader, endings in ENDINGS.items() if last in endings), None)
    return found or ("code" if last in CODE_ENDINGS else None)


def _check_column(source: Source, root: Path, names: list[str]) -> None:
    """Raises UsageError if no Parquet file has the column with the text."""
    columns: dict[str, None] = {}
    for name in names:
        try:
            with opened(root / name) as parquet:
                found = text_columns(parquet)
        except FormatError:
            continue
        if source.text in found:
            return
        columns.update(dict.fromkeys(found))
    if columns:
        raise UsageError(
            f"{source.name}: no file has a column of text called {shown(source.text)}: give text = one of "
            f"{', '.join(map(shown, columns))}"
        )


def _cut(source: Source, root: Path, name: str, size: int, piece_bytes: int) -> Iterator[Piece]:
    """The ranges of a large file; none for a file that is read whole."""
    reader = reader_of(source, name)
    try:
        if reader == "parquet":
            yield from _row_groups(root / name, name, piece_bytes)
        elif reader in ("jsonl", "text") and not is_packed(name):
            yield from _ranges(source, root / name, name, size, piece_bytes)
    except FormatError:  # the reader says of what is wrong
        return


def _row_groups(path: Path, name: str, piece_bytes: int) -> Iterator[Piece]:
    with opened(path) as parquet:
        start, first, rows, size = 0, 1, 0, 0
        for group in range(parquet.num_row_groups):
            described = parquet.metadata.row_group(group)
            rows += described.num_rows
            size += sum(described.column(at).total_compressed_size for at in range(described.num_columns))
            if size >= piece_bytes or group == parquet.num_row_groups - 1:
                yield Piece((name,), start, group + 1, first)
                start, first, rows, size = group + 1, first + rows, 0, 0


def _ranges(source: Source, path: Path, name: str, size: int, piece_bytes: int) -> Iterator[Piece]:
    if reader_of(source, name) == "jsonl" and _is_array(path):
        return
    start, first = 0, 1
    while start < size:
        end = _next_cut(source, path, name, start + piece_bytes, size)
        yield Piece((name,), start, end if end < size else None, first)
        first += _line_ends(path, start, end)
        start = end


def _is_array(path: Path) -> bool:
    with open_unpacked(path) as stream:
        return any(begins_array(line.data) for line in lines(stream, 1 << 16) if line.start == 0)


def _next_cut(source: Source, path: Path, name: str, mark: int, size: int) -> int:
    """The first place at or after `mark` where a range may end."""
    if mark >= size:
        return size
    if reader_of(source, name) == "jsonl" or source.split == "lines":
        return cut_near(path, mark, 0, size)
    if source.split == "paragraphs":
        return cut_near(path, mark, inf, size)
    step = source.document_bytes
    end = cut_near(path, -(-mark // step) * step, step, size)
    # the second differs only after a line longer than a step
    return cut_near(path, end // step * step, step, size) if end < size else size


def _line_ends(path: Path, start: int, end: int) -> int:
    count = 0
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (block := file.read(min(1 << 20, end - start))):
            count += block.count(b"\n")
            start += len(block)
    return count
