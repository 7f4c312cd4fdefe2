"""A character model as it is used: what is read of a text, its perplexity, and the model's file.

Before, case, digits and white space are evened out, as CCNet does (Wenzek et al. 2020), but punctuation stays: it is
part of good text. The figure is the perplexity for one byte of UTF-8, which languages with long and with short
characters share. A character outside the vocabulary costs what the model gives to unknown ones, divided evenly among
all that Unicode could have, so that the probabilities of all texts of a length sum to one. Look-ups are those of the
back-off form (Heafield et al. 2013): an order is asked only where the run was known to the order below.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.core.errors import FormatError
from kiloq.core.safetensors import write_safetensors
from kiloq.prepare.models import ngrams
from kiloq.prepare.models.files import ModelFile, cached
from kiloq.prepare.models.ngrams import FIRST, START, UNKNOWN, Ids, gram_keys
from kiloq.prepare.models.table import Table, fault, lay_out
from kiloq.prepare.models.units import Runs, folded

KIND = "kiloq perplexity 1"
CODES = 0x110000  # of Unicode
MAX_ORDER = 12  # ours
MAX_CHARACTERS = 60_000  # of a vocabulary: symbols are 16 bits
MAX_LOG = 1e4  # ours; keeps sums of a part in 63 bits
MAX_PERPLEXITY = math.exp(80)  # ours; the largest float32 is exp(88)
PERCENTILES = 101  # 0 to 100
FIXED = 1 << 20  # of log-probabilities in whole numbers, whose sums have no order
PART_CHARS = 1 << 20  # a longer text is read in parts, each of which begins afresh. Ours: 100 MiB of work

Codes = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]

_START = np.array([START], np.uint16)


def normal(text: str) -> Codes:
    """What is modelled of a text: no case, digits as 0, white space as one space, none at the ends."""
    codes = _even_table()[folded(text)]
    space = codes == ord(" ")
    keep = ~space
    keep[1:] |= ~space[:-1]
    codes = codes[keep]
    start = int(len(codes) > 0 and codes[0] == ord(" "))
    end = len(codes) - int(len(codes) > start and codes[-1] == ord(" "))
    even: Codes = codes[start:end]
    return even


def utf8_bytes(codes: Codes) -> int:
    """The bytes that these characters take."""
    return len(codes) + sum(int((codes >= limit).sum()) for limit in (0x80, 0x800, 0x10000))


@dataclass(frozen=True)
class Scorer:
    """A model as it is used; slots as in kiloq.prepare.models.table, V symbols."""

    order: int
    characters: Codes  # [V - FIRST], ascending
    table: Table
    logs: F32  # by slot: of an n-gram's last symbol after the others
    backoffs: F32  # by slot: of leaving the n-gram as a context
    first_logs: F32  # [V]
    first_backoffs: F32  # [V]
    percentiles: F32  # [PERCENTILES] of texts held out; empty if there were none

    @cached_property
    def symbol_of(self) -> Ids:
        """The symbol of every character of Unicode."""
        return symbol_table(self.characters)

    def perplexities(self, texts: Iterable[str]) -> list[float | None]:
        """The perplexity for a byte of each text; None where there is nothing in it. Texts do not touch each other."""
        logs: Counter[int] = Counter()
        sizes: list[int] = []
        group: list[tuple[int, Codes]] = []
        held = 0
        for at, text in enumerate(texts):
            codes = normal(text)
            sizes.append(utf8_bytes(codes))
            for start in range(0, len(codes), PART_CHARS):
                group.append((at, codes[start : start + PART_CHARS]))
                held += len(group[-1][1])
                if held >= PART_CHARS:
                    self._add(group, logs)
                    group, held = [], 0
        self._add(group, logs)
        return [_perplexity(logs[at] / FIXED, size) if size else None for at, size in enumerate(sizes)]

    def _add(self, group: Sequence[tuple[int, Codes]], logs: Counter[int]) -> None:
        """Add the log-probabilities of parts, times FIXED, to those of their texts."""
        found = self.log_probabilities([self.symbol_of[part] for _, part in group])
        for (at, _), values in zip(group, found, strict=True):
            logs[at] += int(np.rint(values * FIXED).astype(np.int64).sum())

    def log_probabilities(self, texts: Sequence[Ids]) -> list[npt.NDArray[np.float64]]:
        """The log-probability of each symbol of each text after those before it; of UNKNOWN, as one of all it stands for."""
        if not texts:
            return []
        symbols = np.concatenate([part for text in texts for part in (_START, text)])
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
        since = np.arange(len(symbols)) - np.repeat(starts[:-1], np.diff(starts))
        runs = Runs(symbols)
        logs = self.first_logs[symbols].astype(np.float64)
        leave = self.first_backoffs[symbols]
        known = np.ones(len(symbols), np.bool_)  # whether the run of n - 1 symbols that ends here is in the model
        for n in range(2, self.order + 1):
            known = known & (since >= n - 1)
            ends = np.flatnonzero(known)
            slots = self.table.find(gram_keys(runs, n)[ends - n + 1])
            whole = np.flatnonzero(since >= n - 1)
            logs[whole] += leave[whole - 1]
            there = slots >= 0
            logs[ends[there]] = self.logs[slots[there]]
            known[ends[~there]] = False
            leave = np.zeros(len(symbols), np.float32)
            leave[ends[there]] = self.backoffs[slots[there]]
        logs[symbols == UNKNOWN] -= math.log(CODES - len(self.characters))
        return [logs[start + 1 : end] for start, end in pairwise(starts)]


def _perplexity(log: float, size: int) -> float:
    return min(MAX_PERPLEXITY, math.exp(min(100.0, -log / size)))


def symbol_table(characters: Codes) -> Ids:
    """[CODES] the symbol of every character: its place among `characters` after FIRST, else UNKNOWN."""
    symbols = np.full(CODES, UNKNOWN, np.uint16)
    symbols[characters] = np.arange(FIRST, FIRST + len(characters), dtype=np.uint16)
    return symbols


def estimate_scorer(texts: Iterable[str], characters: Codes, order: int, most_grams: int) -> Scorer:
    """A model of `texts`, without percentiles. The arguments are those of `kiloq prepare perplexity`."""
    symbol_of = symbol_table(characters)
    counted = ngrams.count(_symbols(texts, symbol_of), order)
    count = FIRST + len(characters)
    alone = gram_keys(Runs(np.arange(count, dtype=np.uint16)), 1)
    model = ngrams.estimate(counted, count, alone, most_grams)
    keys = np.concatenate([one.keys for one in model.orders]) if model.orders else np.zeros(0, np.uint64)
    ascending = np.argsort(keys)
    made, places = lay_out(keys[ascending])
    logs, backoffs = np.zeros(len(made.slots), np.float32), np.zeros(len(made.slots), np.float32)
    if model.orders:
        logs[places] = np.concatenate([one.logs for one in model.orders])[ascending]
        backoffs[places] = np.concatenate([one.backoffs for one in model.orders])[ascending]
    first = model.logs.astype(np.float32), model.backoffs.astype(np.float32)
    return Scorer(order, characters, made, logs, backoffs, *first, np.zeros(0, np.float32))


def _symbols(texts: Iterable[str], symbol_of: Ids) -> Iterator[Ids]:
    for text in texts:
        codes = normal(text)
        for start in range(0, len(codes), PART_CHARS):
            yield np.concatenate([_START, symbol_of[codes[start : start + PART_CHARS]]])


def vocabulary(texts: Iterable[str], most: int) -> Codes:
    """The characters of `texts`, ascending: the `most` frequent of those that come twice at least."""
    counts = np.zeros(CODES, np.int64)
    for text in texts:
        found, times = np.unique(normal(text), return_counts=True)
        counts[found] += times
    order = np.argsort(-counts, kind="stable")[:most]
    return np.sort(order[counts[order] > 1]).astype(np.uint32)


def save_scorer(scorer: Scorer, path: Path, said: Mapping[str, str]) -> None:
    """The model as one file; `said` is kept in it for people: what it was made from."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "slots": scorer.table.slots, "logs": scorer.logs, "backoffs": scorer.backoffs,
        "characters": scorer.characters, "first_logs": scorer.first_logs,
        "first_backoffs": scorer.first_backoffs, "percentiles": scorer.percentiles,
    }  # fmt: skip
    write_safetensors(path, arrays, {**said, "kind": KIND, "order": str(scorer.order), "bits": str(scorer.table.bits)})


def _load(path: Path) -> Scorer:
    file = ModelFile(path, KIND)
    characters = file.array("characters", np.uint32)
    if len(characters) > MAX_CHARACTERS or (len(characters) and characters.max() >= CODES):
        raise FormatError(f"{path}: its characters are not a vocabulary: it is damaged")
    slots = file.array("slots", np.uint64)
    bits = file.number("bits", 1, 40)
    if wrong := fault(slots, bits):
        raise FormatError(f"{path}: {wrong}: it is damaged")
    percentiles = file.array("percentiles", np.float32, most=MAX_PERPLEXITY)
    if len(percentiles) not in (0, PERCENTILES):
        raise FormatError(f"{path}: has {len(percentiles):,} percentiles: {PERCENTILES} or none were expected")
    count = FIRST + len(characters)
    return Scorer(
        file.number("order", 1, MAX_ORDER),
        characters,
        Table(slots, bits),
        logs=file.array("logs", np.float32, len(slots), MAX_LOG),
        backoffs=file.array("backoffs", np.float32, len(slots), MAX_LOG),
        first_logs=file.array("first_logs", np.float32, count, MAX_LOG),
        first_backoffs=file.array("first_backoffs", np.float32, count, MAX_LOG),
        percentiles=percentiles,
    )


load_scorer = cached(_load)


@cache
def _even_table() -> Codes:
    table = np.arange(CODES, dtype=np.uint32)
    for code in range(0x20000):  # no digits or white space are above (Unicode 16)
        if chr(code).isspace():
            table[code] = ord(" ")
        elif chr(code).isdecimal():
            table[code] = ord("0")
    return table
