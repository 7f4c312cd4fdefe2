"""What an 8-bit key/value cache gains and costs against bf16: memory and speed by batch and length, and perplexity.

    python benchmarks/kv_cache.py                     about seven minutes; wants the machine for itself
    python benchmarks/kv_cache.py --minutes 40        with 16 streams of 16,384 tokens, which fill slowly

The default model. Memory is what the cache's blocks really take, speed is that of all streams together with the logits
of each. Every stream has a cache of its own, filled by reading, because streams that share one would be faster.
Perplexity is taken on evenly spread windows of WikiText-2's test part; it depends on their length, not on the batch.
Beside it stands that of the same weights computed in fp32 with an fp32 cache: what rounded activations and bf16 cost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import models
import record
import rounds
from peers import THREADS, KiloqSequences, random_ids
from ratios import summary
from worker import step_rate

import kiloq
from kiloq.generate.model import Model
from kiloq.quantize.calibration import spread, windows

CACHES = ("bf16", "int8")
BATCHES, QUICK_BATCHES = (1, 4, 16), (1, 2)
LENGTHS, QUICK_LENGTHS = (1024, 4096, 16_384), (64, 128)
WINDOWS = {512: 24, 2048: 6}  # tokens of a window -> windows
QUICK_WINDOWS = {64: 2}
MOST_RISE_PERCENT, MOST_MEMORY = 0.2, 0.55  # of perplexity; share of what bf16 takes

Cell = tuple[int, int]  # length, streams


class Filled:
    """Streams of one kind of cache, all of one length, and what each takes."""

    def __init__(self, model: Model) -> None:
        self.backend: Any = model.engine.backend
        self.vocabulary = model.config.vocab_size
        self._streams: list[Any] = []
        self._bytes: list[int] = []

    def grow(self, stream: int, length: int) -> None:
        """Brings a stream to a length; streams begin in order."""
        if stream == len(self._streams):
            self._streams.append(self.backend.open())
            self._bytes.append(0)
        before, sequence = rounds.cache_bytes(self.backend), self._streams[stream]
        rounds.read(self.backend, sequence, random_ids(length - sequence.length, self.vocabulary).tolist())
        self._bytes[stream] += rounds.cache_bytes(self.backend) - before

    def bytes_of(self, streams: int) -> int:
        """What the first streams take."""
        return sum(self._bytes[:streams])

    def steps(self, streams: int, slice_s: float) -> Callable[[], float]:
        """A turn: tokens per second of the first streams."""
        sequences = KiloqSequences(self.backend, self._streams[:streams])
        return partial(step_rate, sequences, random_ids(streams, self.vocabulary), slice_s)


def speed(loaded: dict[str, Model], options: argparse.Namespace) -> dict[Cell, dict[str, Any]]:
    """Memory and tokens per second of every cell that can be filled before the time is over."""
    filled = {kv: Filled(model) for kv, model in loaded.items()}
    end = time.perf_counter() + 60 * options.minutes
    cells: dict[Cell, dict[str, Any]] = {}
    batches = QUICK_BATCHES if options.quick else BATCHES
    for length in QUICK_LENGTHS if options.quick else LENGTHS:
        at = 0
        for streams in batches:
            cost_s = 0.0
            for stream in range(at, streams):
                if time.perf_counter() + cost_s * (streams - stream) > end:
                    print(f"{streams} streams of {length:,} tokens: no time to fill them", file=sys.stderr)
                    return cells
                start = time.perf_counter()
                for one in filled.values():
                    one.grow(stream, length)
                cost_s = time.perf_counter() - start
            at = streams
            rates = rounds.timed({kv: one.steps(streams, options.slice_s) for kv, one in filled.items()}, options)
            cells[length, streams] = {
                kv: {"cache_bytes": one.bytes_of(streams), "tokens_per_s": summary(rates[kv])}
                for kv, one in filled.items()
            }
            print(line(length, streams, cells[length, streams]), flush=True)
    return cells


def line(length: int, streams: int, cell: dict[str, Any]) -> str:
    """A row of the table."""
    sizes = [cell[kv]["cache_bytes"] for kv in CACHES]
    rates = [cell[kv]["tokens_per_s"]["median"] for kv in CACHES]
    mark = "" if sizes[1] <= MOST_MEMORY * sizes[0] else "  above the limit"
    return (
        f"{length:>8,}{streams:>9}{sizes[0] / 2**20:>11,.1f}{sizes[1] / 2**20:>11,.1f}{sizes[1] / sizes[0]:>7.3f}"
        f"{rates[0]:>12.1f}{rates[1]:>10.1f}{rates[1] / rates[0]:>7.2f}{mark}"
    )


def quality(loaded: dict[str, Model], exact: Model, options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Perplexity by the window's length, and two rises in percent: by an int8 cache, and by all else that is rounded."""
    text = rounds.text_of("test")
    found = {}
    for length, count in (QUICK_WINDOWS if options.quick else WINDOWS).items():
        samples = spread(windows(loaded[CACHES[0]].tokenizer, text, length), count)
        values = {kv: rounds.perplexity(model.engine.backend, samples) for kv, model in loaded.items()}
        rise = 100 * (values["int8"] / values["bf16"] - 1)
        values["fp32"] = rounds.perplexity(exact.engine.backend, samples)
        other = 100 * (values["bf16"] / values["fp32"] - 1)
        found[length] = {**values, "rise_percent": rise, "rise_of_bf16_over_fp32_percent": other}
        mark = "" if rise <= MOST_RISE_PERCENT else "  above the limit"
        print(f"{length:>8,}{count:>9}{values['fp32']:>12.4f}{values['bf16']:>12.4f}{other:>+9.3f} %"
              f"{values['int8']:>12.4f}{rise:>+9.3f} %{mark}", flush=True)  # fmt: skip
    return found


def main() -> None:
    """Prints and keeps both tables."""
    parser = rounds.parser(__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="for filling caches; cells that take longer are left out"
    )
    options = rounds.parse(parser)
    file = models.model_file("default", "int4", options.cache)
    loaded = {kv: kiloq.load(file, kv=kv, threads=THREADS) for kv in CACHES}
    exact = kiloq.load(file, weights="fp32", kv="fp32", threads=THREADS)
    print(
        f"  tokens  windows        fp32        bf16       rise        int8       rise (at most {MOST_RISE_PERCENT} %)"
    )
    perplexities = quality(loaded, exact, options)
    del exact
    print(f"  tokens  streams   bf16 MiB   int8 MiB  ratio (at most {MOST_MEMORY})   bf16 tok/s  int8 tok/s  ratio")
    cells = speed(loaded, options)
    table = [{"length": length, "streams": streams, **cell} for (length, streams), cell in cells.items()]
    print(record.write("kv-cache", {"model": file.name, "cells": table, "perplexity": perplexities}, options.out))


if __name__ == "__main__":
    main()
