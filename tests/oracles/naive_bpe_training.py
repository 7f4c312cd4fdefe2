"""BPE training as its definition reads: encode every piece anew, count all pairs, add the most frequent one, repeat.

Ties go to the smaller left id, then the smaller right id. Cubic, so for small texts only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from oracles import naive_bpe


def train(counts: Mapping[bytes, int], size: int, start: Mapping[bytes, int] | None = None) -> dict[bytes, int]:
    """Ranks of `size` tokens, or of as many as there are pairs for."""
    ranks = dict(start or {bytes([value]): value for value in range(256)})
    bytes_of = {rank: token for token, rank in ranks.items()}
    while len(ranks) < size:
        pairs: Counter[tuple[int, int]] = Counter()
        for piece, count in counts.items():
            for pair in pairwise(naive_bpe.by_ranks(piece, ranks)):
                pairs[pair] += count
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        bytes_of[len(ranks)] = bytes_of[left] + bytes_of[right]
        ranks[bytes_of[len(ranks)]] = len(ranks)
    return ranks
