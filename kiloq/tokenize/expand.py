"""Vocabulary expansion: new tokens for frequent words, merged on top of an existing vocabulary.

The algorithm of the original's examples/add_merges.py, so that its output is reproduced byte for byte: a word that
the split pattern cuts into several pieces, or that is a token already, is left out; the rest are encoded with the
merges there are; then, as in BPE training, the most frequent pair of neighbours becomes a token until every word is
one. Ties go to the pair with the shorter text, then the shorter bytes, then the lexicographically smaller.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

from kiloq.core.errors import FormatError
from kiloq.core.files import read_bounded, shown
from kiloq.tokenize.bpe import ByteBPE
from kiloq.tokenize.vocabulary import Vocabulary

MAX_FILE_BYTES = 64 << 20  # ours

Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Expansion:
    """New tokens with their ids, and the words that were left out with the reason."""

    tokens: dict[bytes, int]
    skipped: dict[str, str]


def read_words(path: Path) -> dict[str, int]:
    """Words (in NFC) and frequencies of lines of word TAB frequency; of several lines for a word the last counts."""
    try:
        lines = read_bounded(path, MAX_FILE_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 at byte {error.start:,}") from None
    words: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, tab, frequency = line.rstrip("\r").rpartition("\t")
        if not tab or not word or not frequency.strip().isdecimal() or len(frequency) > 18:
            raise FormatError(f"{path}: line {number} ({shown(line, 40)}) is not a word, a tab and a frequency")
        words[unicodedata.normalize("NFC", word)] = int(frequency)
    return words


def expand(vocabulary: Vocabulary, words: Mapping[str, int], start_id: int) -> Expansion:
    """Tokens that make each of `words` one token of `vocabulary`, with ids from `start_id` on."""
    bpe = ByteBPE(vocabulary.ranks, vocabulary.pattern)
    token_of_rank = {rank: token for token, rank in vocabulary.ranks.items()}
    skipped: dict[str, str] = {}
    parts: dict[str, list[bytes]] = {}
    for word in words:
        if bpe.pieces(word) != 1:
            skipped[word] = f"the pre-tokeniser cuts it into {bpe.pieces(word)} pieces"
        elif word.encode() in vocabulary.ranks:
            skipped[word] = "it is a token already"
        else:
            parts[word] = [token_of_rank[rank] for rank in bpe.encode(word)]
    new = dict.fromkeys(_merge(parts, words))
    return Expansion({token: start_id + at for at, token in enumerate(new)}, skipped)


def _merge(parts: dict[str, list[bytes]], frequency: Mapping[str, int]) -> Iterator[bytes]:
    """Merge the best pair of neighbours in all words until none is left; yield what each merge makes."""
    counts: Counter[Pair] = Counter()
    words_of: defaultdict[Pair, set[str]] = defaultdict(set)
    for word, tokens in parts.items():
        _count(tokens, frequency[word], counts)
        for pair in pairwise(tokens):
            words_of[pair].add(word)
    queue = [(_order(pair, count), pair) for pair, count in counts.items()]
    heapify(queue)
    while queue:
        order, best = heappop(queue)
        if not words_of[best] or order != _order(best, counts[best]):
            continue  # its count has changed since; an entry with the new one is in the queue
        yield best[0] + best[1]
        changed: set[Pair] = set()
        for word in sorted(words_of[best]):
            before = parts[word]
            parts[word] = after = _joined(before, best)
            _count(before, -frequency[word], counts)
            _count(after, frequency[word], counts)
            gone, there = set(pairwise(before)), set(pairwise(after))
            for pair in gone - there:
                words_of[pair].discard(word)
            for pair in there:
                words_of[pair].add(word)
            changed |= gone | there
        for pair in changed:
            if words_of[pair]:
                heappush(queue, (_order(pair, counts[pair]), pair))


def _count(tokens: list[bytes], times: int, counts: Counter[Pair]) -> None:
    for pair in pairwise(tokens):
        counts[pair] += times


def _order(pair: Pair, count: int) -> tuple[int, int, int, bytes]:
    merged = pair[0] + pair[1]
    return -count, len(merged.decode("utf-8", "replace")), len(merged), merged


def _joined(tokens: list[bytes], pair: Pair) -> list[bytes]:
    """`tokens` with every occurrence of `pair` merged, from the left."""
    merged: list[bytes] = []
    at = 0
    while at < len(tokens):
        if tuple(tokens[at : at + 2]) == pair:
            merged.append(pair[0] + pair[1])
            at += 2
        else:
            merged.append(tokens[at])
            at += 1
    return merged
