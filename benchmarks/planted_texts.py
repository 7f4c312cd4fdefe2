"""Texts with planted near copies, cut from the novels, speeches and encyclopaedia pages of the shared folder.

The copies lose, change or gain a share of their words (Chinese: characters) that is drawn from RATES, so that Jaccard
similarities spread from about one half to one; what pairs are how similar is then computed, not assumed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from oracles.naive_dedup import jaccard, shingles

DATA = Path(__file__).parents[2] / "shared" / "data"
RATES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05)
LENGTHS = {"en": (1_500, 7_000), "zh": (200, 900)}  # characters; ours, about the mean of web pages in either language
FILES = {
    "en": ("long_documents/en_moby_dick.txt", "long_documents/en_pride_and_prejudice.txt",
           "long_documents/en_war_and_peace.txt", "long_documents/state_of_the_union.jsonl",
           "pretrain_text/wikitext2_test.txt", "pretrain_text/wikitext2_valid.txt", "pretrain_text/wiki_demo.txt"),
    "zh": ("long_documents/zh_honglou_meng.txt", "long_documents/zh_sanguo_yanyi.txt",
           "long_documents/zh_shuihu_zhuan.txt"),
}  # fmt: skip
SHINGLE = 5


class Corpus(NamedTuple):
    """Texts, and for each the number of the text that it was made from, its own if it is an original."""

    texts: list[str]
    origins: list[int]

    @property
    def megabytes(self) -> float:
        return sum(len(text.encode()) for text in self.texts) / 1e6


def planted(language: str, size: int, seed: int = 1) -> Corpus:
    """Originals, at most all that there are and half of the corpus, and copies up to `size` bytes."""
    rng = random.Random(seed)
    originals = _cut(language, rng)
    rng.shuffle(originals)
    texts, left = [], size
    while originals and left > size / 2:
        texts.append(originals.pop())
        left -= len(texts[-1].encode())
    origins = list(range(len(texts)))
    count = len(texts)
    while left > 0:
        origin = rng.randrange(count)
        texts.append(_near_copy(texts[origin], language, rng.choice(RATES), rng))
        origins.append(origin)
        left -= len(texts[-1].encode())
    return Corpus(texts, origins)


def similar_pairs(corpus: Corpus, least: float) -> set[tuple[int, int]]:
    """Pairs of one origin with at least this Jaccard similarity."""
    families: dict[int, list[int]] = {}
    for text, origin in enumerate(corpus.origins):
        families.setdefault(origin, []).append(text)
    likeness = Likeness(corpus.texts)
    return {pair for family in families.values() for pair in combinations(family, 2) if likeness(pair) >= least}


class Likeness:
    """Exact Jaccard similarity of two of the texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._known: dict[int, set[tuple[str, ...]]] = {}

    def __call__(self, pair: tuple[int, int]) -> float:
        return jaccard(*(self._shingles(text) for text in pair))

    def _shingles(self, text: int) -> set[tuple[str, ...]]:
        if text not in self._known:
            self._known[text] = shingles(self._texts[text], SHINGLE)
        return self._known[text]


def _sources(language: str) -> Iterator[str]:
    for name in FILES[language]:
        packed = DATA / f"{name}.zst"
        if not packed.exists():
            raise SystemExit(f"{packed} is not there: put the shared folder beside the repository")
        text = subprocess.run(["zstd", "-dc", packed], capture_output=True, check=True).stdout.decode()
        yield from [json.loads(line)["text"] for line in text.splitlines()] if name.endswith("jsonl") else [text]


def _cut(language: str, rng: random.Random) -> list[str]:
    pieces = []
    for text in _sources(language):
        start = 0
        while start < len(text):
            size = rng.randint(*LENGTHS[language])
            pieces.append(text[start : start + size])
            start += size
    return pieces


def _near_copy(text: str, language: str, rate: float, rng: random.Random) -> str:
    units = list(text) if language == "zh" else text.split(" ")
    made = []
    for unit in units:
        fate = rng.random() / rate
        if fate >= 1 / 3:
            made.append(unit if fate >= 2 / 3 else rng.choice(units))
        if 2 / 3 <= fate < 1:
            made.append(rng.choice(units))
    return ("" if language == "zh" else " ").join(made)
