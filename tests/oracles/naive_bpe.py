"""Byte-level BPE as its definition reads: split with the expression, then merge the lowest rank, leftmost first.

Two versions: by ranks (tiktoken's rule) and by a list of pairs (Hugging Face's and llama.cpp's rule). Quadratic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import regex


def by_ranks(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Ranks of the tokens of one piece; a piece that is a token is that token."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([value]) for value in piece]
    while True:
        options = [(ranks[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not options:
            return [ranks[part] for part in parts]
        at = min(options)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def by_merges(piece: bytes, merges: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Tokens of one piece when only the listed pairs merge, in the order of the list."""
    order = {pair: at for at, pair in enumerate(merges)}
    parts = [bytes([value]) for value in piece]
    while True:
        options = [(order[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in order]
        if not options:
            return parts
        at = min(options)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def encode(text: str, ranks: Mapping[bytes, int], expression: str) -> list[int]:
    """Ranks of a text."""
    return [rank for piece in regex.findall(expression, text) for rank in by_ranks(piece.encode(), ranks)]
