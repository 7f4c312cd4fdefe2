"""What the rule families count: words, lines, sentences and repeats, for spaced and for unspaced scripts alike.

Chinese, Japanese and the scripts of Thailand, Laos, Cambodia and Myanmar put no spaces between words. There every
character is a *unit* of its own and CHARS_PER_WORD of them count as a word, so that one set of published limits serves
all languages; limits on the length of words and on stop words are for spaced text alone. Text is *unspaced* when more
than half of its letters are of those scripts.
Sources: Rae et al. 2021 (Gopher), appendix A1.1 for the repeats; the conversion of characters to words is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from kiloq.core.hashing import GOLDEN, mix

CHARS_PER_WORD = 2  # of unspaced scripts: ours; words of two characters are the commonest in running Chinese
TERMINAL = frozenset(
    ".!?\"'”’。！？…」』；"
)  # C4: period, exclamation mark, question mark, quotation mark; and the Chinese ones

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_UNSPACED_SET = HAN + "\u3041-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
UNSPACED = re.compile(f"[{_UNSPACED_SET}]")
_UNIT = re.compile(rf"[{_UNSPACED_SET}]|[^\s{_UNSPACED_SET}]+")
_HAN = re.compile(f"[{HAN}]")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]{0,4}(?=\s|$)|[。！？…]+[”’」』）]{0,4}")
_EDGES = ".,;:!?\"'()[]{}<>*_~`|/\\-–—…“”‘’«»#=+"


class Text:
    """A text and the counts of it that rules ask for, each computed once and only when asked."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, without the space around them."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Stretches between blank lines."""
        return [part for part in map(str.strip, re.split(r"\n[^\S\n]*\n", self.text)) if part]

    @cached_property
    def tokens(self) -> list[str]:
        """What stands between spaces; every character of an unspaced script alone. Punctuation is still on it."""
        return _UNIT.findall(self.text) if UNSPACED.search(self.text) else self.text.split()

    @cached_property
    def units(self) -> list[str]:
        """Tokens without the punctuation around them; what was nothing else is gone."""
        return [unit for unit in (token.strip(_EDGES) for token in self.tokens) if any(map(str.isalnum, unit))]

    @cached_property
    def unspaced_units(self) -> int:
        """Characters of scripts that have no spaces between words."""
        return len(UNSPACED.findall(self.text))

    @cached_property
    def unspaced(self) -> bool:
        """Whether such scripts have more than half of the letters."""
        return self.unspaced_units * 2 > sum(len(unit) for unit in self.units)

    @cached_property
    def words(self) -> int:
        """Number of words; CHARS_PER_WORD characters of an unspaced script are one."""
        return word_count(self.units)

    @cached_property
    def han(self) -> int:
        """Number of Han characters."""
        return len(_HAN.findall(self.text))


def word_count(units: Sequence[str]) -> int:
    """Words in `units`; characters of unspaced scripts are rounded up to whole words."""
    characters = sum(1 for unit in units if len(unit) == 1 and UNSPACED.match(unit))
    return len(units) - characters + -(-characters // CHARS_PER_WORD)


def sentences(text: str) -> int:
    """How many sentences end in `text`; a line or text that just stops ends none."""
    return len(_SENTENCE_END.findall(text))


def ends_sentence(line: str) -> bool:
    """Whether a line ends in terminal punctuation; an ellipsis of three dots is not one (C4 took it for a cut text)."""
    return bool(line) and line[-1] in TERMINAL and not line.endswith("...")


def repeated(pieces: Sequence[str]) -> tuple[float, float]:
    """Of `pieces`, the share that said before what they say, and the share of characters in them."""
    seen: set[str] = set()
    count = size = 0
    for piece in pieces:
        if piece in seen:
            count, size = count + 1, size + len(piece)
        seen.add(piece)
    return count / max(1, len(pieces)), size / max(1, sum(map(len, pieces)))


def _hashes(units: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A number of 64 bits for each unit, by the order in which units first appear (splitmix64, Steele et al. 2014)."""
    places: dict[str, int] = {}
    codes = np.array([places.setdefault(unit, len(places)) for unit in units], np.uint64)
    return mix((codes + np.uint64(1)) * np.uint64(GOLDEN))


class Repeats:
    """Repeated n-grams of a sequence of units, as shares of the characters in them."""

    def __init__(self, units: Sequence[str]) -> None:
        self._codes = _hashes(units)
        self._starts = np.concatenate([[0], np.cumsum([len(unit) for unit in units], dtype=np.int64)])

    @property
    def size(self) -> int:
        """Characters in all units."""
        return int(self._starts[-1])

    def _grams(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        count = len(self._codes) - n + 1
        grams = np.zeros(count, np.uint64)
        with np.errstate(over="ignore"):
            for offset in range(n):
                grams = grams * np.uint64(0x100000001B3) + self._codes[offset : offset + count]
        return grams

    def top(self, n: int) -> float:
        """The share of characters in the n-gram that covers most of them; 0 if none comes twice."""
        if len(self._codes) < n + 1:
            return 0.0
        _, first, counts = np.unique(self._grams(n), return_index=True, return_counts=True)
        sizes = (self._starts[first + n] - self._starts[first]) * counts
        best = int(sizes[counts > 1].max(initial=0))
        return min(1.0, best / max(1, self.size))

    def duplicate(self, n: int) -> float:
        """The share of characters in n-grams that came before; a character in several of them counts once."""
        if len(self._codes) < n + 1:
            return 0.0
        grams = self._grams(n)
        _, first = np.unique(grams, return_index=True)
        again = np.ones(len(grams), bool)
        again[first] = False
        edges = np.zeros(len(self._codes) + 1, np.int64)
        edges[: len(grams)] += again
        edges[n : n + len(grams)] -= again
        covered = np.cumsum(edges)[:-1] > 0
        return float(np.diff(self._starts)[covered].sum() / max(1, self.size))


def over(family: str, what: str, value: float, limit: float | None, *, percent: bool = True) -> str | None:
    """The reason for a value above its limit; None below it or where the rule is off."""
    if limit is None or value <= limit:
        return None
    return f"{family}: {what} {_shown(value, percent)}, at most {_shown(limit, percent)} may be"


def under(family: str, what: str, value: float, limit: float | None, *, percent: bool = True) -> str | None:
    """The reason for a value below its limit; None above it or where the rule is off."""
    if limit is None or value >= limit:
        return None
    return f"{family}: {what} {_shown(value, percent)}, at least {_shown(limit, percent)} are needed"


def _shown(value: float, percent: bool) -> str:
    return f"{value * 100:.4g}%" if percent else f"{value:.6g}"
