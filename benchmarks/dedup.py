"""MinHash of kiloq and of its peers, side by side: speed, and which planted near copies become candidates.

    python -m venv ENV && ENV/bin/pip install -e '.[data]' -c constraints.txt
    ENV/bin/pip install -c constraints.txt gaoya==0.2.2 rensa==0.5.0 datasketch==2.0.0
    ENV/bin/python benchmarks/dedup.py          about five minutes; what is not installed is left out

All make 14 bands of 8 hashes of shingles of 5 words, in Chinese of 5 characters, from the same texts, on one core if
they can be told to; the figure is processor time, from texts in memory to keys in memory. Daft's function splits at
spaces and is of no use for Chinese. Recall is the share of pairs with a Jaccard similarity of at least 0.8 that become
candidates, precision the share of candidates with at least 0.5; both count exact similarities (tests/oracles).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # read when a package starts its threads

import numpy as np
import record
from planted_texts import SHINGLE, Corpus, Likeness, planted, similar_pairs

from kiloq.prepare.dedup.fuzzy import Fuzzy
from kiloq.prepare.dedup.lsh import chance
from kiloq.prepare.documents import batch_of

BANDS, ROWS = 14, 8
SIZES = {"en": 25_000_000, "zh": 8_000_000}  # bytes
BATCH = 1_000  # documents that kiloq gets at once
SEED = 1

Pair = tuple[int, int]


def pairs_of(keys: Iterable[Sequence[Any]]) -> set[Pair]:
    """Documents, given by their key for each band, that share one."""
    held: dict[Any, list[int]] = {}
    for document, row in enumerate(keys):
        for band, key in enumerate(row):
            held.setdefault((band, key), []).append(document)
    return {pair for documents in held.values() for pair in combinations(documents, 2)}


def banded(signatures: Any) -> list[list[bytes]]:
    """The bytes of every band of each row of hashes."""
    rows = np.asarray(signatures)
    size = rows.itemsize * ROWS
    return [[row[at : at + size] for at in range(0, size * BANDS, size)] for row in map(np.ndarray.tobytes, rows)]


def shingles(text: str, language: str) -> list[str]:
    """As their own documents show it: lower case, and units joined."""
    if language == "zh":
        return [text[at : at + SHINGLE] for at in range(len(text) - SHINGLE + 1)]
    words = text.lower().split()
    return [" ".join(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)]


def kiloq(texts: Sequence[str], language: str) -> Any:
    """Tables of keys of Arrow batches, which is what texts come in."""
    step = Fuzzy(bands=BANDS, rows=ROWS, words=SHINGLE, characters=SHINGLE)
    made = batches(tuple(texts))
    numbers = (np.arange(BATCH * at, BATCH * at + batch.num_rows, dtype=np.uint64) for at, batch in enumerate(made))
    return [step.keys(batch, docs) for batch, docs in zip(made, numbers, strict=True)]


@cache
def batches(texts: tuple[str, ...]) -> list[Any]:
    """The texts as Arrow holds them; made once, before anything is timed."""
    return [
        batch_of([{"text": text} for text in texts[start : start + BATCH]]) for start in range(0, len(texts), BATCH)
    ]


def kiloq_pairs(tables: Any, count: int) -> set[Pair]:
    """Candidates: documents that share a key."""
    keys: list[list[Any]] = [[None] * BANDS for _ in range(count)]
    for table in tables:
        for band, bucket, document in zip(*(column.to_pylist() for column in table.columns), strict=True):
            keys[document][band] = bucket
    return pairs_of(keys)


def gaoya(texts: Sequence[str], language: str) -> Any:
    """An index, which is made together with the keys."""
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(
        hash_size=64, jaccard_threshold=0.0, num_bands=BANDS, band_size=ROWS, lowercase=True,
        analyzer="char" if language == "zh" else "word", ngram_range=(SHINGLE, SHINGLE),
    )  # fmt: skip
    index.par_bulk_insert_docs(list(range(len(texts))), list(texts))
    return index, texts


def gaoya_pairs(made: Any, count: int) -> set[Pair]:
    """Candidates: what the index answers for each text."""
    index, texts = made
    return {
        (min(one, other), max(one, other))
        for one, text in enumerate(texts)
        for other in index.query(text)
        if one != other
    }


def rensa(texts: Sequence[str], language: str) -> Any:
    """Keys of R-MinHash digests of 32 bits; shingles are made in Python."""
    from rensa import RMinHash

    digests = RMinHash.digests_from_token_sets([shingles(text, language) for text in texts], BANDS * ROWS, SEED)
    return banded(np.array(digests, np.uint32))


def datasketch(texts: Sequence[str], language: str) -> Any:
    """Keys of numpy signatures; shingles are made in Python."""
    from datasketch import MinHash

    tokens = ([shingle.encode() for shingle in shingles(text, language)] for text in texts)
    return banded([made.hashvalues for made in MinHash.bulk(tokens, num_perm=BANDS * ROWS, seed=SEED)])


def daft(texts: Sequence[str], language: str) -> Any:
    """Keys of the function `minhash`, bands cut in Python."""
    os.environ["DAFT_ANALYTICS_ENABLED"] = os.environ["DAFT_PROGRESS_BAR"] = "0"
    import daft as package
    from daft.functions import minhash

    lower = package.col("text").lower()
    frame = package.from_pydict({"text": list(texts)})
    column = minhash(lower, num_hashes=BANDS * ROWS, ngram_size=SHINGLE, hash_function="xxhash")
    made = frame.select(column.alias("hashes")).to_arrow().column("hashes").combine_chunks()
    return banded(made.values.to_numpy().reshape(-1, BANDS * ROWS))


PEERS: dict[str, tuple[Callable[..., Any], Callable[..., set[Pair]]]] = {
    "kiloq": (kiloq, kiloq_pairs),
    "gaoya": (gaoya, gaoya_pairs),
    "rensa": (rensa, lambda keys, count: pairs_of(keys)),
    "datasketch": (datasketch, lambda keys, count: pairs_of(keys)),
    "daft": (daft, lambda keys, count: pairs_of(keys)),
}


def seconds(make: Callable[[], Any]) -> float:
    """Processor time of all threads."""
    start = time.process_time()
    make()
    return time.process_time() - start


def measured(corpus: Corpus, language: str) -> dict[str, Any]:
    """The figures of every peer that is installed."""
    found = {
        name: partial(make, corpus.texts, language)
        for name, (make, _) in PEERS.items()
        if importlib.util.find_spec(name) and not (name == "daft" and language == "zh")
    }
    times = record.interleaved({name: partial(seconds, make) for name, make in found.items()})
    likeness = Likeness(corpus.texts)
    wanted = similar_pairs(corpus, 0.8)
    figures: dict[str, Any] = {}
    for name, make in found.items():
        candidates = PEERS[name][1](make(), len(corpus.texts))
        took = times[name]["median"]
        figures[name] = {
            "documents_per_cpu_s": round(len(corpus.texts) / took),
            "mb_per_cpu_s": round(corpus.megabytes / took, 1),
            "recall": round(len(wanted & candidates) / len(wanted), 4),
            "precision": round(sum(likeness(pair) >= 0.5 for pair in candidates) / len(candidates), 4),
            "cpu_s": times[name],
        }
    theory = sum(chance(likeness(pair), BANDS, ROWS) for pair in wanted) / len(wanted)
    size = {"documents": len(corpus.texts), "mb": round(corpus.megabytes, 1), "pairs": len(wanted)}
    return {**size, "expected_recall": round(theory, 4), "peers": figures}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the texts; the figures say little")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    figures = {}
    for language, size in SIZES.items():
        figures[language] = measured(planted(language, size // 10 if options.quick else size), language)
        for name, figure in figures[language]["peers"].items():
            print(
                f"{language} {name:10} {figure['documents_per_cpu_s']:7,} documents/CPU-s"
                f"  {figure['mb_per_cpu_s']:6} MB/CPU-s  recall {figure['recall']:.3f}  precision {figure['precision']:.3f}"
            )
    print(record.write("dedup", figures, options.out))


if __name__ == "__main__":
    main()
