"""Time of a token and memory from 1,024 to 32,768 tokens of context: full attention beside windows on every layer.

    python benchmarks/long_context.py                about five minutes; wants the machine for itself
    python benchmarks/long_context.py --kv bf16      longer: prompts of that length cost mostly attention

The default model reads WikiText-2, its configuration changed to that length and to the windows. Each of the two has a
process of its own, so that its resident memory says something; they are timed in turns at every length, beside the
read bandwidth. Full attention must grow by as much for every token, windows must stay flat. The model was trained on
8,192 tokens: beyond, this measures speed and memory and not what it answers. Beside the JSON file lies a plot.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import chart
import models
import numpy as np
import record
import rounds
from bandwidth import gigabytes_per_second
from peers import THREADS, KiloqSequences, random_ids
from ratios import median, summary
from worker import step_rate

from kiloq import native
from kiloq.convert.source import open_model
from kiloq.generate import native_load
from kiloq.generate.load import CACHE_LIMIT_BYTES
from kiloq.generate.native_backend import NativeBackend
from kiloq.tokenize.tokenizer import Tokenizer

LENGTHS, QUICK_LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768), (128, 512)
WINDOW, QUICK_WINDOW = 1024, 64


class Reader:
    """A model in a process of its own that reads one long text."""

    def __init__(self, file: Path, kv: str, length: int, window: int | None) -> None:
        source = open_model(file)
        windows = (window,) * source.config.num_layers if window else ()
        source.config = source.config.replace(max_length=length, windows=windows)
        plan = native_load.slots(source, "auto")
        decoder = native_load.decoder(
            native.engine(),
            source,
            plan,
            kv=kv,
            threads=THREADS,
            cache_bytes=CACHE_LIMIT_BYTES,
            tell=lambda share: None,
        )
        dtype = plan["layers.0.mlp.down_proj.weight"].format
        self._backend = NativeBackend(decoder, source.config, dtype=dtype, kv=kv, threads=THREADS)
        self._sequence = self._backend.open()

    def read(self, ids: list[int]) -> dict[str, int]:
        """Appends tokens; bytes of the cache and of resident memory after that."""
        rounds.read(self._backend, self._sequence, ids)
        status = Path("/proc/self/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert resident
        return {"cache_bytes": rounds.cache_bytes(self._backend), "resident_bytes": int(resident[1]) * 1024}

    def step_rate(self, slice_s: float) -> float:
        """Tokens per second behind what has been read."""
        sequences = KiloqSequences(self._backend, [self._sequence])
        return step_rate(sequences, random_ids(1, self._backend.config.vocab_size), slice_s)


class Processes(BaseManager):
    """Makes Readers in the process that it starts, and passes calls on."""


Processes.register("Reader", Reader)


def started(*arguments: Any) -> Any:
    """A Reader in a new process, which lives as long as the manager beside it."""
    manager = Processes(ctx=get_context("spawn"))
    manager.start()
    return manager, manager.Reader(*arguments)  # type: ignore[attr-defined]


def measure(
    options: argparse.Namespace, readers: dict[str, Any], ids: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """What every reader takes at every length."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in readers}
    weights = models.weight_bytes_per_token(models.model_file("default", "int4", options.cache))
    have = 0
    for length in QUICK_LENGTHS if options.quick else LENGTHS:
        memory = {name: reader.read(list(ids[have:length])) for name, reader in readers.items()}
        have = length
        size = {name: weights + taken["cache_bytes"] for name, taken in memory.items()}
        turns: dict[str, Callable[[], float]] = {
            name: partial(reader.step_rate, options.slice_s) for name, reader in readers.items()
        }
        limits = {f"reading, {name}": partial(gigabytes_per_second, size[name], options.cache) for name in readers}
        turns |= limits
        slices = rounds.timed(turns, options)
        for name in readers:
            rate, limit = median(slices[name]), median(slices[f"reading, {name}"]) * 1e9 / size[name]
            rows[name].append({"length": length, "seconds_per_token": 1 / rate, "share_of_bandwidth": rate / limit,
                               "tokens_per_s": summary(slices[name]), **memory[name]})  # fmt: skip
            print(line(name, rows[name][-1]), flush=True)
    return rows


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"{name:24}{row['length']:>8,}{1e3 * row['seconds_per_token']:>10.3f} ms{row['share_of_bandwidth']:>8.0%}"
        f"{row['cache_bytes'] / 2**20:>10.1f}{row['resident_bytes'] / 2**20:>10.1f}"
    )


def growth(rows: list[dict[str, Any]], name: str, window: int) -> dict[str, float]:
    """Of a column over the lengths from the window on: a straight line, what it leaves over, and last over first."""
    kept = [row for row in rows if row["length"] >= window]
    x, y = (np.array([row[key] for row in kept], np.float64) for key in ("length", name))
    slope, start = np.polyfit(x, y, 1)
    left = np.abs(slope * x + start - y).max() / y.max()
    return {
        "slope": float(slope),
        "at_0": float(start),
        "largest_residue": float(left),
        "last_over_first": float(y[-1] / y[0]),
    }


def picture(rows: dict[str, list[dict[str, Any]]], kv: str) -> str:
    """Both columns over the length."""
    columns = (("seconds_per_token", 1e3, "Time per token", "ms"), ("cache_bytes", 2**-20, f"{kv} cache", "MiB"),
               ("resident_bytes", 2**-20, "Resident memory", "MiB"))  # fmt: skip
    return chart.page([
        chart.line_chart(title, "tokens of context", unit,
                         {name: [(row["length"], factor * row[key]) for row in lines] for name, lines in rows.items()})
        for key, factor, title, unit in columns
    ])  # fmt: skip


def main() -> None:
    """Measures, prints, keeps figures and plot."""
    parser = rounds.parser(__doc__)
    parser.add_argument("--kv", choices=("bf16", "int8"), default="int8")
    options = rounds.parse(parser)
    length, window = (QUICK_LENGTHS[-1], QUICK_WINDOW) if options.quick else (LENGTHS[-1], WINDOW)
    file = models.model_file("default", "int4", options.cache)
    ids = Tokenizer.load(file).encode(rounds.text_of("test"))
    print(f"{'attention':24}{'context':>8}{'token':>13}{'of limit':>8}{'cache MiB':>10}{'RSS MiB':>10}")
    kinds = {"full": None, f"windows of {window:,}": window}
    pairs = {name: started(file, options.kv, length, size) for name, size in kinds.items()}
    try:
        rows = measure(options, {name: reader for name, (_, reader) in pairs.items()}, ids)
    finally:
        for manager, _ in pairs.values():
            manager.shutdown()
    fits = {name: {key: growth(lines, key, window) for key in ("seconds_per_token", "cache_bytes", "resident_bytes")}
            for name, lines in rows.items()}  # fmt: skip
    for name, fit in fits.items():
        for key, values in fit.items():
            print(f"{name:24}{key:18} x{values['last_over_first']:.2f} from {window:,} to {length:,}; off a straight line by {values['largest_residue']:.0%}")  # fmt: skip
    figures = {"model": file.name, "kv": options.kv, "window": window, "rows": rows, "growth": fits}
    path = record.write("long-context", figures, options.out)
    path.with_suffix(".svg").write_text(picture(rows, options.kv))
    print(path, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
