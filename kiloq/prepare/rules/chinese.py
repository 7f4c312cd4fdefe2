"""Rules for Chinese web text: enough of it, lines that are not a menu, Han characters, and no copies of itself.

Sources: Chen et al. 2023 (ChineseWebText), section 3.2: 200 characters, 10 characters a line, 30% Chinese characters,
half in repeated 13-grams; Yuan et al. 2021 (WuDaoCorpora) for the rule that a page has 10 Han characters at all.
Rows whose `language` is another one are left alone; a row without one is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from kiloq.prepare.documents import Result, strings_of, texts_of
from kiloq.prepare.rules.text import Repeats, Text, over, under
from kiloq.prepare.settings import check_counts, check_shares

LANGUAGES = ("zh", "yue", "wuu", None)


@dataclass(frozen=True, kw_only=True)
class Chinese:
    """Length, line length, share of Han characters, sentences and repeats. None switches a rule off."""

    name: ClassVar[str] = "chinese"

    least_han: int | None = 10  # Han characters, Yuan et al. 2021
    least_chars: int | None = 200  # characters that are not white space, Chen et al. 2023
    least_line_chars: float | None = 10.0  # mean characters of a line, Chen et al. 2023
    least_han_share: float | None = 0.3  # of the characters that are not white space, Chen et al. 2023
    least_sentences: int | None = 1  # marks 。！？； in the text: without one it is a menu or a list. Ours
    most_repeated: float | None = 0.5  # share of characters in repeated n-grams, Chen et al. 2023
    gram: int = 13  # characters, Chen et al. 2023

    def __post_init__(self) -> None:
        check_counts(self, "least_han", "least_chars", "least_line_chars", "least_sentences")
        check_shares(self, "least_han_share", "most_repeated")
        check_counts(self, "gram", least=1)

    def apply(self, batch: Any) -> Result:
        pairs = zip(texts_of(batch), strings_of(batch, "language"), strict=True)
        return Result(batch, [self.judge(text) if language in LANGUAGES else None for text, language in pairs])

    def judge(self, text: str) -> str | None:
        """The first reason against `text`, or None."""
        return next(filter(None, self._reasons(Text(text))), None)

    def _reasons(self, text: Text) -> Iterator[str | None]:
        chars = "".join(text.text.split())
        yield under("chinese", "Han characters:", text.han, self.least_han, percent=False)
        yield under("chinese", "characters:", len(chars), self.least_chars, percent=False)
        mean = len(chars) / max(1, len(text.lines))
        yield under("chinese", "mean characters of a line:", mean, self.least_line_chars, percent=False)
        yield under("chinese", "Han characters:", text.han / max(1, len(chars)), self.least_han_share)
        ends = sum(map(chars.count, "。！？；"))
        yield under("chinese", "sentence marks:", ends, self.least_sentences, percent=False)
        share = Repeats(list(chars)).duplicate(self.gram)
        yield over("chinese", f"characters in repeated {self.gram}-grams:", share, self.most_repeated)
