"""A search for the mix of the tiny corpus: what is proposed, whether the laws foresaw it, and whether it is better.

    python recipes/fetch.py recipes/tiny
    python benchmarks/mix_search.py                    a quarter of an hour on two cores
    python benchmarks/mix_search.py --found FOLDER     of a search that has been done

The corpus of recipes/tiny is prepared, a vocabulary of 4,096 tokens learned from it, and 38 models of 0.4 M parameters
are trained, each by `kiloq train`, on sampled mixtures; see kiloq/prepare/mix_search.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import record

from kiloq.prepare.mix_search.search import SURE

RECIPES = Path(__file__).parents[1] / "recipes" / "tiny"
KEPT = ("natural", "proposal", "loss_before", "loss_after", "held_out")


def searched(folder: Path) -> Path:
    """The folder of a whole search, from raw texts on."""
    corpus, words, shards, found = (folder / name for name in ("corpus", "words", "shards", "mix"))
    for arguments in (
        ["prepare", RECIPES / "prepare.toml", "--out", corpus],
        ["tokenize", "train", corpus, "--vocab-size", "4096", "--out", words],
        ["tokenize", "corpus", corpus, "--tokenizer", words, "--out", shards],
        ["prepare", "mix-search", shards, "--proxy", RECIPES / "proxy.toml", "--out", found],
    ):
        subprocess.run([sys.executable, "-m", "kiloq", *map(str, arguments)], check=True)
    return found


def figures_of(folder: Path) -> dict[str, Any]:
    """What of a search is worth keeping."""
    found = json.loads((folder / "search.json").read_text())
    targets = {name: [row["before"], row["after"], row["law"]["left_out"]] for name, row in found["targets"].items()}
    gains = [before - after for before, after in zip(found["loss_before"], found["loss_after"], strict=True)]
    error = stdev(gains) / len(gains) ** 0.5  # of each seed's own difference
    compared = {"gain": fmean(gains), "standard_error": error, "better": fmean(gains) > SURE * error}
    return (
        {name: found[name] for name in KEPT}
        | compared
        | {"target: loss before, after, error of a mixture left out": targets}
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--found", type=Path, help="the folder of a search")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = figures_of(options.found or searched(Path(scratch)))
    for name, figure in figures.items():
        print(f"{name:18} {figure}")
    print(record.write("mix-search", figures, options.out))


if __name__ == "__main__":
    main()
