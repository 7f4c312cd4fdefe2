"""Time, memory and disk of a whole preparation and encoding for 1, 2, 4 and 8 times the data, on this machine.

    python recipes/fetch.py recipes/small
    python benchmarks/prepare_scaling.py          about eight minutes; wants the machine for itself

The data are files of the small recipe's sources in an order that their names' hashes give, as many as fill each size,
so that every size has the same mixture; every twentieth comes twice, changed by a sentence, for near copies to be
found. Each size goes through the small recipe and then through `kiloq tokenize corpus`. The figures are seconds per MB
over those of the smallest size, which start-up makes the dearest, and a straight line through all sizes: what starting
costs, what a MB costs, and how far the worst size lies off it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import record
from watched import Watched, watch

from kiloq.core.work import WorkFolder
from kiloq.prepare.pipeline.recipe import read_recipe
from kiloq.prepare.readers.plan import list_files
from kiloq.prepare.readers.source import Source

RECIPE = Path(__file__).parents[1] / "recipes" / "small" / "prepare.toml"
SIZES_MB, QUICK_MB = (25, 50, 100, 200), (2, 4)
ROUNDS = 3  # ours: a round takes minutes
WORKERS = 2
PIECE_MB = 4  # so that the smallest size has work for all workers in every pass
COPY_EVERY = 20
CHANGE = "Copy {number} of this page differs from its model by this sentence alone, for somebody to find."
TOLERATED = 0.2  # a size may lie so far off the line, and a MB cost so much more than in the smallest; our goal


@cache
def listed() -> list[tuple[Source, list[tuple[Path, str]], int]]:
    """The small recipe's sources, each with (folder, name) of its files by the hash of the name, and their bytes."""
    found = []
    for source in read_recipe(RECIPE).source:
        root, names = list_files(source)
        names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        found.append((source, [(root, name) for name in names], sum((root / name).stat().st_size for name in names)))
    return found


def share(files: list[tuple[Path, str]], size: int) -> Iterator[tuple[str, bytes]]:
    """The first files, `size` bytes in all; a file of lines is cut, for it may be larger than that."""
    for root, name in files:
        if size <= 0:
            return
        data = (root / name).read_bytes()
        if name.endswith(".jsonl") and len(data) > size:
            data = data[: data.find(b"\n", size) + 1]
        size -= len(data)
        yield name, data


def changed(name: str, data: bytes, number: int) -> bytes:
    """A near copy: one sentence more."""
    sentence = CHANGE.format(number=number).encode()
    if name.endswith(".py"):
        return data + b"\n# " + sentence + b"\n"
    return data.replace(b"</body>", b"<p>" + sentence + b"</p></body>")


def build(folder: Path, megabytes: int) -> int:
    """The sources of the small recipe in little, below `folder` as the recipe names them. Returns their bytes."""
    everything, total = sum(size for _, _, size in listed()), 0
    for source, files, size in listed():
        target = folder / Path(source.path).relative_to(RECIPE.parent)
        for at, (name, data) in enumerate(share(files, megabytes * 1_000_000 * size // everything)):
            copies = {name: data}
            if at % COPY_EVERY == 0 and not name.endswith(".jsonl"):
                copies[str(Path(name).with_stem(Path(name).stem + "-copy"))] = changed(name, data, at)
            for path, content in copies.items():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                (target / path).write_bytes(content)
                total += len(content)
    shutil.copy(RECIPE, folder)
    return total


def run(folder: Path) -> tuple[dict[str, Any], Watched, Watched]:
    """The funnel, and what was seen of both commands; their results are removed again."""
    out, shards = folder / "prepared", folder / "shards"
    work = WorkFolder.beside(out, "preparing").folder
    kiloq = [sys.executable, "-m", "kiloq"]
    command = [*kiloq, "prepare", str(folder / RECIPE.name), "--out", str(out), "--workers", str(WORKERS), "--json"]
    prepared = watch([*command, "--set", f"piece_mb={PIECE_MB}"], work)
    encoded = watch(
        [*kiloq, "tokenize", "corpus", str(out), "--out", str(shards), "--processes", str(WORKERS), "--json"], shards
    )
    for path in (out, shards):
        shutil.rmtree(path)
    return json.loads(prepared.stdout), prepared, encoded


def size_figures(read: int, runs: list[tuple[dict[str, Any], Watched, Watched]]) -> dict[str, Any]:
    """The medians of one size over rounds; stages are those of the round with the median wall time."""
    funnel, _, _ = runs[0]
    assert all(other == funnel for other, _, _ in runs), "the same input gave another funnel"
    middle = sorted(runs, key=lambda one: one[1].wall_s)[len(runs) // 2]
    seen = middle[1]
    figures: dict[str, Any] = {
        "input_mb": round(read / 1e6, 2),
        "documents": funnel["documents"],
        "kept_mb": round(funnel["steps"][-1]["bytes_out"] / 1e6, 2),
        "extracted_mb": round(funnel["steps"][1]["bytes_out"] / 1e6, 2),
        "keys": {step["step"]: step["keys"] for step in funnel["steps"] if "keys" in step},
        "keys_mb": {name: round(size / 1e6, 3) for name, size in sorted(seen.sizes.items()) if name.endswith("/keys")},
        "peak_folder_mb": round(seen.peak_folder_mb, 1),
        "stages": seen.between(),
        "tokens": json.loads(middle[2].stdout)["tokens"],
    }
    for at, name in ((1, "prepare"), (2, "encode")):
        for what in ("wall_s", "cpu_s", "peak_pss_mb"):
            figures[f"{name}_{what}"] = round(median(getattr(one[at], what) for one in runs), 2)
    return figures


def growth(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds per MB over those of the smallest size, and the line start + slope * MB of least relative errors squared."""
    found: dict[str, Any] = {}
    megabytes = np.array([size["input_mb"] for size in sizes])
    for name in ("prepare_wall_s", "prepare_cpu_s", "encode_wall_s", "encode_cpu_s"):
        taken = np.array([size[name] for size in sizes])
        rates = taken / megabytes
        slope, start = np.polyfit(megabytes, taken, 1, w=1 / taken)
        line = start + slope * megabytes
        found[name] = {
            "per_mb": [round(float(rate), 4) for rate in rates],
            "over_smallest": [round(float(rate / rates[0]), 3) for rate in rates],
            "start_s": round(float(start), 2),
            "s_per_mb": round(float(slope), 4),
            "off_the_line": round(float(np.abs(taken / line - 1).max()), 3),
        }
    found["prepare_peak_over_smallest"] = round(sizes[-1]["prepare_peak_pss_mb"] / sizes[0]["prepare_peak_pss_mb"], 3)
    walls = [found[name] for name in found if name.endswith("wall_s")]
    found["within"] = TOLERATED
    found["linear"] = all(
        one["off_the_line"] <= TOLERATED and max(one["over_smallest"]) <= 1 + TOLERATED for one in walls
    )
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a few MB; the figures say little")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    wanted, rounds = (QUICK_MB, 1) if options.quick else (SIZES_MB, options.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        read: dict[int, int] = {}
        runs: dict[int, list[tuple[dict[str, Any], Watched, Watched]]] = {size: [] for size in wanted}
        for size in wanted:
            read[size] = build(Path(scratch, str(size)), size)
        for _ in range(rounds):
            for size in wanted:
                runs[size].append(run(Path(scratch, str(size))))
    sizes = [size_figures(read[size], runs[size]) for size in wanted]
    grown = growth(sizes)
    figures = {"workers": WORKERS, "piece_mb": PIECE_MB, "rounds": rounds, "sizes": sizes, "growth": grown}
    for one in sizes:
        print(
            f"{one['input_mb']:7.1f} MB  {one['documents']['read']:7,} documents  prepare {one['prepare_wall_s']:6.1f} s, CPU "
            f"{one['prepare_cpu_s']:6.1f} s, {one['prepare_peak_pss_mb']:6.0f} MB  encode {one['encode_wall_s']:5.1f} s  "
            f"disk {one['peak_folder_mb']:6.1f} MB  keys {one['keys_mb']}"
        )
    for name, found in grown.items():
        print(name, found)
    print(record.write("prepare-scaling", figures, options.out))


if __name__ == "__main__":
    main()
