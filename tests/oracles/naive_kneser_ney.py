"""Modified Kneser-Ney smoothing in dictionaries and recursion, as the papers write it: the oracle of kiloq.prepare.models.

Chen and Goodman 1998, section 4.1.6; counts below the highest order are adjusted as in Heafield et al. 2013, section 3.
No hashing, no back-off form, no arrays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache

START = 0
Gram = tuple[int, ...]


def smoothed(texts: Sequence[Sequence[int]], order: int, symbols: int, most_grams: int) -> Callable[[Gram, int], float]:
    """p(context, symbol) of the model of `texts`; START goes before each, and 1 to `symbols` - 1 can be predicted."""
    raw: Counter[Gram] = Counter()
    for text in texts:
        row = (START, *text)
        raw.update(row[at : at + n] for n in range(1, order + 1) for at in range(len(row) - n + 1))
    adjusted: dict[Gram, int] = {}
    companies: defaultdict[Gram, set[int]] = defaultdict(set)
    for gram in raw:
        companies[gram[1:]].add(gram[0])
    for gram, count in raw.items():
        whole = len(gram) == order or gram[0] == START
        adjusted[gram] = count if whole else len(companies[gram])
    adjusted[(START,)] = 0
    least = 1
    while sum(1 for gram, count in raw.items() if len(gram) > 1 and count >= least) > most_grams:
        least += 1
    discounts = [_discounts([a for gram, a in adjusted.items() if len(gram) == n]) for n in range(1, order + 1)]
    extensions: defaultdict[Gram, list[Gram]] = defaultdict(list)
    for gram in raw:
        extensions[gram[:-1]].append(gram)

    def share(gram: Gram) -> float:
        if gram not in raw or (len(gram) > 1 and raw[gram] < least):
            return 0.0
        total = sum(adjusted[one] for one in extensions[gram[:-1]])
        return (adjusted[gram] - discounts[len(gram) - 1][min(adjusted[gram], 3)]) / total

    @cache
    def left(context: Gram) -> float:
        return 1 - sum(share(gram) for gram in extensions[context])

    def chance(context: Gram, symbol: int) -> float:
        shorter = chance(context[1:], symbol) if context else 1 / (symbols - 1)
        return share((*context, symbol)) + left(context) * shorter

    return lambda context, symbol: chance(context[max(0, len(context) - order + 1) :], symbol)


def _discounts(counts: Sequence[int]) -> tuple[float, float, float, float]:
    t1, t2, t3, t4 = (sum(1 for count in counts if count == k) for k in (1, 2, 3, 4))
    if 0 in (t1, t2, t3):
        return 0.0, 0.5, 1.0, 1.5
    y = t1 / (t1 + 2 * t2)
    found = (0.0, 1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3)
    return found if all(0 < d <= k for k, d in enumerate(found) if k) else (0.0, 0.5, 1.0, 1.5)
