"""Units, grams and classifier features with strings, loops and Python's whole numbers: the oracle of the array code."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

from kiloq.prepare.rules.text import UNSPACED

BASE = 0x9E3779B97F4A7C15
ALL = (1 << 64) - 1

Unit = tuple[int, int, str, int]  # start, end, what it says, its weight in characters of unspaced scripts


def fold(character: str) -> str:
    """One character without case and compatibility form, where that is one character."""
    plain = unicodedata.normalize("NFKC", character).lower() if ord(character) < 0x30000 else character
    return plain if len(plain) == 1 else character


def units(text: str) -> list[Unit]:
    """Words, and single characters of unspaced scripts."""
    found: list[Unit] = []
    inside = False
    for place, character in enumerate(map(fold, text)):
        if UNSPACED.match(character):
            found.append((place, place + 1, character, 1))
            inside = False
        elif character.isalnum() or unicodedata.category(character)[0] == "M":
            start, _, said, _ = found.pop() if inside else (place, place, "", 2)
            found.append((start, place + 1, said + character, 2))
            inside = True
        else:
            inside = False
    return found


def runs(found: list[Unit], weight: int, *, exact: bool = False) -> dict[tuple[int, int], tuple[str, ...]]:
    """The shortest run from every unit that weighs `weight`: by its place in the text, what it says."""
    made = {}
    for first in range(len(found)):
        total = 0
        for last in range(first, len(found)):
            total += found[last][3]
            if total >= weight:
                if total == weight or not exact:
                    said = tuple(unit[2] for unit in found[first : last + 1])
                    made[found[first][0], found[last][1]] = said
                break
    return made


def key(values: list[int]) -> int:
    """The hash of a run of numbers: a polynomial, then splitmix64."""
    value = sum((number + 1) * pow(BASE, place, 1 << 64) for place, number in enumerate(values)) & ALL
    return spread(value)


def spread(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & ALL
    return value ^ (value >> 31)


def features(text: str, bits: int, words: int, chars: int) -> dict[int, float]:
    """The values of the buckets of a text: square roots of counts, of length one together."""
    codes = [ord(fold(character)) for character in text]
    said = [key([ord(character) for character in unit[2]]) for unit in units(text)]
    hashes = [
        (key(said[at : at + n]) + n) & ALL for n in range(1, words + 1) for at in range(len(said) - n + 1)
    ]  # fmt: skip
    hashes += [key(codes[at : at + chars]) for at in range(len(codes) - chars + 1)] if chars else []
    counts = Counter(spread(value) >> (64 - bits) for value in hashes)
    return {bucket: math.sqrt(count / len(hashes)) for bucket, count in counts.items()}
