"""How the time of a step grows with context, batch and parameters, and that of a prompt with its length.

    python benchmarks/growth.py                                    about six minutes; wants the machine for itself
    python benchmarks/growth.py --work batch --cache FOLDER        a part of it, with the models in FOLDER

Every series is measured beside what it would take at the machine's limits, found in the same run: bytes over the
read bandwidth (`bandwidth.py`, in a buffer as large as what a step reads), operations over the rate of matrix products
(`gemm.py`: 8-bit for weights, float32 for attention over a bf16 cache). Both get the same least-squares fit of relative
errors: a straight line, for prompts a parabola through 0 whose second term is attention. The slopes are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import models
import numpy as np
import record
import rounds
from bandwidth import gigabytes_per_second
from gemm import operations_per_second
from peers import Kiloq, KiloqSequences, Sequences, random_ids
from ratios import Slice, median
from worker import prompt_rate, step_rate

from kiloq.model.config import ModelConfig
from kiloq.model.flops import forward_flops

CONTEXTS, QUICK_CONTEXTS = (1024, 2048, 4096, 8192, 16_384), (64, 256)
BATCHES, QUICK_BATCHES = (1, 2, 4, 8, 16, 32), (1, 4)
PROMPTS, QUICK_PROMPTS = (128, 256, 512, 1024, 2048, 4096, 8192), (32, 64)
FILES = tuple((model, weights) for model in models.MODELS for weights in ("int4", "int8"))
CACHES = ("bf16", "int8")
SHORT = 64  # tokens of context behind which batches and parameters are measured
WORK = ("context", "prompt", "batch", "parameters")
FACTORS = ("at 0", "slope", "second term")  # by the power of x

Turns = dict[str, Callable[[], float]]


@dataclass
class Series:
    """Seconds that were measured, and seconds that the machine's limits allow, over something that grows."""

    unit: str  # of x
    powers: tuple[int, ...]  # of x, in the fit
    x: list[float] = field(default_factory=list)
    measured_s: list[float] = field(default_factory=list)
    computed_s: list[float] = field(default_factory=list)
    quiet_rounds: list[int] = field(default_factory=list)

    def add(self, x: float, tokens: int, rates: list[Slice], computed_s: float) -> None:
        """A point: a step or a prompt of so many tokens, at these tokens per second."""
        self.x.append(x)
        self.measured_s.append(tokens / median(rates))
        self.computed_s.append(computed_s)
        self.quiet_rounds.append(sum(rate.quiet for rate in rates))

    def fit(self, seconds: list[float]) -> dict[str, float]:
        """The factor of each power of x, by least squares of relative errors."""
        terms = np.array([[x**power for power in self.powers] for x in self.x]) / np.array(seconds)[:, None]
        factors = np.linalg.lstsq(terms, np.ones(len(seconds)))[0]
        return {FACTORS[power]: float(factor) for power, factor in zip(self.powers, factors, strict=True)}

    def record(self) -> dict[str, Any]:
        """For the result file."""
        fits = {"measured_fit_s": self.fit(self.measured_s), "computed_fit_s": self.fit(self.computed_s)}
        points = {"unit": self.unit, "x": self.x, "measured_s": self.measured_s, "computed_s": self.computed_s}
        return {**points, "quiet_rounds": self.quiet_rounds, **fits}

    def table(self) -> str:
        """The points in milliseconds, then the fit in nanoseconds for one of the unit."""
        rows = [f"  {x:>14,.0f}{_pair(1e3, 'ms', a, b)}" for x, a, b in zip(self.x, self.measured_s, self.computed_s, strict=True)]  # fmt: skip
        limits = self.fit(self.computed_s)
        rows += [f"  {name:>14}{_pair(1e9, 'ns', a, limits[name])}" for name, a in self.fit(self.measured_s).items()]
        return "\n".join(rows)


def _pair(factor: float, unit: str, measured: float, computed: float) -> str:
    ratio = f"{measured / computed:>8.2f}x" if measured > 0 and computed > 0 else ""
    return f"{factor * measured:>13,.4g} {unit}{factor * computed:>13,.4g} {unit}{ratio}"


class Limits:
    """The machine's limits as turns of a series, by what they are for."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.products: list[dict[str, float]] = []

    def reading(self, size_bytes: int) -> Callable[[], float]:
        """A turn: bytes per second of a buffer of that size."""
        return lambda: 1e9 * gigabytes_per_second(size_bytes, self._cache)

    def multiplying(self) -> float:
        """A turn: 8-bit operations per second; those of float32 are kept beside them."""
        self.products.append(operations_per_second())
        return self.products[-1]["int8"]

    def product_rate(self, kind: str) -> float:
        """The median of all turns so far, or a figure taken now where there are none."""
        if not self.products:
            self.multiplying()
        return float(np.median([rates[kind] for rates in self.products]))


class Growth:
    """The series, each a method."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._limits = Limits(options.cache)
        self._engines: dict[tuple[Path, str], Kiloq] = {}

    def context(self, kv: str) -> Series:
        """Steps of one stream: each token of context costs the bytes of its keys and values."""
        engine, file = self._engine("default", "int4", kv)
        backend, origin = engine._backend, engine._backend.open()
        turns: Turns = {}
        size = {}
        for length in self._points(CONTEXTS, QUICK_CONTEXTS):
            rounds.read(backend, origin, random_ids(length - origin.length, engine.vocabulary).tolist())
            size[length] = models.weight_bytes_per_token(file) + rounds.cache_bytes(backend)
            turns[f"{length}"] = self._steps(KiloqSequences(backend, [backend.fork(origin)]), 1, engine)
            turns[f"reading for {length}"] = self._limits.reading(size[length])
        rates, series = rounds.timed(turns, self._options), Series("tokens of context", (0, 1))
        for length, size_bytes in size.items():
            series.add(length, 1, rates[f"{length}"], size_bytes / median(rates[f"reading for {length}"]))
        return series

    def batch(self) -> Series:
        """Steps of several streams: the weights are read once, whatever their number; operations grow with it."""
        engine, file = self._engine("default", "int4", "bf16")
        size = models.weight_bytes_per_token(file)
        turns: Turns = {"reading": self._limits.reading(size)}
        streams = self._points(BATCHES, QUICK_BATCHES)
        for count in streams:
            turns[f"{count}"] = self._steps(engine.prepare(count, SHORT), count, engine)
        rates, series = rounds.timed(turns, self._options), Series("streams", (0, 1))
        reading_s = size / median(rates["reading"])
        multiplying_s = forward_flops(engine._backend.config, 1, SHORT) / self._limits.product_rate("int8")
        for count in streams:
            series.add(count, count, rates[f"{count}"], max(reading_s, count * multiplying_s))
        return series

    def parameters(self) -> Series:
        """Steps of one stream of several models: each byte of weights is read once."""
        turns: Turns = {}
        size = {}
        for model, weights in FILES[:1] if self._options.quick else FILES:
            engine, file = self._engine(model, weights, "bf16")
            name = f"{model} {weights}"
            size[name] = models.weight_bytes_per_token(file)
            turns[name] = self._steps(engine.prepare(1, SHORT), 1, engine)
            turns[f"reading for {name}"] = self._limits.reading(size[name])
        rates, series = rounds.timed(turns, self._options), Series("bytes of weights", (0, 1))
        for name, size_bytes in size.items():
            series.add(size_bytes, 1, rates[name], size_bytes / median(rates[f"reading for {name}"]))
        return series

    def prompt(self) -> Series:
        """Prompts: the matrices' operations grow with the length, those of attention with its square."""
        engine, _file = self._engine("default", "int4", "bf16")
        lengths = self._points(PROMPTS, QUICK_PROMPTS)
        turns: Turns = {"multiplying": self._limits.multiplying}
        for length in lengths:
            ids = random_ids(length, engine.vocabulary)
            turns[f"{length}"] = partial(prompt_rate, engine, ids, self._options.slice_s)
        rates, series = rounds.timed(turns, self._options, warm_up=False), Series("tokens of the prompt", (1, 2))
        for length in lengths:
            matrices, attention = operations_of_prompt(engine._backend.config, length)
            computed_s = matrices / median(rates["multiplying"]) + attention / self._limits.product_rate("fp32")
            series.add(length, length, rates[f"{length}"], computed_s)
        return series

    def _engine(self, model: str, weights: str, kv: str) -> tuple[Kiloq, Path]:
        file = models.model_file(model, weights, self._options.cache)
        if (file, kv) not in self._engines:
            self._engines[file, kv] = Kiloq(file, kv=kv)
        return self._engines[file, kv], file

    def _steps(self, sequences: Sequences, streams: int, engine: Kiloq) -> Callable[[], float]:
        return partial(step_rate, sequences, random_ids(streams, engine.vocabulary), self._options.slice_s)

    def _points(self, full: tuple[int, ...], quick: tuple[int, ...]) -> tuple[int, ...]:
        return quick if self._options.quick else full


def operations_of_prompt(config: ModelConfig, length: int) -> tuple[int, int]:
    """(of the matrices, of attention), with the logits of the last token only."""
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * length * (length + 1)
    return forward_flops(config, length, logits=1) - attention, attention


def parts(growth: Growth, work: list[str]) -> Iterator[tuple[str, Series]]:
    """The series that were asked for, each when it is its turn."""
    if "context" in work:
        for kv in CACHES:
            yield f"decoding over context, {kv} cache", growth.context(kv)
    if "prompt" in work:
        yield "prompt over length", growth.prompt()
    if "batch" in work:
        yield "decoding over streams", growth.batch()
    if "parameters" in work:
        yield "decoding over parameters", growth.parameters()


def main() -> None:
    """Measures, prints a table for each series and keeps all of them."""
    parser = rounds.parser(__doc__)
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    options = rounds.parse(parser)
    figures = {}
    for name, series in parts(Growth(options), options.work):
        figures[name] = series.record()
        print(f"{name}: measured, at the machine's limits, and their ratio\n{series.table()}", flush=True)
    print(record.write("growth", figures, options.out))


if __name__ == "__main__":
    main()
