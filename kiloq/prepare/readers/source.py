"""What a reader gets and gives: a source of a recipe, the piece of it that one task reads, rows, and what was bad.

Every record of a file becomes one of two things: a row for documents.batch_of, or a Bad with the reason why it is not
one, so that the counts of rows and of reasons add up to the records that were read. Records that are no documents by
their nature (requests in a web archive, images, binary files) are Bads whose reason begins with NOT_A_DOCUMENT.
An `id` is the file's path below the source, with "#" and the number of the line, row or record where a file has many.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from kiloq.core.errors import UsageError
from kiloq.core.files import shown
from kiloq.prepare.documents import FORMATS, meta_text
from kiloq.prepare.settings import check_choice, check_counts, check_shares
from kiloq.tokenize.normalize import well_formed

NOT_A_DOCUMENT = "read: not a document: "  # begins the reasons against records that are in order and hold no text
SAMPLE_CHARS = 200  # of a bad record: ours
SAMPLE_BYTES = 4 * SAMPLE_CHARS  # as many as they can take in UTF-8
MAX_META_CHARS = 1000  # of a value that goes into `meta`; more is cut. Ours, as for the titles of pages
LEAST_BYTES = 64  # of the limit on a record, and at most of a blank line: ours
SPLITS = ("file", "paragraphs", "lines")

# reader -> endings, lower case; the code reader's are in languages.py
ENDINGS = {
    "html": (".html", ".htm", ".xhtml"),
    "warc": (".warc", ".arc", ".wet"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "text": (".txt", ".text"),
    "markdown": (".md", ".markdown", ".rst"),
    "gsm8k": (".jsonl", ".ndjson", ".json"),
}
READERS = (*ENDINGS, "code")

_CODE = re.compile(r"[A-Za-z0-9_-]{2,16}")  # ours: the longest codes in use, such as zh-Hant-TW, have ten


@dataclass(frozen=True, kw_only=True)
class Source:
    """One [[source]] table of a recipe: files, how to read them, and the limits that hold for their records."""

    name: str  # letters, digits, - and _; part of ids and of file names
    path: str  # a file or a folder
    reader: str | None = None  # one of READERS; None: told from each file's ending
    include: tuple[str, ...] = ()  # patterns of the paths below the folder (* and ?, also across /); none: by ending
    exclude: tuple[str, ...] = ()  # patterns of what is left out
    most_bytes: int = 64 << 20  # of one record: a line, a row, a page, a file of code. Ours
    encoding: str | None = None  # of text, lines and code; None: UTF-8, and what is not UTF-8 is a bad record
    language: str | None = None  # ISO 639 code of documents that do not say their own

    # rows of JSON lines and Parquet
    text: str = "text"  # the field with the document
    format: str = "text"  # what that field holds, one of FORMATS
    id_field: str = "id"  # a field that is kept in meta as "id"
    language_fields: tuple[str, ...] = ("language", "lang")  # the first that has a code counts
    meta_fields: tuple[str, ...] = ("url", "title", "date", "license")  # kept in meta under their own names

    # plain text
    split: str = "file"  # what a document is: a file (in parts of document_bytes), paragraphs, or lines
    document_bytes: int = 1 << 20  # a longer file is cut at the blank line after so many bytes. Ours: a long book

    # program code; the three rules on lines are of the Codex and StarCoder data (see code.py), None switches one off
    licenses: tuple[str, ...] = ()  # SPDX names; files under others, or under none, are dropped. Empty: all are kept
    most_line_chars: int | None = 1000  # of the longest line
    most_mean_line_chars: int | None = 100  # of all lines
    least_alphanumeric: float | None = 0.25  # share of characters that are letters or digits

    # gsm8k
    reference_path: str | None = None  # JSON lines with the right answers, for rows that have none; None: no check
    keep_marks: bool = False  # the calculator's <<1+1=2>>
    keep_final: bool = False  # the last line as it is, "#### 2"; else it becomes "The answer is 2."

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", self.name):
            raise UsageError(f"source: name is {shown(self.name)}: give 1 to 100 letters, digits, - and _")
        if not self.path or "\0" in self.path:
            raise UsageError(f"{self.name}: path is {shown(self.path)}: give a file or a folder")
        if self.reader is not None:
            check_choice(self, "reader", READERS)
        if self.language is not None and not _CODE.fullmatch(self.language):
            raise UsageError(f"{self.name}: language is {shown(self.language)}: give a code such as en or zh-Hant")
        check_choice(self, "format", FORMATS)
        check_choice(self, "split", SPLITS)
        check_counts(self, "document_bytes", least=1)
        check_counts(self, "most_bytes", least=LEAST_BYTES)
        check_counts(self, "most_line_chars", "most_mean_line_chars", least=1)
        check_shares(self, "least_alphanumeric")
        if self.encoding is not None and not _keeps_line_ends(self.encoding):
            raise UsageError(
                f"{self.name}: encoding is {shown(self.encoding)}: give one that Python knows and that has line ends "
                "of one byte, or convert the files to UTF-8"
            )


def _keeps_line_ends(encoding: str) -> bool:
    """Whether lines can be cut before they are decoded: not in UTF-16, nor in codecs that are not of text."""
    try:
        b"\xff".decode(encoding, "replace")  # as samples of bad records are
        return "a\n".encode(encoding) == b"a\n" and b"a\n".decode(encoding) == "a\n"
    except (LookupError, ValueError, TypeError):
        return False


@dataclass(frozen=True)
class Piece:
    """What one task reads: some whole files, or a range of one."""

    files: tuple[str, ...]  # relative to the source's folder, with /
    start: int = 0  # where the range begins: byte, or row group of a Parquet file
    end: int | None = None  # where it ends; None: with the file
    first: int = 1  # number of its first line or row in the file

    def to_json(self) -> dict[str, Any]:
        """The piece as values that JSON has."""
        return {**asdict(self), "files": list(self.files)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Piece:
        """The piece that to_json described."""
        return cls(**{**values, "files": tuple(values["files"])})


class Bad(NamedTuple):
    """A record that is no row: counted and listed, never fatal."""

    where: str  # as an id
    reason: str  # one sentence that begins with "read: ", values at its end
    sample: str  # its first characters, as far as they can be decoded


Row = dict[str, Any]


@dataclass(frozen=True)
class File:
    """A file of a piece while it is read: where it lies, what its ids begin with, which part is wanted."""

    source: Source
    root: Path  # the source's folder
    name: str  # relative to it
    start: int = 0
    end: int | None = None
    first: int = 1
    licenses: dict[str, str | None] = field(default_factory=dict)  # of folders, as far as they are known

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return self.root / self.name

    @cached_property
    def label(self) -> str:
        """The name as ids have it: what is not UTF-8 in it with a backslash, and backslashes doubled."""
        return os.fsencode(self.name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")

    def id(self, at: int | str | None = None) -> str:
        """The id of record `at`, or of the file."""
        return self.label if at is None else f"{self.label}#{at}"

    def row(
        self, text: str, kind: str, meta: Mapping[str, Any], at: int | str | None = None, language: Any = None
    ) -> Row:
        """A row for documents.batch_of; all strings are such that Arrow takes them."""
        return {
            "id": self.id(at),
            "source": self.source.name,
            "format": kind,
            "text": well_formed(text),
            "language": _code(language) or self.source.language,
            "meta": meta_text(plain_meta(meta)) if meta else "{}",
        }

    def bad(self, reason: str, data: bytes | str = b"", at: int | str | None = None) -> Bad:
        """A Bad of record `at`, or of the file; `reason` goes on after "read: " unless it begins so."""
        text = data if isinstance(data, str) else data[:SAMPLE_BYTES].decode(self.source.encoding or "utf-8", "replace")
        said = reason if reason.startswith("read: ") else f"read: {reason}"
        return Bad(self.id(at), said, well_formed(text[:SAMPLE_CHARS]))


def _code(value: Any) -> str | None:
    """A language code, or None for what cannot be one."""
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None


def plain_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` without what is empty, nested or no JSON number; long strings cut."""
    found: dict[str, Any] = {}
    for key, value in meta.items():
        if isinstance(value, date):
            value = value.isoformat()  # noqa: PLW2901
        if isinstance(value, str) and value:
            found[well_formed(key)] = well_formed(value[:MAX_META_CHARS])
        elif (
            isinstance(value, bool)
            or (isinstance(value, int) and abs(value) < 1 << 64)
            or (isinstance(value, float) and isfinite(value))
        ):
            found[well_formed(key)] = value
        elif isinstance(value, tuple) and value:
            found[well_formed(key)] = [well_formed(item[:MAX_META_CHARS]) for item in value]
    return found


def row_meta(source: Source, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of fields has for `meta`."""
    wanted = {"id": row.get(source.id_field)} if source.id_field in row else {}
    return {**wanted, **{name: row[name] for name in source.meta_fields if name in row}}


def row_language(source: Source, row: Mapping[str, Any]) -> str | None:
    """The first language field of a row that has a code."""
    return next((code for name in source.language_fields if (code := _code(row.get(name)))), None)
