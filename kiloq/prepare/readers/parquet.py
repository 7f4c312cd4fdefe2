"""Parquet: one row a document, read column by column in batches whose texts are small enough to be held.

Only the columns that are wanted are read, and strings as bytes, since a damaged file can hold what is not UTF-8. What
can be read of a damaged file counts: a row group ends where it is damaged, and the next one is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kiloq.core.errors import FormatError
from kiloq.core.files import regular_size
from kiloq.core.parquet import first_line, modules
from kiloq.prepare.readers.source import Bad, File, Row, Source, row_language, row_meta

BATCH_BYTES = 4 << 20  # of texts, by the mean of the row group: ours
BATCH_ROWS = 1024  # at most: ours


def rows(file: File) -> Iterator[Row | Bad]:
    """The rows of the wanted row groups; numbers count from 1 through the file."""
    number = file.first
    with opened(file.path) as parquet:
        columns = text_columns(parquet)
        if file.source.text not in columns:
            yield file.bad(f"the file has no column of text: {file.source.text}", f"columns: {', '.join(columns)}")
            return
        last = parquet.num_row_groups if file.end is None else min(file.end, parquet.num_row_groups)
        for group in range(file.start, last):
            yield from _group(file, parquet, group, number)
            number += parquet.metadata.row_group(group).num_rows


def opened(path: Path) -> Any:
    """A ParquetFile. Raises FormatError for what is none, MissingError without pyarrow."""
    pa, pq = modules(path)
    regular_size(path)
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read as Parquet: {first_line(error)}") from None


def text_columns(parquet: Any) -> list[str]:
    """The names of the columns that hold strings."""
    return [field.name for field in parquet.schema_arrow if _is_text(field.type)]


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds  # type: ignore[import-untyped]

    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def _group(file: File, parquet: Any, group: int, number: int) -> Iterator[Row | Bad]:
    import pyarrow as pa

    end = number + parquet.metadata.row_group(group).num_rows
    names = _wanted(file.source, parquet)
    try:
        size = _batch_rows(file.source, parquet, group)
        for batch in parquet.iter_batches(size, row_groups=[group], columns=names, use_threads=False):
            for found in _decoded(batch):
                yield _row(file, found, number)
                number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield file.bad(f"the rest of a row group is damaged ({first_line(error)}), rows: {end - number}", at=number)


def _wanted(source: Source, parquet: Any) -> list[str]:
    """The columns that are read; of those beside the text only simple ones are kept later."""
    wanted = dict.fromkeys((source.text, source.id_field, *source.language_fields, *source.meta_fields))
    return [name for name in wanted if name in parquet.schema_arrow.names]


def _batch_rows(source: Source, parquet: Any, group: int) -> int:
    """Rows of a batch whose texts have about BATCH_BYTES."""
    described = parquet.metadata.row_group(group)
    chunks = (described.column(at) for at in range(described.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == source.text)
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES * described.num_rows // max(1, size))))


def _decoded(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch; strings as bytes."""
    import pyarrow as pa

    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()  # noqa: PLW2901
        columns.append(column.cast(pa.large_binary()) if _is_text(column.type) else column)
    for values in zip(*(column.to_pylist() for column in columns), strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _row(file: File, found: dict[str, Any], number: int) -> Row | Bad:
    data = found[file.source.text]
    if not isinstance(data, bytes):
        return file.bad(f"the row has no field of text: {file.source.text}", at=number)
    if len(data) > file.source.most_bytes:
        return file.bad(f"the row has more bytes than {file.source.most_bytes}", data, number)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return file.bad(f"a byte is not utf-8: {data[error.start]:#04x}", data, number)
    plain = {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in found.items()
    }
    return file.row(text, file.source.format, row_meta(file.source, plain), number, row_language(file.source, plain))
