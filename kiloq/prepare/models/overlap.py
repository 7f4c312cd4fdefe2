"""An index of the n-grams of test items: built once, kept as a file that processes share, asked about whole texts.

Grams of 13 words (kiloq.prepare.models.windows) stand for an item; one whose texts are all shorter counts with each
that has 8 words, and if there is none, with its question and choices in a row. Grams of more than `most_items` items are
instructions or phrases, not items, and do not count: GPT-3 left out grams found more than 10 times in its training
text, which is not known before all of it is read, so here the limit is among the test sets.
Source: Brown et al. 2020, appendix C (13 words; 8 to 13 words in sets of short items).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kiloq.core.errors import FormatError
from kiloq.core.safetensors import write_safetensors
from kiloq.prepare.models.files import ModelFile, cached
from kiloq.prepare.models.items import Item
from kiloq.prepare.models.table import Table, fault, lay_out
from kiloq.prepare.models.units import I64, U64
from kiloq.prepare.models.windows import PART_CHARS, Group, groups, item_grams
from kiloq.prepare.rules.text import CHARS_PER_WORD

KIND = "kiloq items 1"
MAX_WORDS = 100  # of a gram. Ours
_NONE = np.zeros(0, np.int64)
MAX_ITEMS = 255  # that share a gram: their number is a byte


class Hits(NamedTuple):
    """Grams found in a text: their places in characters and their slots."""

    starts: I64
    ends: I64
    slots: I64


@dataclass(frozen=True)
class Index:
    """Grams by slot (kiloq.prepare.models.table), and which items each is of."""

    words: int
    lengths: tuple[int, ...]  # of texts that are one gram, in characters of unspaced scripts
    table: Table
    begins: npt.NDArray[np.uint32]  # by slot: the first of its items
    counts: npt.NDArray[np.uint8]  # by slot: how many items
    items: npt.NDArray[np.uint32]  # numbers of items
    raw_names: npt.NDArray[np.uint8]  # JSON: {"sets": [name], "items": [[set's number, id]], "found": [0 or 1]}

    def hits(self, texts: Sequence[str]) -> list[Hits]:
        """Every gram of the index in each text, by its place."""
        found: list[list[Hits]] = [[] for _ in texts]
        for group in groups(texts, self.words):
            *columns, owners = self._group_hits(group)
            whose, begins = np.unique(owners, return_index=True)
            for owner, begin, end in zip(whose.tolist(), begins, [*begins[1:], len(owners)], strict=False):
                found[owner].append(Hits(*(column[begin:end] for column in columns)))
        return [_joined(parts) for parts in found]

    def _group_hits(self, group: Group) -> tuple[I64, I64, I64, I64]:
        """Starts, ends, slots and the texts' numbers of all grams found, by text and place."""
        columns: list[list[I64]] = [[], [], []]
        for length in (self.words * CHARS_PER_WORD, *self.lengths):
            firsts, lasts = group.windows(length, exact=length < self.words * CHARS_PER_WORD)
            slots = self.table.find(group.keys(firsts, lasts))
            there = np.flatnonzero(slots >= 0)
            for column, values in zip(columns, (firsts[there], lasts[there], slots[there]), strict=True):
                column.append(values)
        firsts, lasts, slots = map(np.concatenate, columns)
        order = np.lexsort((lasts, firsts))
        firsts, lasts, slots = firsts[order], lasts[order], slots[order]
        part = group.part_of[firsts]
        shift = group.shifts[part]
        return group.units.starts[firsts] + shift, group.units.ends[lasts - 1] + shift, slots, group.owners[part]

    def items_of(self, slots: I64) -> list[int]:
        """The numbers of the items that have one of these grams, ascending."""
        slots = np.unique(slots)
        places = [np.arange(begin, begin + count) for begin, count in zip(*self._ranges(slots), strict=True)]
        return [int(item) for item in np.unique(self.items[np.concatenate(places)])] if places else []

    def _ranges(self, slots: I64) -> tuple[list[int], list[int]]:
        return self.begins[slots].tolist(), self.counts[slots].tolist()

    @cached_property
    def _names(self) -> tuple[list[str], list[tuple[int, str]], list[int]]:
        names = json.loads(self.raw_names.tobytes())
        return names["sets"], [(int(at), str(name)) for at, name in names["items"]], names["found"]

    def name(self, item: int) -> tuple[str, str]:
        """The set and the id of an item."""
        sets, items, _ = self._names
        at, name = items[item]
        return sets[at], name

    def sizes(self) -> dict[str, tuple[int, int]]:
        """By set: its items, and those of them that have a gram and so can be found."""
        sets, items, found = self._names
        every, able = (
            Counter(at for at, _ in items),
            Counter(at for (at, _), one in zip(items, found, strict=True) if one),
        )
        return {name: (every[at], able[at]) for at, name in enumerate(sets)}


def _joined(parts: Sequence[Hits]) -> Hits:
    """The hits of a text's parts; what lies where two overlap comes twice and is kept once."""
    starts, ends, slots = (np.concatenate([_NONE, *(part[at] for part in parts)]) for at in range(3))
    if len(parts) < 2:
        return Hits(starts, ends, slots)
    order = np.lexsort((ends, starts))
    starts, ends, slots = starts[order], ends[order], slots[order]
    new = np.ones(len(starts), np.bool_)
    new[1:] = (starts[1:] != starts[:-1]) | (ends[1:] != ends[:-1])
    return Hits(starts[new], ends[new], slots[new])


def build_index(items: Iterable[Item], path: Path, words: int, least_words: int, most_items: int) -> None:
    """Write the index of `items`; 20 bytes of memory for each gram of each item."""
    numbers: dict[tuple[str, str], int] = {}
    lengths: set[int] = set()
    keys, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
    for held in _batches(items):
        whose = np.array([numbers.setdefault((item.set, item.id), len(numbers)) for item in held], np.uint32)
        for key, owner, short in item_grams(held, words, least_words):
            lengths |= short
            keys.append(key)
            owners.append(whose[owner])
    key, numbered = np.concatenate(keys), np.concatenate(owners)
    keys.clear()
    owners.clear()
    unique, counts, kept = _counted(key, numbered, most_items)
    table, places = lay_out(unique)
    begins, many = np.zeros(len(table.slots), np.uint32), np.zeros(len(table.slots), np.uint8)
    begins[places], many[places] = np.cumsum(counts) - counts, counts
    sets = list(dict.fromkeys(name for name, _ in numbers))
    able = np.bincount(kept, minlength=len(numbers)) > 0
    names = {
        "sets": sets,
        "items": [[sets.index(name), one] for name, one in numbers],
        "found": able.astype(int).tolist(),
    }
    said = np.frombuffer(json.dumps(names, ensure_ascii=False).encode("utf-8", "replace"), np.uint8)
    arrays: dict[str, npt.NDArray[Any]] = {
        "slots": table.slots,
        "begins": begins,
        "counts": many,
        "items": kept,
        "names": said,
    }
    metadata = {"kind": KIND, "bits": str(table.bits), "words": str(words), "lengths": json.dumps(sorted(lengths))}
    write_safetensors(path, arrays, metadata)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    held: list[Item] = []
    size = 0
    for item in items:
        held.append(item)
        size += sum(map(len, item.texts))
        if size >= PART_CHARS:
            yield held
            held, size = [], 0
    yield held


def _counted(keys: U64, owners: npt.NDArray[np.uint32], most_items: int) -> tuple[U64, I64, npt.NDArray[np.uint32]]:
    """Keys in order, how many items each is of, and the items; without what too many items share."""
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    new = np.ones(len(keys), np.bool_)
    new[1:] = (keys[1:] != keys[:-1]) | (owners[1:] != owners[:-1])
    keys, owners = keys[new], owners[new]
    unique, counts = np.unique(keys, return_counts=True)
    rare = counts <= most_items
    return unique[rare], counts[rare], owners[np.repeat(rare, counts)]


def _load(path: Path) -> Index:
    file = ModelFile(path, KIND)
    slots, bits = file.array("slots", np.uint64), file.number("bits", 1, 40)
    if wrong := fault(slots, bits):
        raise FormatError(f"{path}: {wrong}: it is damaged")
    words = file.number("words", 1, MAX_WORDS)
    begins, counts = file.array("begins", np.uint32, len(slots)), file.array("counts", np.uint8, len(slots))
    items, names = file.array("items", np.uint32), file.array("names", np.uint8)
    if len(slots) and int((begins.astype(np.int64) + counts).max()) > len(items):
        raise FormatError(f"{path}: its grams name items that are not there: it is damaged")
    try:
        lengths = json.loads(file.text("lengths"))
        if not all(type(length) is int and 0 < length < words * CHARS_PER_WORD for length in lengths):
            raise ValueError
        index = Index(words, tuple(lengths), Table(slots, bits), begins, counts, items, names)
        sets, named, able = index._names
        if len(able) != len(named) or not all(0 <= at < len(sets) for at, _ in named):
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise FormatError(f"{path}: its names or lengths cannot be read: it is damaged") from None
    if len(items) and int(items.max()) >= len(named):
        raise FormatError(f"{path}: its grams name items that are not there: it is damaged")
    return index


load_index = cached(_load)
