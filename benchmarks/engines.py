"""kiloq's CPU engine against llama.cpp and transformers: same weights, two threads, interleaved rounds, worst first.

    benchmarks/build_llama_cpp.sh FOLDER            once: a native build of llama.cpp
    python benchmarks/engines.py                    everything; wants the machine for itself
    python benchmarks/engines.py --models default --weights int4 --work decode     a part of it, for tuning

Every engine lives in its own process (`worker.py`) and takes its turn of about a second; a slice in which somebody
else used the processors is repeated (`quiet.py`). The read bandwidth is measured in every round of decoding, over a
buffer of the model's size. The floors are in `targets.py`, the models in `models.py`; results go to
`results/<date>-<machine>-engines.json`, or with --out elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cold_start
import models
import numpy as np
import record
from bandwidth import gigabytes_per_second
from quiet import PATIENCE_S, quietly
from ratios import Ratio, Slice, compare, records, share_of_bandwidth, summary, table
from targets import BANDWIDTH, LARGE, LLAMA, OWN_BF16, TRANSFORMERS, WHEEL
from worker import DECODE, LONG, SHORT, EngineError, Task, Worker

OURS = "kiloq"
LONG_WEIGHTS = "int8"  # long contexts are measured with one kind of weights: there the cache decides
SAME = 0.98  # correlation of the logits of two engines that compute the same network; int8 activations cost some
WORK = [task.name for task in (*SHORT, *LONG)] + ["start"]

Turn = Callable[[], tuple[float, bool]]


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Run:
    """What is measured, and what has been so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder: Path = options.cache
        self.ratios: list[Ratio] = []
        self.figures: dict[str, Any] = {}

    def wanted(self, tasks: tuple[Task, ...]) -> list[Task]:
        """Those tasks that were asked for."""
        return [task for task in tasks if task.name in self.options.work]

    def rounds(self, turns: dict[str, Turn]) -> dict[str, list[Slice]]:
        """Every turn once to warm up, then in interleaved rounds."""
        for turn in turns.values():
            turn()
        slices: dict[str, list[Slice]] = {name: [] for name in turns}
        for _ in range(self.options.rounds):
            for name, turn in turns.items():
                slices[name].append(Slice(*turn()))
        return slices

    def keep(self, place: tuple[str, ...], value: Any) -> None:
        """Puts a figure into the result under nested keys."""
        here = self.figures
        for key in place[:-1]:
            here = here.setdefault(key, {})
        here[place[-1]] = value

    def short(self, model: str, weights: str) -> None:
        """Prompts, decoding and batches of one file."""
        tasks = self.wanted(SHORT)
        if not tasks:
            return
        file = models.model_file(model, weights, self.folder)
        with self.workers(model, weights, decode=DECODE in tasks) as workers:
            self.describe(model, weights, workers)
            for task in tasks:
                both = {name: workers[name] for name in (OURS, LLAMA)}
                self.task(model, weights, task, workers if task == DECODE else both, file)
            self.keep((model, weights, "peak_mib"), {n: w.peak_bytes() >> 20 for n, w in workers.items()})

    def task(self, model: str, weights: str, task: Task, workers: dict[str, Worker], file: Path) -> None:
        """One kind of work on all engines, and the memory's speed beside decoding."""
        say(f"{model} {weights}: {task.name}")
        patience_s = self.options.patience
        turns: dict[str, Turn] = {name: partial(worker.rate, task, patience_s) for name, worker in workers.items()}
        size = models.weight_bytes_per_token(file)
        if task == DECODE:
            turns[BANDWIDTH] = partial(quietly, partial(gigabytes_per_second, size, self.folder), patience_s)
        slices = self.rounds(turns)
        for name, rounds in slices.items():
            self.keep((model, weights, task.name, name), summary(rounds))
            if name not in (OURS, BANDWIDTH):
                self.add(compare(model, weights, task.name, name, slices[OURS], rounds))
        if BANDWIDTH in slices:
            self.add(share_of_bandwidth(model, weights, slices[OURS], slices[BANDWIDTH], size))

    def add(self, ratio: Ratio) -> None:
        """Keeps a ratio and shows it."""
        self.ratios.append(ratio)
        note = "" if ratio.quiet else ", but others used the machine: no result"
        say(f"    {ratio.ours:.1f} against {ratio.against} {ratio.theirs:.1f}: {ratio.ratio:.2f}x{note}")

    @contextmanager
    def workers(self, model: str, weights: str, *, decode: bool) -> Iterator[dict[str, Worker]]:
        """The engines with one file; for decoding also those that other weights are compared with."""
        file = models.model_file(model, weights, self.folder)
        started = {OURS: Worker("kiloq", file, kv="bf16"), LLAMA: self.llama(file, q8_cache=False)}
        if decode and weights != "bf16":
            started[OWN_BF16] = Worker("kiloq", models.model_file(model, "bf16", self.folder), kv="bf16")
        if decode and weights == "int4":
            started[TRANSFORMERS] = Worker("transformers", models.model_folder(model, self.folder))
        try:
            yield started
        finally:
            for worker in started.values():
                worker.close()

    def llama(self, file: Path, *, q8_cache: bool) -> Worker:
        """llama.cpp with a file."""
        return Worker("llama.cpp", self.options.llama / "lib" / "llama_shim.so", file, q8_cache=q8_cache)

    def describe(self, model: str, weights: str, workers: dict[str, Worker]) -> None:
        """Notes what the engines are, and whether the two that share a file compute the same."""
        self.keep(("engines",), self.figures.get("engines", {}) | {n: w.features for n, w in workers.items()})
        same = float(np.corrcoef(workers[OURS].probe(), workers[LLAMA].probe())[0, 1])
        self.keep((model, weights, "correlation_of_logits"), round(same, 5))
        if same < SAME:
            say(
                f"{model} {weights}: the logits of kiloq and llama.cpp correlate by {same:.3f} only: look into it first"
            )

    def long(self, model: str) -> None:
        """Decoding behind long contexts with eight-bit caches on both sides."""
        for task in self.wanted(LONG[:1] if model == LARGE else LONG):
            file = models.model_file(model, LONG_WEIGHTS, self.folder)
            ours, theirs = Worker("kiloq", file, kv="int8"), self.llama(file, q8_cache=True)
            try:
                self.task(model, LONG_WEIGHTS, task, {OURS: ours, LLAMA: theirs}, file)
            finally:
                ours.close()
                theirs.close()

    def start(self) -> None:
        """Seconds from process to first token, as starts per second so that more is better."""
        say("start")
        commands = cold_start.commands()
        turns = {name: self.start_turn(command) for name, command in commands.items()}
        slices = self.rounds(turns)
        for name, rounds in slices.items():
            seconds = [Slice(1 / one.value, one.quiet) for one in rounds]
            self.keep(("default", "int4", "seconds to first token", name), summary(seconds))
        self.add(compare("default", "int4", "start", WHEEL, slices[OURS], slices[WHEEL]))

    def start_turn(self, command: list[str]) -> Turn:
        """Starts per second of one command."""
        run = cold_start.seconds_to_first_byte(command)
        return lambda: quietly(lambda: 1 / run(), self.options.patience)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = models.default_folder()
    parser.add_argument("--models", nargs="+", choices=models.MODELS, default=list(models.MODELS))
    parser.add_argument("--weights", nargs="+", choices=list(models.BITS), default=list(models.BITS))
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--rounds", type=int, default=record.ROUNDS)
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, help="seconds to wait for a quiet moment, a slice"
    )
    parser.add_argument("--llama", type=Path, help="what build_llama_cpp.sh was given; default: llama.cpp in --cache")
    parser.add_argument("--cache", type=Path, default=folder, help="keeps the models: about 14 GB for all")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    options.llama = options.llama or options.cache / "llama.cpp"
    return options


def parts(run: Run) -> Iterator[Callable[[], None]]:
    """What there is to do, one group of engines after another."""
    for model in run.options.models:
        for weights in run.options.weights:
            yield partial(run.short, model, weights)
        if LONG_WEIGHTS in run.options.weights:
            yield partial(run.long, model)
    if "start" in run.options.work and "default" in run.options.models:
        yield run.start


def main() -> int:
    """Measures what was asked for; an engine that fails ends its own group only."""
    run, failures = Run(parse()), 0
    for part in parts(run):
        try:
            part()
        except EngineError as error:
            say(f"error: {error}")
            failures += 1
        except KeyboardInterrupt:
            say("interrupted: this is what there is so far")
            failures += 1
            break
    print(table(run.ratios))
    figures = {"ratios": records(run.ratios), **run.figures}
    print(record.write("engines", figures, run.options.out))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
