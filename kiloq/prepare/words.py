"""Lists of bad words in many languages: a page that uses too many of them, or too densely, is dropped.

In languages that put spaces between words a term must stand as words of its own; in Chinese, Japanese and Thai it may
stand anywhere. A page is asked for the terms of its own language, for a word may be plain in one and foul in another;
a row without a language is asked for the terms of `languages`. The list is read when the step is made, so that the
step itself touches no file; one list for all languages is JSON lines of {"lang", "term"}, a plain file has one term a
line. Sources: the idea and the limit of 0 are C4's (Raffel et al. 2020, section 2.2).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.files import regular_size
from kiloq.prepare.documents import Result, strings_of, texts_of
from kiloq.prepare.rules.text import UNSPACED, Text
from kiloq.prepare.settings import check_counts, check_shares

UNSPACED_LANGUAGES = frozenset({"zh", "yue", "wuu", "ja", "th"})
MAX_LIST_BYTES = 16 << 20  # ours; the list of 28 languages that is in common use has 0.1 MB
ANY = ""  # the language of a term that has none

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class BadWords:
    """Drops pages by the number of bad words, by their share of all words, or both. None switches a rule off."""

    name: ClassVar[str] = "words"

    path: str = ""  # the list: .jsonl or .txt, also with .gz
    terms: tuple[str, ...] = ()  # more terms, for every language
    languages: tuple[str, ...] = ("en", "zh")  # whose terms a row without a language is asked for
    least_chars: int = 2  # of a term in an unspaced script; a single character is part of plain words as well. Ours
    most_count: int | None = 0  # times that bad words are used; more: dropped. C4
    most_share: float | None = None  # of all words; more: dropped

    listed: tuple[tuple[str, str], ...] = field(init=False, repr=False, default=())  # (language, term), read from path

    def __post_init__(self) -> None:
        check_counts(self, "most_count")
        check_counts(self, "least_chars", least=1)
        check_shares(self, "most_share")
        if not self.path and not self.terms:
            raise UsageError("words: there is no list: give path = FILE, or terms")
        if self.most_count is None and self.most_share is None:
            raise UsageError("words: most_count and most_share are both off: give one of them")
        listed = read_list(Path(self.path)) if self.path else ()
        object.__setattr__(self, "listed", (*listed, *((ANY, term) for term in self.terms)))

    def apply(self, batch: Any) -> Result:
        codes = strings_of(batch, "language")
        finders = {code: self._finder(code) for code in set(codes)}
        pairs = zip(texts_of(batch), codes, strict=True)
        return Result(batch, [self._judge(text, finders[code]) for text, code in pairs])

    def judge(self, text: str, language: str | None = None) -> str | None:
        """The reason against `text`, or None. It has numbers, not the words."""
        return self._judge(text, self._finder(language))

    def _finder(self, language: str | None) -> _Finder:
        return _finder(self.listed, frozenset(self.languages if language is None else (language,)), self.least_chars)

    def _judge(self, text: str, finder: _Finder) -> str | None:
        count = finder.count(text)
        if self.most_count is not None and count > self.most_count:
            return f"words: {count} bad words, at most {self.most_count} may be"
        if self.most_share is not None and count:
            share = count / max(1, Text(text).words)
            if share > self.most_share:
                return f"words: {share:.2%} of all words are bad, at most {self.most_share:.2%} may be"
        return None


def read_list(path: Path) -> tuple[tuple[str, str], ...]:
    """The (language, term) pairs of a file. Raises MissingError or FormatError, whose sentence starts with the path."""
    try:
        regular_size(path)  # a pipe would be waited for
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except FileNotFoundError:
        raise MissingError(f"{path}: there is no such word list: check `path` of the step words") from None
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: cannot be read as a word list: {error}") from None
    if len(data) > MAX_LIST_BYTES:
        raise FormatError(f"{path}: has more than {MAX_LIST_BYTES} bytes, the most that a word list may have: split it")
    try:
        lines = data.decode().splitlines()
        if path.name.removesuffix(".gz").endswith(".jsonl"):
            rows = [json.loads(line) for line in lines if line.strip()]
            return tuple((str(row.get("lang") or ANY), str(row["term"]).strip()) for row in rows)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise FormatError(f'{path}: is not a word list: lines of {{"lang": …, "term": …}} were expected') from None
    return tuple((ANY, line.strip()) for line in lines if line.strip() and not line.startswith("#"))


class _Finder:
    """Counts terms in a text in one pass: by their first word where words are spaced, by their first character else."""

    def __init__(self, pairs: Iterator[tuple[str, str]], least_chars: int) -> None:
        by_word: dict[str, set[str]] = {}
        by_char: dict[str, set[str]] = {}
        for language, term in pairs:
            low = " ".join(term.lower().split())
            first = _WORD.match(low)
            inside = language in UNSPACED_LANGUAGES or first is None or Text(low).unspaced
            if inside and len(low) < least_chars and UNSPACED.match(low):
                continue
            if low and inside:
                by_char.setdefault(low[0], set()).add(low)
            elif first:
                by_word.setdefault(first[0], set()).add(low)
        self._by_word = {word: sorted(terms, key=len, reverse=True) for word, terms in by_word.items()}
        self._by_char = {char: sorted(terms, key=len, reverse=True) for char, terms in by_char.items()}
        self._chars = re.compile(f"[{re.escape(''.join(sorted(by_char)))}]") if by_char else None

    def count(self, text: str) -> int:
        """How often terms stand in `text`; of terms that overlap the first and longest counts."""
        low = text.lower()
        return self._words(low) + self._inside(low)

    def _words(self, low: str) -> int:
        count = end = 0
        for found in _WORD.finditer(low) if self._by_word else ():
            start = found.start()
            if start < end:
                continue
            for term in self._by_word.get(found[0], ()):
                after = start + len(term)
                if low.startswith(term, start) and not (term[-1].isalnum() and _WORD.match(low, after)):
                    count, end = count + 1, after
                    break
        return count

    def _inside(self, low: str) -> int:
        count = end = 0
        for found in self._chars.finditer(low) if self._chars else ():
            start = found.start()
            term = next((term for term in self._by_char[found[0]] if low.startswith(term, start)), None)
            if term is not None and start >= end:
                count, end = count + 1, start + len(term)
        return count


@lru_cache(maxsize=256)
def _finder(listed: tuple[tuple[str, str], ...], languages: frozenset[str], least_chars: int) -> _Finder:
    wanted = ((language, term) for language, term in listed if language in languages or language == ANY)
    return _Finder(wanted, least_chars)
