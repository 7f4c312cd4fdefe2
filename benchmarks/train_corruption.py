"""Checkpoints that are damaged: whether every fault is refused before a weight is used, and the one before is taken.

    python benchmarks/train_corruption.py          1,000 faults, two minutes

A run of two processes leaves two checkpoints. The newer one is damaged once (a bit, a page of zeros, a cut, bytes that
were added, two files swapped, one deleted, one of the older checkpoint in its place, the manifest too), looked at as
`kiloq train` does when it begins, and restored. The program ends with 1 if a fault was not seen. Beside it, how fast a
checkpoint is looked through.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from train.damage import contents, fault, put
from train.runs import launch, make_corpus, recipe

from kiloq.train.checkpoint import newest_good
from kiloq.train.settings import Parallel, Shape

FAULTS, QUICK_FAULTS = 1_000, 50


def damaged(folder: Path, faults: int, order: random.Random) -> dict[str, Any]:
    """The figures of so many faults in the newer of two checkpoints."""
    older, newest = sorted(folder.glob("step-*"))
    files, other = contents(newest), contents(older)
    kinds, missed = Counter[str](), list[str]()
    for _ in range(faults):
        kind, change = fault(files, other, order)
        put(change)
        found, _ = newest_good(folder)
        if found != older:
            missed.append(f"{kind} of {', '.join(path.name for path in change)}")
        put({**dict.fromkeys(newest.iterdir()), **files})
        kinds[kind] += 1
    size = sum(map(len, files.values()))
    start = time.perf_counter()
    assert newest_good(folder)[0] == newest
    seconds = time.perf_counter() - start
    return {"faults": faults, "refused": faults - len(missed), "missed": missed, "kinds": dict(sorted(kinds.items())),
            "checkpoint_mb": round(size / 1e6, 2), "verified_mb_per_s": round(size / 1e6 / seconds, 1)}  # fmt: skip


def main() -> int:
    """The program; 1 if a fault was missed."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--faults", type=int, default=FAULTS)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help=f"{QUICK_FAULTS} faults, to see that it works")
    made.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus = make_corpus(Path(name) / "corpus")
        shape = Shape(hidden_size=128, num_layers=4, num_heads=4, ffn_size=512)
        launch(recipe(corpus, steps=4, model=shape, parallel=Parallel(shard=2)), Path(name) / "run", 2)
        faults = QUICK_FAULTS if options.quick else options.faults
        figures = damaged(Path(name) / "run" / "checkpoints", faults, random.Random(options.seed))
    for label, found in figures.items():
        print(f"{label:18} {found}")
    print(record.write("train-corruption", figures, options.out))
    return int(bool(figures["missed"]))


if __name__ == "__main__":
    sys.exit(main())
