"""Runs of units in many texts at once: the grams that test items are known by, and those that documents are asked for.

A gram is the shortest run of units (kiloq.prepare.models.units) that weighs so many words, where a character of an
unspaced script weighs 1 / CHARS_PER_WORD of one: 13 words are 13 words in English, 26 characters in Chinese, and in a
mixture something between, and the same run is found from the same place in any text. Texts are worked on in groups, so
that numpy's cost of a call is shared; no run goes from one text into the next.
Source: Brown et al. 2020, appendix C (n-grams of words, lower case, no punctuation); the weights are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kiloq.prepare.models.items import Item
from kiloq.prepare.models.table import EMPTY
from kiloq.prepare.models.units import I64, U64, Runs, Units, folded, units_of
from kiloq.prepare.rules.text import CHARS_PER_WORD

PART_CHARS = 1 << 20  # looked at once: 100 MiB of work. Ours


@dataclass(frozen=True)
class Group:
    """The units of several texts, or of parts of one, so that many short texts cost what a long one does."""

    units: Units  # of all parts in a row, n of them
    owners: I64  # [parts] the text's number
    shifts: I64  # [parts] from places in the row to places in the text
    begins: I64  # [parts + 1] the first unit of each part
    part_of: I64  # [n] the part of each unit
    weights: I64  # [n + 1] what the units before each weigh, in characters of unspaced scripts
    runs: Runs
    codes: npt.NDArray[np.uint32]  # the row's characters

    def speaks(self, firsts: I64, lasts: I64) -> npt.NDArray[np.bool_]:
        """Whether runs have more than numbers in them."""
        others = np.concatenate([[0], np.cumsum((self.codes < ord("0")) | (self.codes > ord("9")))])
        said = np.concatenate([[0], np.cumsum(others[self.units.ends] > others[self.units.starts])])
        found: npt.NDArray[np.bool_] = said[lasts] > said[firsts]
        return found

    def windows(self, length: int, *, exact: bool) -> tuple[I64, I64]:
        """First unit and end of the shortest runs that weigh `length`, inside a part; exact: those that weigh no more."""
        reach = self.weights[:-1] + length
        firsts = np.flatnonzero(reach <= self.weights[self.begins[1:]][self.part_of])
        lasts = np.searchsorted(self.weights, reach[firsts])
        if exact:
            fits = self.weights[lasts] == reach[firsts]
            firsts, lasts = firsts[fits], lasts[fits]
        return firsts, lasts

    def keys(self, firsts: I64, lasts: I64) -> U64:
        """The keys of runs; never EMPTY."""
        keys = self.runs.hashes(firsts, lasts)
        return np.where(keys == EMPTY, np.uint64(0), keys)


def groups(texts: Iterable[str], words: int) -> Iterator[Group]:
    """Groups of about PART_CHARS, in the order of the texts."""
    held: list[tuple[int, int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        for offset, part in _parts(text, words):
            held.append((number, offset, part))
            size += len(part) + 1
            if size >= PART_CHARS:
                yield _group(held)
                held, size = [], 0
    if held:
        yield _group(held)


def _group(parts: Sequence[tuple[int, int, str]]) -> Group:
    places = np.cumsum([0, *(len(part) + 1 for _, _, part in parts)])
    codes = folded("\n".join(part for _, _, part in parts))
    units = units_of(codes)
    begins = np.searchsorted(units.starts, places)
    shifts = np.array([offset for _, offset, _ in parts]) - places[:-1]
    return Group(
        units=units,
        owners=np.array([number for number, _, _ in parts]),
        shifts=shifts,
        begins=begins,
        part_of=np.repeat(np.arange(len(parts)), np.diff(begins)),
        weights=np.concatenate([[0], np.cumsum(np.where(units.single, 1, CHARS_PER_WORD))]).astype(np.int64),
        runs=Runs(units.hashes),
        codes=codes,
    )


def _parts(text: str, words: int) -> Iterator[tuple[int, str]]:
    """A text, or parts of about PART_CHARS that overlap by a gram, each with its place."""
    offset = 0
    while len(text) - offset > PART_CHARS:
        units = units_of(folded(text[offset : offset + PART_CHARS]))
        whole = max(0, len(units.starts) - 1)  # the last unit may go on in the next part
        if whole:
            yield offset, text[offset : offset + int(units.ends[whole - 1])]
        back = max(0, whole - words * CHARS_PER_WORD)
        # Half a part at least: units of that size would be read over and over, and are no words.
        offset += max(PART_CHARS // 2, int(units.starts[back]) if whole else PART_CHARS)
    yield offset, text[offset:]


def _grams(texts: Sequence[str], words: int, least_words: int, *, numbers: bool) -> tuple[U64, I64, set[int]]:
    """Keys of grams, the numbers of the texts that they are of, and the lengths of those that are a whole text.

    numbers: also grams of nothing but numbers; 1 to 13 stand in many a table.
    """
    full = words * CHARS_PER_WORD
    keys, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    lengths: set[int] = set()
    for group in groups(texts, words):
        firsts, lasts = group.windows(full, exact=False)
        size = np.diff(group.weights[group.begins])
        short = np.flatnonzero((size >= least_words * CHARS_PER_WORD) & (size < full))
        firsts, lasts = np.concatenate([firsts, group.begins[short]]), np.concatenate([lasts, group.begins[short + 1]])
        if not numbers:
            said = group.speaks(firsts, lasts)
            firsts, lasts = firsts[said], lasts[said]
        found = group.weights[lasts] - group.weights[firsts]
        lengths.update(np.unique(found[found < full]).tolist())
        keys.append(group.keys(firsts, lasts))
        owners.append(group.owners[group.part_of[firsts]])
    return np.concatenate(keys), np.concatenate(owners), lengths


def item_grams(items: Sequence[Item], words: int, least_words: int) -> Iterator[tuple[U64, I64, set[int]]]:
    """The grams of each text of the items; then, of items that have none, those of the whole item."""
    whose = np.array([at for at, item in enumerate(items) for _ in item.texts], np.int64)
    keys, texts, lengths = _grams([text for item in items for text in item.texts], words, least_words, numbers=False)
    yield keys, whose[texts], lengths
    none = np.flatnonzero(np.bincount(whose[texts], minlength=len(items)) == 0)
    keys, texts, lengths = _grams([items[at].whole for at in none.tolist()], words, least_words, numbers=True)
    yield keys, none[texts], lengths
