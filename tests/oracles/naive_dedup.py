"""Deduplication as its definition reads, with sets, dictionaries and loops: units, shingles, Jaccard, components, copies."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import product

from kiloq.prepare.rules.text import UNSPACED


def folded(text: str) -> str:
    """Compatibility form without case, marks and characters that are not seen."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(character for character in text if unicodedata.category(character) not in ("Mn", "Me", "Cf"))


def units(text: str) -> list[str]:
    """Words, and characters of scripts without spaces."""
    found, word = [], ""
    for character in folded(text) + " ":
        letter = unicodedata.category(character)[0] not in "PZSC"
        alone = letter and UNSPACED.match(character)
        if letter and not alone:
            word += character
            continue
        found += [unit for unit in (word, character * bool(alone)) if unit]
        word = ""
    return found


def comparable(text: str) -> str:
    """What is left without punctuation, space and controls."""
    return "".join(character for character in folded(text) if unicodedata.category(character)[0] not in "PZC")


def shingles(text: str, size: int) -> set[tuple[str, ...]]:
    """Every `size` units in a row; all of them if there are fewer."""
    found = units(text)
    if len(found) < size:
        return {tuple(found)} if found else set()
    return {tuple(found[start : start + size]) for start in range(len(found) - size + 1)}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """Shared shingles as a share of all."""
    return len(one & other) / len(one | other) if one | other else 0.0


def components(edges: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Each node's smallest companion, by union-find."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        parent.setdefault(node, node)
        while parent[node] != node:
            node = parent[node]
        return node

    for left, right in edges:
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    return {node: root(node) for node in parent}


def meetings(rows: Iterable[tuple[int, int, int]]) -> set[tuple[int, int]]:
    """All pairs of documents that share a (band, bucket)."""
    held: dict[tuple[int, int], set[int]] = {}
    for band, bucket, doc in rows:
        held.setdefault((band, bucket), set()).add(doc)
    return {(left, right) for docs in held.values() for left, right in product(docs, docs) if left < right}


def copies(pieces: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, int]]:
    """(doc, place, kept) of each (doc, place, text) whose text came before, sorted."""
    first: dict[str, int] = {}
    lost = []
    for doc, place, text in sorted(pieces):
        key = comparable(text)
        if key in first:
            lost.append((doc, place, first[key]))
        elif key:
            first[key] = doc
    return lost
