"""SentencePiece's BPE as its definition reads: merge the best pair of neighbours, leftmost first, until there is none.

Two versions: by score (SentencePiece's and llama.cpp's rule) and by a list of pairs (Hugging Face's). Quadratic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise


def by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """Parts of a spelled text; `scores` are those of the tokens that text can become."""
    parts = list(text)
    while True:
        options = [(-scores[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not options:
            return parts
        at = min(options)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def by_merges(text: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """Parts of a spelled text when only the listed pairs merge, in the order of the list."""
    order = {pair: at for at, pair in enumerate(merges)}
    parts = list(text)
    while True:
        options = [(order[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in order]
        if not options:
            return parts
        at = min(options)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def ids(parts: Sequence[str], id_of: Mapping[str, int]) -> list[int]:
    """Ids of parts; a character that is no token becomes its bytes."""
    found: list[int] = []
    for part in parts:
        found += [id_of[part]] if part in id_of else [id_of[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found
