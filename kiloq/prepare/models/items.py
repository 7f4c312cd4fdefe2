"""The items of test sets, out of whatever files they come in: what `Decontaminate` must find in other text.

An item is a row of JSON lines, CSV, TSV or Parquet, an element of a JSON list, or a paragraph of a text; packed or not.
Its texts are all strings in it, at any depth, but for its name and addresses. A set is the first folder below the path that was
given, else the file's folder and name ("gsm8k/test"). A file that cannot be read is an error, not a warning: text is
clean of a set only if all of the set was looked for.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.files import regular_size
from kiloq.core.parquet import first_line, modules
from kiloq.core.unpack import ending, is_packed, open_unpacked, whole_lines

ROWS = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
PLAIN = (".txt", ".text", ".md")
KNOWN = (*ROWS, ".json", *TABLES, ".parquet", *PLAIN)
IDS = ("id", "task_id", "question_id", "key")  # fields that name an item; the sets in common use have one of them
LABELS = ("subject", "task", "category", "type", "level", "domain", "answer", "target")  # of an item, not in its text
MAX_ROW_BYTES = 64 << 20  # ours
MAX_JSON_BYTES = 256 << 20  # of a .json file, which is read whole. Ours
MAX_NAME_CHARS = 30  # of a column, to tell a first row of names from an item. Ours

_ADDRESS = re.compile(r"\s*https?://\S*\s*")


class Item(NamedTuple):
    """One item: its set, its name there, its texts, and all that it asks in a row."""

    set: str
    id: str
    texts: list[str]
    whole: str


def read_items(paths: Iterable[str], fields: Collection[str] = (), skip: Collection[str] = ()) -> Iterator[Item]:
    """The items of files and folders. `fields`: the only fields of a row to take; `skip`: those to leave out.

    Raises MissingError, UsageError or FormatError, naming the file and what is wrong in it.
    """
    for path, name in item_files([Path(path) for path in paths]):
        stem = path.name.split(".")[0]
        for place, row in enumerate(_rows(path), 1):
            chosen = _chosen(row, fields, skip)
            yield Item(name, _id(row, stem, place), list(_texts(chosen)), _whole(chosen))


def item_files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Every file to read, in the order of names, with its set."""
    found: list[tuple[Path, str]] = []
    for path in paths:
        if not path.is_dir():
            regular_size(path)
            if ending(path) not in KNOWN:
                raise UsageError(f"{path}: is of no known kind: give files ending in {' '.join(KNOWN)}")
            found.append((path, _set(path)))
            continue
        files = sorted(file for file in path.rglob("*") if file.is_file() and ending(file) in KNOWN)
        files = [file for file in files if file.stem.upper() not in ("README", "NOTICE", "LICENSE")]
        if not files:
            raise UsageError(f"{path}: has no file with items: put files ending in {' '.join(KNOWN)} there")
        for file in files:
            inside = file.relative_to(path).parts
            found.append((file, inside[0] if len(inside) > 1 else _set(file)))
    return found


def _set(path: Path) -> str:
    return f"{path.resolve().parent.name}/{path.name.split('.')[0]}"


def _id(row: Any, stem: str, place: int) -> str:
    """The row's own name; a bare number says which only within its file."""
    names = (row.get(name) for name in IDS) if isinstance(row, dict) else ()
    found = next((name for name in names if isinstance(name, str | int) and name != ""), place)
    return found if isinstance(found, str) else f"{stem}:{found}"


def _chosen(row: Any, fields: Collection[str], skip: Collection[str]) -> Any:
    """A row without the fields that are not looked for."""
    if not isinstance(row, dict):
        return row
    return {name: row[name] for name in row if name not in skip and (name in fields if fields else name not in IDS)}


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value in their order."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if not _ADDRESS.fullmatch(value):
                yield value
        elif isinstance(value, dict | list):
            left += reversed(list(value.values()) if isinstance(value, dict) else value)


def _whole(row: Any) -> str:
    """What a row asks, as people copy it: a question with its choices, "A. …", and without its labels and answer."""
    if not isinstance(row, dict):
        return "\n".join(_texts(row))
    said = ((name, "\n".join(_texts(value))) for name, value in row.items() if name not in LABELS)
    return "\n".join(f"{name}. {text}" if len(name) == 1 and name.isupper() else text for name, text in said)


def _rows(path: Path) -> Iterator[Any]:
    kind = ending(path)
    if kind in ROWS:
        return _json_lines(path)
    if kind == ".json":
        return _json_rows(path)
    if kind == ".parquet":
        return _parquet_rows(path)
    return _table_rows(path, TABLES[kind]) if kind in TABLES else _paragraphs(path)


def _json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_text_lines(path), 1):
        if line.strip():
            yield _parsed(line, f"{path}: line {number:,}")


def _json_rows(path: Path) -> Iterator[Any]:
    """The elements of a list; of an object its lists' and its objects, else itself."""
    with open_unpacked(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise FormatError(f"{path}: has more than {MAX_JSON_BYTES:,} bytes: give it as JSON lines")
    value = _parsed(data.decode("utf-8-sig", "replace"), str(path))
    if isinstance(value, dict):
        lists = [element for inner in value.values() if isinstance(inner, list) for element in inner]
        objects = [inner for inner in value.values() if isinstance(inner, dict)]
        value = lists + objects or [value]
    yield from value if isinstance(value, list) else [value]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError(f"{where} is not JSON: mend or remove it, for all of a test set must be looked for") from None


def _table_rows(path: Path, delimiter: str) -> Iterator[Any]:
    """Rows by column name where the first has names; lists of cells else."""
    rows = csv.reader(_text_lines(path), delimiter=delimiter)
    try:
        names = next(rows, [])
        headed = len(set(names)) == len(names) and all(0 < len(name.strip()) <= MAX_NAME_CHARS for name in names)
        if not headed:
            yield names
        for row in rows:
            yield dict(zip(names, row, strict=False)) if headed else row
    except csv.Error as error:
        raise FormatError(f"{path}: line {rows.line_num:,} cannot be read as a table ({error}): mend it") from None


def _paragraphs(path: Path) -> Iterator[str]:
    held: list[str] = []
    for line in _text_lines(path):
        if line.strip():
            held.append(line)
        elif held:
            yield "".join(held)
            held = []
    if held:
        yield "".join(held)


def _text_lines(path: Path) -> Iterator[str]:
    """Lines with their ends; what is not UTF-8 is replaced."""
    for line in whole_lines(path, MAX_ROW_BYTES):
        yield line.data.decode("utf-8-sig" if line.start == 0 else "utf-8", "replace")


def _parquet_rows(path: Path) -> Iterator[Any]:
    pa, pq = modules(path)
    try:
        with open_unpacked(path) as file, pq.ParquetFile(io.BytesIO(file.read()) if is_packed(path) else path) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, FormatError | MissingError):
            raise
        raise FormatError(f"{path}: cannot be read as Parquet ({first_line(error)}): it is damaged") from None
