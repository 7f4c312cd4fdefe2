"""Real texts and near copies of them, made with a seed: what the tests of fuzzy deduplication search for."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence

import zstandard
from support import shared

ENGLISH_FILES = ("en_moby_dick", "en_pride_and_prejudice")


def novels() -> str:
    """English prose."""
    return "\n".join(_text("long_documents", f"{name}.txt.zst") for name in ENGLISH_FILES)


def wikipedia() -> str:
    """Chinese prose, in simplified and traditional characters."""
    rows = [json.loads(line) for name in ("cmrc2018_dev", "drcd_dev") for line in _lines(name)]
    return "\n".join(row["context"] for row in rows)


def _lines(name: str) -> list[str]:
    return _text("zh_wikipedia", f"{name}.jsonl.zst").splitlines()


def _text(*parts: str) -> str:
    packed = shared("data", *parts).read_bytes()
    return io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed), encoding="utf-8").read()


def pieces(text: str, least: int, most: int, count: int, rng: random.Random) -> list[str]:
    """`count` stretches of least to most characters, none of which overlap."""
    found = []
    start = 0
    while start < len(text):
        size = rng.randint(least, most)
        found.append(text[start : start + size])
        start += size
    return rng.sample(found, count)


def near_copy(text: str, units: Sequence[str], joint: str, rate: float, rng: random.Random) -> str:
    """`text` with a share `rate` of its units deleted, replaced or followed by another."""
    made = []
    for unit in text.split(" ") if joint else text:
        fate = rng.random() / rate
        if fate >= 1 / 3:
            made.append(unit if fate >= 2 / 3 else rng.choice(units))
        if 2 / 3 <= fate < 1:
            made.append(rng.choice(units))
    return joint.join(made)


def pairs(chinese: bool, count: int, least: int, most: int, seed: int) -> list[tuple[str, str]]:
    """Texts with near copies of Jaccard similarities from about .4 to 1."""
    rng = random.Random(seed)
    text = wikipedia() if chinese else novels()
    joint = "" if chinese else " "
    units = list(text[:10_000]) if chinese else text[:10_000].split()
    originals = pieces(text, least, most, count, rng)
    return [(one, near_copy(one, units, joint, rng.uniform(0.0001, 0.12), rng)) for one in originals]
