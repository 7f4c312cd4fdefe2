"""FineWeb's own rules, which follow those of C4 and Gopher: lists, menus and pages that repeat their lines.

Source: Penedo et al. 2024, section 3.6, which gives 0.12, 0.1 and 0.67; the authors' pipeline runs with 0.01 in place
of 0.1 and adds the rule on newlines. Chinese punctuation ends a line as well. A line's length is counted in
characters, and a Han character as CHARS_WIDE of them, for it says as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from kiloq.prepare.documents import Result, each_reason
from kiloq.prepare.rules.text import TERMINAL, UNSPACED, Text, over, repeated
from kiloq.prepare.settings import check_counts, check_shares

CHARS_WIDE = 3  # ours: Chinese UDHR text has about a third of the English one's characters


@dataclass(frozen=True, kw_only=True)
class FineWeb:
    """Line ends, short lines, repeated lines and newlines. None switches a rule off."""

    name: ClassVar[str] = "fineweb"

    least_punctuated: float | None = 0.12  # share of lines that end in punctuation must be above it, section 3.6
    short_chars: int = 30  # a line of fewer characters is short, section 3.6
    most_short: float | None = 0.67  # share of short lines, section 3.6
    most_repeated: float | None = 0.1  # share of characters in repeated lines, section 3.6; the pipeline has 0.01
    most_newlines: float | None = 0.3  # line ends per word; the authors' pipeline

    def __post_init__(self) -> None:
        check_shares(self, "least_punctuated", "most_short", "most_repeated")
        check_counts(self, "short_chars", "most_newlines")

    def apply(self, batch: Any) -> Result:
        return each_reason(batch, self.judge)

    def judge(self, text: str) -> str | None:
        """The first reason against `text`, or None."""
        return next(filter(None, self._reasons(Text(text))), None)

    def _reasons(self, text: Text) -> Iterator[str | None]:
        count = max(1, len(text.lines))
        punctuated = sum(line[-1] in TERMINAL for line in text.lines) / count
        if self.least_punctuated is not None and punctuated <= self.least_punctuated:
            yield (
                f"fineweb: lines that end in punctuation: {punctuated * 100:.4g}%, "
                f"more than {self.least_punctuated * 100:.4g}% are needed"
            )
        short = sum(_width(line) < self.short_chars for line in text.lines) / count
        yield over("fineweb", f"lines under {self.short_chars} characters:", short, self.most_short)
        yield over("fineweb", "characters in repeated lines:", repeated(text.lines)[1], self.most_repeated)
        newlines = text.text.strip().count("\n") / max(1, text.words)
        yield over("fineweb", "line ends per word:", newlines, self.most_newlines, percent=False)


def _width(line: str) -> int:
    return len(line) if line.isascii() else len(line) + (CHARS_WIDE - 1) * len(UNSPACED.findall(line))
