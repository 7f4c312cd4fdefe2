"""A language model of character n-grams with modified Kneser-Ney smoothing: counting and estimating.

Characters, because they work in every script, need no tokenizer beside the model, and give a vocabulary that is closed
but for the rarest, whose cost is added (kiloq.prepare.models.perplexity). Counts are exact up to HELD_GRAMS different
n-grams of an order; beyond, those seen once are given up now and then (lossy counting, Manku and Motwani 2002). The
n-grams that a model keeps are the most frequent, by one limit for all orders, so that with an n-gram its beginning and
its end are kept as well; what is cut falls to the shorter context, and probabilities still sum to one.
Sources: Chen and Goodman 1998 (the smoothing); Heafield et al. 2013 (adjusted counts, pruning, back-off form).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kiloq.prepare.models.table import EMPTY
from kiloq.prepare.models.units import I64, U64, Runs

F64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.uint16]

START, UNKNOWN, FIRST = 0, 1, 2  # symbols: before a text, of any character outside the vocabulary, the first of it
CHUNK = 1 << 20  # symbols counted at once: 300 MiB for six orders, if none comes twice. Ours
HELD_GRAMS = 8 << 20  # different n-grams of one order while counting, 270 MB. Ours: as many as a model keeps in all
FALLBACK = (0.5, 1.0, 1.5)  # discounts where counts of counts give none: lmplz --discount_fallback (Heafield)


class Grams(NamedTuple):
    """The different n-grams of one order by ascending key, with the keys of their first and last n-1 symbols."""

    keys: U64
    begins: U64
    ends: U64
    counts: I64
    opens: npt.NDArray[np.bool_]  # whether it begins with START

    def where(self, chosen: npt.NDArray[np.bool_] | I64) -> Grams:
        """The n-grams that a mask or places choose."""
        return Grams(
            self.keys[chosen], self.begins[chosen], self.ends[chosen], self.counts[chosen], self.opens[chosen]
        )  # fmt: skip


@dataclass(frozen=True)
class Order:
    """One order of a model, by ascending key: the log-probability of each n-gram, and of leaving it as a context."""

    keys: U64
    logs: F64
    backoffs: F64


@dataclass(frozen=True)
class Model:
    """Log-probabilities [symbols] of single symbols (START has none: 0), their back-offs, and orders 2 and up."""

    logs: F64
    backoffs: F64
    orders: list[Order]


def gram_keys(runs: Runs, n: int) -> U64:
    """The keys of all runs of n symbols; never EMPTY."""
    keys = runs.grams(n)
    return np.where(keys == EMPTY, np.uint64(0), keys)


def count(texts: Iterable[Ids], order: int) -> list[Grams]:
    """All n-grams of orders 1 to `order` in texts of symbols, each of which begins with START."""
    none = np.zeros(0, np.uint64)
    empty = Grams(none, none, none, np.zeros(0, np.int64), np.zeros(0, np.bool_))
    held = [[empty] for _ in range(order)]
    for chunk in _chunks(texts):
        runs = Runs(chunk)
        since = np.arange(len(chunk)) - np.maximum.accumulate(np.where(chunk == START, np.arange(len(chunk)), 0))
        shorter = np.zeros(len(chunk) + 1, np.uint64)  # keys of order 0
        for n in range(1, order + 1):
            keys = gram_keys(runs, n)
            whole = np.flatnonzero(since[n - 1 :] >= n - 1)  # inside one text
            opens = chunk[whole] == START
            found = Grams(keys[whole], shorter[whole], shorter[whole + 1], np.ones(len(whole), np.int64), opens)
            held[n - 1] = _held([*held[n - 1], _merged([found])])
            shorter = keys
    return [_merged(parts) for parts in held]


def _chunks(texts: Iterable[Ids]) -> Iterator[Ids]:
    parts: list[Ids] = []
    size = 0
    for text in texts:
        parts.append(text)
        size += len(text)
        if size >= CHUNK:
            yield np.concatenate(parts)
            parts, size = [], 0
    if parts:
        yield np.concatenate(parts)


def _held(parts: list[Grams]) -> list[Grams]:
    """Parts merged once the new ones outgrow the first, so that each n-gram is moved few times."""
    if sum(len(part.keys) for part in parts[1:]) < len(parts[0].keys):
        return parts
    merged = _merged(parts)
    return [merged if len(merged.keys) <= HELD_GRAMS else merged.where(merged.counts > 1)]


def _merged(parts: list[Grams]) -> Grams:
    """Each n-gram once, with the sum of its counts."""
    keys, begins, ends = (np.concatenate([part[at] for part in parts]) for at in range(3))
    counts, opens = np.concatenate([part.counts for part in parts]), np.concatenate([part.opens for part in parts])
    order = np.argsort(keys, kind="stable")
    new = np.ones(len(keys), np.bool_)
    new[1:] = keys[order][1:] != keys[order][:-1]
    first = np.flatnonzero(new)
    sums = np.add.reduceat(counts[order], first) if len(first) else counts
    one = order[first]
    return Grams(keys[one], begins[one], ends[one], sums, opens[one])


def estimate(counted: list[Grams], symbols: int, keys_of_symbols: U64, most_grams: int) -> Model:
    """The model of counted n-grams, with at most `most_grams` of orders 2 and up.

    symbols: size of the vocabulary with START and UNKNOWN; keys_of_symbols: the key of each as an n-gram of order 1.
    """
    adjusted = [_adjusted(grams, counted[n]) for n, grams in enumerate(counted[:-1], 1)] + [counted[-1].counts]
    least = _least(counted[1:], most_grams)
    place = np.searchsorted(counted[0].keys, keys_of_symbols)
    place[place == len(counted[0].keys)] = 0
    known = counted[0].keys[place] == keys_of_symbols
    uses = np.where(known, adjusted[0][place], 0)
    uses[START] = 0
    taken = uses - discounts(uses)[np.minimum(uses, 3)]
    total = max(1, int(uses.sum()))
    chances = taken / total + (1 - taken.sum() / total) / (symbols - 1)
    chances[START] = 1.0
    orders: list[Order] = []
    below_keys, below = np.sort(keys_of_symbols), chances[np.argsort(keys_of_symbols)]
    backoffs: list[F64] = []
    for n in range(1, len(counted)):
        kept, chances_n, leave = _order(counted[n], adjusted[n], least, below_keys, below)
        backoffs.append(leave)
        orders.append(Order(kept, np.log(chances_n), np.zeros(len(kept))))
        below_keys, below = kept, chances_n
    first = np.ones(symbols)
    if backoffs:
        first[np.argsort(keys_of_symbols)] = backoffs[0]
    made = [Order(o.keys, o.logs, np.log(leave)) for o, leave in zip(orders, backoffs[1:], strict=False)]
    return Model(np.log(chances), np.log(first), made + orders[len(made) :])


def _order(grams: Grams, uses: I64, least: int, below_keys: U64, below: F64) -> tuple[U64, F64, F64]:
    """One order: keys that stay, their probabilities, and for each n-gram below the share that it leaves to shorter ones."""
    context = _places(below_keys, grams.begins)
    ending = _places(below_keys, grams.ends)
    known = context >= 0
    totals = np.bincount(context[known], uses[known], minlength=len(below_keys))
    stays = known & (ending >= 0) & (grams.counts >= least)
    steps = discounts(uses)
    grams, uses, context, ending = grams.where(stays), uses[stays], context[stays], ending[stays]
    shares = (uses - steps[np.minimum(uses, 3)]) / totals[context]
    leave = np.maximum(1 - np.bincount(context, shares, minlength=len(below_keys)), 1e-12)
    return grams.keys, shares + leave[context] * below[ending], leave


def _adjusted(grams: Grams, longer: Grams) -> I64:
    """In how many different symbols' company an n-gram ends: its count for the order; what opens a text has none before it."""
    place = _places(grams.keys, longer.ends)
    before = np.bincount(place[place >= 0], minlength=len(grams.keys))
    return np.where(grams.opens, grams.counts, np.maximum(before, 1))


def _places(keys: U64, wanted: U64) -> I64:
    """The place of every wanted key among ascending keys, or -1."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _least(counted: list[Grams], most_grams: int) -> int:
    """The smallest count that an n-gram needs so that at most `most_grams` stay."""
    if sum(len(grams.keys) for grams in counted) <= most_grams:
        return 1
    counts = np.sort(np.concatenate([grams.counts for grams in counted]))
    return int(counts[len(counts) - most_grams - 1]) + 1 if most_grams < len(counts) else 1


def discounts(uses: I64) -> F64:
    """What is taken off a count of 0, 1, 2 and of 3 or more (Chen and Goodman 1998, equation 26)."""
    t1, t2, t3, t4 = (int((uses == k).sum()) for k in (1, 2, 3, 4))
    if min(t1, t2, t3) == 0:
        return np.array([0.0, *FALLBACK])
    share = t1 / (t1 + 2 * t2)
    found = np.array([0.0, 1 - 2 * share * t2 / t1, 2 - 3 * share * t3 / t2, 3 - 4 * share * t4 / t3])
    return found if (found[1:] > 0).all() and (found[1:] <= (1, 2, 3)).all() else np.array([0.0, *FALLBACK])
