"""Texts to learn from or to measure: plain files, JSON lines and Parquet, packed or not, one document at a time.

A document belongs to a group, which weights and reports name: the row's `language` (or `lang`, or the field that the
caller names), else the first folder below the given one, else the file's name up to the first dot. A plain text file
is handed out in parts of about PART_CHARS that end where a line ends and the next one does not begin with white space:
no piece of Qwen's pre-tokeniser goes across such a place, and no file has to fit in memory (where no such
line comes for 64 MiB, the part ends at any line). Files come in the order of their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.files import regular_size, shown
from kiloq.core.manifest import read_manifest
from kiloq.core.parquet import first_line, modules
from kiloq.core.unpack import BLOCK_BYTES, PACKED, ending, whole_lines
from kiloq.tokenize.normalize import well_formed

MAX_LINE_BYTES = 64 << 20  # ours: one line of text, or one row of JSON
PART_CHARS = 1 << 20
LANGUAGE_FIELDS = ("language", "lang")
PLAIN = (".txt", ".md", ".text")
ROWS = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Text:
    """A document, or a part of one, and the group that it counts for."""

    group: str
    text: str
    continues: bool = False  # the document before goes on here


def read_texts(inputs: Sequence[Path], field: str | None = None) -> Iterator[Text]:
    """The documents of all `inputs` (files or folders). `field`: the field of a row that names its group.

    Raises MissingError or FormatError, naming the file and what is wrong in it.
    """
    for path, group in input_files(inputs):
        yield from read_file(path, group, field)


def read_file(
    path: Path, group: str, field: str | None = None, row_groups: Sequence[int] | None = None
) -> Iterator[Text]:
    """The documents of one file, as `read_texts`; `group` is for those that do not name their own.

    row_groups: those of a Parquet file to read; None: all.
    """
    kind = ending(path)
    if kind in ROWS:
        yield from _rows(path, group, field)
    elif kind == ".parquet":
        yield from _parquet(path, group, field, row_groups)
    else:
        yield from (Text(group, part, continues=at > 0) for at, part in enumerate(_parts(path)))


def input_files(inputs: Sequence[Path]) -> list[tuple[Path, str]]:
    """Every file to read with the group of its documents. Of a folder: those with a known ending, at any depth.

    Of a folder that `kiloq prepare` wrote: its documents alone, for what it removed is text too.
    """
    found: list[tuple[Path, str]] = []
    for path in inputs:
        if not path.is_dir():
            regular_size(path)
            found.append((path, well_formed(path.name.split(".")[0] or path.name)))
            continue
        root = path / "documents" if is_prepared(path) else path
        files = sorted(p for p in root.rglob("*") if p.is_file() and ending(p) in (*PLAIN, *ROWS, ".parquet"))
        if not files:
            kinds, packed = " ".join((*PLAIN, *ROWS, ".parquet")), " ".join(PACKED)
            raise UsageError(f"{path}: has no file to read: put files ending in {kinds} there, also packed ({packed})")
        for file in files:
            inside = file.relative_to(root).parts
            found.append((file, well_formed(inside[0] if len(inside) > 1 else file.name.split(".")[0])))
    return found


def is_prepared(path: Path) -> bool:
    """Whether `kiloq prepare` wrote this folder."""
    try:
        return bool(read_manifest(path)["kind"] == "documents")
    except (MissingError, FormatError, NotADirectoryError):
        return False


def _rows(path: Path, group: str, field: str | None) -> Iterator[Text]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number:,}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise FormatError(f"{where} is not JSON: one object in braces a line was expected") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise FormatError(f'{where} has no string "text": an object with that field was expected')
        yield Text(_group(row, group, field, where), row["text"])


def _group(row: dict[str, Any], group: str, field: str | None, where: str) -> str:
    if field is not None:
        if not isinstance(value := row.get(field), str | int):
            raise FormatError(f"{where} has no field {shown(field)} that is text: choose another --by")
        return well_formed(str(value))
    return well_formed(next((row[name] for name in LANGUAGE_FIELDS if isinstance(row.get(name), str)), group))


def _parts(path: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for number, line in enumerate(_lines(path), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{path}: line {number:,} is not UTF-8 (byte {line[error.start]:#04x}): convert the file first"
            ) from None
        if size >= MAX_LINE_BYTES or (size >= PART_CHARS and not text[:1].isspace()):
            yield "".join(held)
            held, size = [], 0
        held.append(text)
        size += len(text)
    yield "".join(held)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends; MAX_LINE_BYTES at most."""
    return (line.data for line in whole_lines(path, MAX_LINE_BYTES, BLOCK_BYTES))


def row_group_bytes(path: Path) -> list[int]:
    """How large each row group of a Parquet file is, packed. Raises as `read_texts`."""
    with _opened(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        return [sum(group.column(at).total_compressed_size for at in range(group.num_columns)) for group in groups]


def _parquet(path: Path, group: str, field: str | None, row_groups: Sequence[int] | None) -> Iterator[Text]:
    with _opened(path) as file:
        wanted = dict.fromkeys(("text", field, *LANGUAGE_FIELDS))
        names = [name for name in wanted if name in file.schema_arrow.names]
        if "text" not in names:
            raise FormatError(f'{path}: has no column "text": write the texts into one of that name')
        for batch in file.iter_batches(batch_size=1024, columns=names, row_groups=row_groups):
            columns = [column.to_pylist() for column in batch.columns]  # a third of the time that rows take
            for values in zip(*columns, strict=True):
                row = dict(zip(batch.schema.names, values, strict=True))
                if not isinstance(row.get("text"), str):
                    raise FormatError(f'{path}: has a row whose "text" is no string: leave such rows out')
                yield Text(_group(row, group, field, str(path)), row["text"])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file; what goes wrong in it is one sentence."""
    pa, pq = modules(path)
    regular_size(path)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path}: cannot be read as Parquet ({first_line(error)}): it is damaged") from None
