"""Fuzzy deduplication of 4 million documents' keys, 56 million, in a process that may have 1.2 GB of memory.

    python benchmarks/shuffle.py          about two minutes and 1 GB of disk

Keys are made by formula and written as a run writes them, a Parquet file for each part and band. A child process groups
them band by band, writes the edges, and settles them. All its private writable memory is limited (RLIMIT_DATA, which is
stricter than resident memory), and Arrow takes it from the system, as its own pool reserves 1 GB at a time. Its time
and its peak resident memory are the figures, and its losers must be those of the formula. Every tenth group of four
documents holds near copies: the even ones agree in even bands, the odd ones in odd.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import record

from kiloq.prepare.dedup.fuzzy import KEYS, RANKS, Fuzzy
from kiloq.prepare.dedup.minhash import mix

DOCUMENTS, PART_ROWS, BANDS = 4_000_000, 100_000, 14
FAMILY, EVERY = 4, 10  # documents in a group, and which groups hold copies
LIMIT_MB = 1_200


def numbers(part: int, rows: int) -> Any:
    """The numbers of a part's documents, uint64."""
    return np.arange(rows, dtype=np.uint64) + np.uint64(part << 32)


def write_keys(folder: Path, documents: int) -> None:
    """Files keys-BAND-PART.parquet and ranks-PART.parquet."""
    for part, first in enumerate(range(0, documents, PART_ROWS)):
        each = np.arange(first, min(first + PART_ROWS, documents), dtype=np.uint64)
        docs, family = numbers(part, len(each)), each // np.uint64(FAMILY)
        for band in range(BANDS):
            shared = (family % np.uint64(EVERY) == 0) & ((each + np.uint64(band)) % np.uint64(2) == 0)
            origin = np.where(shared, family, each + np.uint64(1 << 40))
            buckets = mix(mix(origin) + np.uint64(band))
            table = pa.table([np.full(len(each), band, np.uint16), buckets, docs], schema=KEYS)
            pq.write_table(table, folder / f"keys-{band:02}-{part:03}.parquet")
        scores = pa.nulls(len(each), pa.float32())
        ranks = pa.table([docs, scores, (each % np.uint64(FAMILY)).astype(np.uint32)], schema=RANKS)
        pq.write_table(ranks, folder / f"ranks-{part:03}.parquet")


def deduplicate(folder: Path) -> dict[str, Any]:
    """What the child does: groups and settles. Returns counts, seconds and megabytes."""
    step = Fuzzy(bands=BANDS)
    start, before = time.perf_counter(), time.process_time()
    for band in range(BANDS):
        keys = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob(f"keys-{band:02}-*")))
        pq.write_table(step.group(keys), folder / f"edges-{band:02}.parquet")
        del keys
    grouped = time.perf_counter()
    edges, ranks = sorted(folder.glob("edges-*")), sorted(folder.glob("ranks-*"))
    settled = step.settle(map(pq.read_table, edges), map(pq.read_table, ranks))
    return {
        "group_s": grouped - start,
        "settle_s": time.perf_counter() - grouped,
        "cpu_s": time.process_time() - before,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losers": settled.losers.num_rows,
        "clusters": settled.clusters,
    }


def limited(folder: Path, limit_mb: int) -> dict[str, Any]:
    """`deduplicate` in a child with limited memory."""
    command = [sys.executable, __file__, "--child", folder, "--limit-mb", str(limit_mb)]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the keys and one round")
    parser.add_argument("--limit-mb", type=int, default=LIMIT_MB)
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        resource.setrlimit(resource.RLIMIT_DATA, (options.limit_mb << 20,) * 2)
        print(json.dumps(deduplicate(options.child)))
        return
    documents, rounds = (DOCUMENTS // 10, 1) if options.quick else (DOCUMENTS, record.ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        write_keys(Path(folder), documents)
        found = [limited(Path(folder), options.limit_mb) for _ in range(rounds)]
    families = -(-documents // (FAMILY * EVERY))
    assert all(each["losers"] == 2 * families and each["clusters"] == {"2": 2 * families} for each in found)
    figures = {"documents": documents, "keys": documents * BANDS, "limit_mb": options.limit_mb, "losers": 2 * families}
    for name in ("group_s", "settle_s", "cpu_s", "peak_mb"):
        values = [each[name] for each in found]
        figures[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        print(f"{name:9} {figures[name]['median']:9.1f}")
    print(record.write("shuffle", figures, options.out))


if __name__ == "__main__":
    main()
