"""Gopher's quality and repetition rules: Rae et al. 2021, appendix A1.1 and table A1.

The paper's rules are for English. Here words are counted in any script (kiloq.prepare.rules.text), the length of words
is judged in spaced text only, and stop words are asked of English and Chinese only, by the row's `language`; a row
without one is taken for Chinese if its script is, else for English, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from kiloq.core.errors import UsageError
from kiloq.prepare.documents import Result, each_reason, strings_of, texts_of
from kiloq.prepare.rules.text import CHARS_PER_WORD, UNSPACED, Repeats, Text, over, repeated, under
from kiloq.prepare.settings import check_counts, check_shares

BULLETS = ("•", "‣", "▪", "●", "○", "◦", "■", "·", "*", "-", "–", "—")
STOP_WORDS = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),  # the paper's eight
    "zh": (
        "的",
        "是",
        "在",
        "了",
        "和",
        "有",
        "不",
        "这",
        "這",
        "我",
        "人",
        "他",
        "為",
        "为",
        "与",
        "與",
        "之",
    ),  # ours
}


@dataclass(frozen=True, kw_only=True)
class Gopher:
    """Length, words, symbols, bullets, ellipses, letters and stop words. None switches a rule off."""

    name: ClassVar[str] = "gopher"

    least_words: int | None = 50  # A1.1
    most_words: int | None = 100_000  # A1.1
    least_mean_chars: float | None = 3.0  # mean length of a word in characters, A1.1
    most_mean_chars: float | None = 10.0  # A1.1
    most_symbols: float | None = 0.1  # hash signs per word, and ellipses per word, A1.1
    most_bullet_lines: float | None = 0.9  # share of lines that begin with a bullet, A1.1
    most_ellipsis_lines: float | None = 0.3  # share of lines that end with an ellipsis, A1.1
    least_letter_words: float | None = 0.8  # share of words with at least one letter, A1.1
    least_stop_words: int | None = 2  # different ones, A1.1

    def __post_init__(self) -> None:
        check_counts(self, "least_words", "most_words", "least_mean_chars", "most_mean_chars", "most_symbols")
        check_counts(self, "least_stop_words")
        check_shares(self, "most_bullet_lines", "most_ellipsis_lines", "least_letter_words")
        if None not in (self.least_words, self.most_words) and self.least_words > self.most_words:  # type: ignore[operator]
            raise UsageError(f"gopher: least_words is {self.least_words}: give at most most_words, {self.most_words}")

    def apply(self, batch: Any) -> Result:
        pairs = zip(texts_of(batch), strings_of(batch, "language"), strict=True)
        return Result(batch, [self.judge(text, language) for text, language in pairs])

    def judge(self, text: str, language: str | None = None) -> str | None:
        """The first reason against `text`, or None."""
        return next(filter(None, self._reasons(Text(text), language)), None)

    def _reasons(self, text: Text, language: str | None) -> Iterator[str | None]:
        words = text.words
        yield under("gopher", "words:", words, self.least_words, percent=False)
        yield over("gopher", "words:", words, self.most_words, percent=False)
        spaced = [] if text.unspaced else [unit for unit in text.units if not UNSPACED.match(unit)]
        if spaced:
            mean = fmean(map(len, spaced))
            yield under("gopher", "mean characters of a word:", mean, self.least_mean_chars, percent=False)
            yield over("gopher", "mean characters of a word:", mean, self.most_mean_chars, percent=False)
        ellipses = text.text.count("...") + text.text.replace("……", "…").count("…")
        yield over("gopher", "hash signs per word:", text.text.count("#") / max(1, words), self.most_symbols, percent=False)  # fmt: skip
        yield over("gopher", "ellipses per word:", ellipses / max(1, words), self.most_symbols, percent=False)
        yield from self._lines(text.lines)
        if not text.unspaced:
            letters = sum(any(map(str.isalpha, token)) for token in text.tokens) / max(1, len(text.tokens))
            yield under("gopher", "words with a letter:", letters, self.least_letter_words)
        asked = STOP_WORDS.get(language or ("zh" if text.unspaced and text.han else "en"))
        if asked and (language is not None or text.han or not text.unspaced):
            found = len({unit.lower() for unit in text.units} & set(asked))
            yield under("gopher", "stop words:", found, self.least_stop_words, percent=False)

    def _lines(self, lines: list[str]) -> Iterator[str | None]:
        count = max(1, len(lines))
        bullets = sum(line.startswith(BULLETS) for line in lines) / count
        yield over("gopher", "lines that begin with a bullet:", bullets, self.most_bullet_lines)
        cut = sum(line.endswith(("...", "…")) for line in lines) / count
        yield over("gopher", "lines that end with an ellipsis:", cut, self.most_ellipsis_lines)


@dataclass(frozen=True, kw_only=True)
class GopherRepetition:
    """Repeated lines, paragraphs and n-grams. None switches a rule off, an empty tuple all rules of its kind.

    What is counted are the repeats after the first. In unspaced text an n-gram has n * CHARS_PER_WORD characters.
    """

    name: ClassVar[str] = "gopher_repetition"

    most_lines: float | None = 0.30  # share of lines that came before, table A1
    most_paragraphs: float | None = 0.30  # share of paragraphs, table A1
    most_line_chars: float | None = 0.20  # share of characters in such lines, table A1
    most_paragraph_chars: float | None = 0.20  # in such paragraphs, table A1
    most_top: tuple[float, ...] = (0.20, 0.18, 0.16)  # characters in the top 2-, 3- and 4-gram, table A1
    most_duplicate: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)  # in repeated 5- to 10-grams, table A1

    def __post_init__(self) -> None:
        check_shares(self, "most_lines", "most_paragraphs", "most_line_chars", "most_paragraph_chars")
        for name, most in (("most_top", 3), ("most_duplicate", 6)):
            values = getattr(self, name)
            if len(values) not in (0, most) or not all(0 <= value <= 1 for value in values):
                raise UsageError(f"{self.name}: {name} is {list(values)}: give {most} shares from 0 to 1, or none")

    def apply(self, batch: Any) -> Result:
        return each_reason(batch, self.judge)

    def judge(self, text: str) -> str | None:
        """The first reason against `text`, or None."""
        return next(filter(None, self._reasons(Text(text))), None)

    def _reasons(self, text: Text) -> Iterator[str | None]:
        lines, line_chars = repeated(text.lines)
        yield over("gopher", "repeated lines:", lines, self.most_lines)
        yield over("gopher", "characters in repeated lines:", line_chars, self.most_line_chars)
        paragraphs, paragraph_chars = repeated(text.paragraphs)
        yield over("gopher", "repeated paragraphs:", paragraphs, self.most_paragraphs)
        yield over("gopher", "characters in repeated paragraphs:", paragraph_chars, self.most_paragraph_chars)
        repeats = Repeats(text.units)
        factor = CHARS_PER_WORD if text.unspaced else 1
        for n, most in enumerate(self.most_top, 2):
            yield over("gopher", f"characters in the top {n}-gram:", repeats.top(n * factor), most)
        for n, most in enumerate(self.most_duplicate, 5):
            yield over("gopher", f"characters in repeated {n}-grams:", repeats.duplicate(n * factor), most)
