"""Loading 7 billion weights in 4 bits: seconds and peak memory, packed from the file and mapped from a file of packed weights.

    python benchmarks/loading.py            about three minutes; wants 9 GB of disk in --cache

The Qwen-7B shape with random integers (GGUF Q4_0). Every load is a process of its own that makes one token, so that
what was only promised is paid for. Packing must not take more than 1.15 times the packed weights. "warm" finds the
file in the system's page cache, as after any first use.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import record
import rounds
from ratios import Slice, summary

MOST_MEMORY = 1.15  # times the packed weights
CHILD = """
import json, re, sys, time
start = time.perf_counter()
import kiloq
model = kiloq.load(sys.argv[1], weights="auto", threads=2, packed=sys.argv[2] or None)
loaded = time.perf_counter()
model.generate([1, 2, 3], max_new_tokens=1, temperature=0)
end = time.perf_counter()
status = open("/proc/self/status").read()
kib = {name: int(re.search(name + r":\\s+(\\d+)", status)[1]) for name in ("VmHWM", "RssAnon", "RssFile")}
bytes_of = {"peak": kib["VmHWM"] << 10, "own": kib["RssAnon"] << 10, "mapped": kib["RssFile"] << 10}
print(json.dumps({"load_s": loaded - start, "first_token_s": end - loaded, "bytes": bytes_of}))
"""


def load(file: Path, packed: Path | None) -> dict[str, Any]:
    """One process: what loading and the first token took, and its memory at the end."""
    command = [sys.executable, "-c", CHILD, str(file), str(packed or "")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"loading {file} failed: {done.stderr[-500:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def packed_bytes(file: Path) -> int:
    """What the weights take when they are packed."""
    from kiloq import native
    from kiloq.convert.source import open_model
    from kiloq.generate import native_load

    source = open_model(file)
    return int(native_load.Packer(native.engine(), source, native_load.slots(source, "auto"), 1).total_bytes)


def measure(file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turns, after one of each has warmed the caches and written the packed file."""
    packed = options.cache / f"{file.stem}.packed"
    packed.unlink(missing_ok=True)
    ways: dict[str, Path | None] = {"packed from the model": None, "mapped": packed}
    first = {name: load(file, path) for name, path in ways.items()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, path in ways.items():
            runs[name].append(load(file, path))
    packed.unlink()
    return {
        name: {
            "load_s": summary([Slice(run["load_s"], True) for run in found]),
            "first_token_s": summary([Slice(run["first_token_s"], True) for run in found]),
            "bytes": max((run["bytes"] for run in found), key=lambda taken: int(taken["peak"])),
            "first_run": first[name],
        }
        for name, found in runs.items()
    }


def main() -> int:
    """Prints and keeps; exit code 1 where packing takes too much memory."""
    options = rounds.parse(rounds.parser(__doc__))
    model = "quick" if options.quick else "7b"
    file = models.model_file(model, "int4", options.cache)
    size = packed_bytes(file)
    figures = measure(file, options)
    for name, taken in figures.items():
        print(f"{name:24} load {taken['load_s']['median']:.2f} s, first token {taken['first_token_s']['median']:.2f} s, "
              f"peak {taken['bytes']['peak'] / 2**20:,.0f} MiB, of its own {taken['bytes']['own'] / 2**20:,.0f}")  # fmt: skip
    share = figures["packed from the model"]["bytes"]["peak"] / size
    print(f"packed weights: {size / 2**20:,.0f} MiB; peak {share:.3f} times that (at most {MOST_MEMORY})")
    result = {"model": file.name, "packed_bytes": size, "peak_over_packed": share, "ways": figures}
    print(record.write("loading", result, options.out))
    return int(share > MOST_MEMORY and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
