"""How well vocabularies compress texts, language by language.

Three figures: bytes per token (what the original's report plots, higher is better), tokens per character, and tokens
relative to a baseline vocabulary (lower is better), whose geometric mean sums up the languages. Bytes and characters
are those of the text in NFC, and every vocabulary gets that text, so that none is charged for composing it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any, Protocol

from kiloq.core.chart import bars
from kiloq.core.errors import FormatError, UsageError
from kiloq.core.page import cell, page
from kiloq.tokenize.normalize import nfc, well_formed
from kiloq.tokenize.texts import Text
from kiloq.tokenize.tokenizer import Tokenizer


@dataclass
class Language:
    """One group of texts: its size and the number of tokens by vocabulary."""

    documents: int
    bytes: int
    characters: int
    tokens: dict[str, int]


@dataclass(frozen=True)
class Compression:
    """Languages by name, the vocabularies' names in order, and which of them the others are compared with."""

    languages: dict[str, Language]
    names: tuple[str, ...]
    baseline: str
    empty: int = 0  # texts left out because there is nothing in them

    def bytes_per_token(self, language: str, name: str) -> float:
        """Bytes of the language's text for one token."""
        return self.languages[language].bytes / self.languages[language].tokens[name]

    def tokens_per_character(self, language: str, name: str) -> float:
        """Tokens for one character (code point) of the language's text."""
        return self.languages[language].tokens[name] / self.languages[language].characters

    def relative(self, language: str, name: str) -> float:
        """Tokens, as a multiple of the baseline's."""
        return self.languages[language].tokens[name] / self.languages[language].tokens[self.baseline]

    def mean_relative(self, name: str) -> float:
        """Geometric mean of `relative` over the languages, each of equal weight."""
        return exp(sum(log(self.relative(language, name)) for language in self.languages) / len(self.languages))


class Encodes(Protocol):
    """All that is asked of a tokenizer here."""

    def encode(self, text: str) -> Sequence[int]:
        """Its ids, without tokens for the beginning or the end."""
        ...


def load_any(source: str) -> Encodes:
    """A tokenizer that kiloq reads, or a tokenizer.json that Hugging Face's package reads. Raises as Tokenizer.load."""
    try:
        return Tokenizer.load(source)
    except FormatError as error:
        path = Path(source) / "tokenizer.json" if Path(source).is_dir() else Path(source)
        if path.suffix != ".json":
            raise
        try:
            from tokenizers import Tokenizer as Foreign  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            raise error from None
        try:
            return _Foreign(Foreign.from_file(str(path)))
        except Exception:  # the package has no class of its own for what it cannot read
            raise error from None


class _Foreign:
    """A tokenizer of the package `tokenizers`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> Sequence[int]:
        """As Encodes."""
        ids: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def measure(
    texts: Iterable[Text], tokenizers: Mapping[str, Encodes], baseline: str, *, strip: bool = False
) -> Compression:
    """Encode every text with every tokenizer. Raises UsageError where there is no text.

    strip: without blank lines and the white space around lines, which tell of a file's layout, not of a language.
    """
    languages: dict[str, Language] = {}
    empty = 0
    for text in texts:
        normal = well_formed(nfc(text.text))
        if strip:
            normal = "\n".join(filter(None, map(str.strip, normal.splitlines())))
        if not normal:
            empty += not text.continues
            continue
        one = languages.setdefault(text.group, Language(0, 0, 0, dict.fromkeys(tokenizers, 0)))
        one.documents += not text.continues
        one.bytes += len(normal.encode())
        one.characters += len(normal)
        for name, tokenizer in tokenizers.items():
            one.tokens[name] += len(tokenizer.encode(normal))
    if not languages:
        raise UsageError(f"there is no text to measure ({empty:,} documents are empty): give files with text")
    if lost := next((n for one in languages.values() for n in tokenizers if not one.tokens[n]), None):
        raise UsageError(f"the vocabulary {lost} has no tokens for a text: leave it out, or give longer texts")
    return Compression(languages, tuple(tokenizers), baseline, empty)


def as_json(found: Compression) -> dict[str, object]:
    """Everything as one JSON object."""
    return {
        "baseline": found.baseline,
        "empty_documents": found.empty,
        "languages": {
            language: {
                "documents": one.documents, "bytes": one.bytes, "characters": one.characters,
                "tokenizers": {
                    name: {
                        "tokens": one.tokens[name],
                        "bytes_per_token": round(found.bytes_per_token(language, name), 4),
                        "tokens_per_character": round(found.tokens_per_character(language, name), 4),
                        "relative": round(found.relative(language, name), 4),
                    }
                    for name in found.names
                },
            }
            for language, one in found.languages.items()
        },
        "mean_relative": {name: round(found.mean_relative(name), 4) for name in found.names},
    }  # fmt: skip


def rows(found: Compression) -> list[list[str]]:
    """The table: a heading, a row for each language, and the mean if there are several."""
    per = ("bytes/token", "tokens/char", "relative")
    table = [["", "bytes", *(f"{name} {what}" for name in found.names for what in per)]]
    for language, one in found.languages.items():
        figures = (
            (found.bytes_per_token(language, n), found.tokens_per_character(language, n), found.relative(language, n))
            for n in found.names
        )
        table.append([language, f"{one.bytes:,}", *(f"{value:.2f}" for three in figures for value in three)])
    if len(found.languages) > 1:
        means = (["", "", f"{found.mean_relative(name):.2f}"] for name in found.names)
        table.append(["geometric mean", "", *(value for three in means for value in three)])
    return table


def report_page(found: Compression) -> str:
    """The HTML page: a chart of bytes per token and the table."""
    head, *lines = rows(found)
    table = "\n".join(
        "<tr>"
        + "".join(cell(value, number=at > 0, head=at == 0 or line is head) for at, value in enumerate(line))
        + "</tr>"
        for line in (head, *lines)
    )
    said = (
        "<p>Bytes of text (UTF-8, NFC) for one token: longer bars are better. "
        "Relative: tokens as a multiple of the baseline's, lower is better.</p>"
    )
    return page(
        "Compression by language",
        f"{said}\n{chart(found)}\n<h2>Numbers</h2><p>Baseline: {html.escape(found.baseline)}</p><table>{table}</table>",
    )


def chart(found: Compression) -> str:
    """Inline SVG: for each language a bar of bytes per token for each vocabulary."""
    values = {one: [found.bytes_per_token(one, name) for name in found.names] for one in found.languages}
    return bars(values, found.names, "{:.2f}".format, "bytes per token by language")
