"""Whether requests leave memory behind: 10,000 of every kind through the engine on tiny models of random weights.

    python benchmarks/leaks.py [--requests N] [--out FILE]

Answers are short and long, alone and in batches, sampled in every way, guessed ahead, split into several, cancelled,
interrupted, dropped half read, refused, and failed in the middle; models are loaded and freed in between. At every tenth
of the way it reads the process's memory, Python's own objects and the cache blocks in use. Exit code 1: a block is in
use while nothing runs, or memory grew from the middle to the end.

Every round is the same mix with the same lengths, so a process that keeps nothing stands still after the first ones.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import faulthandler
import gc
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record

import kiloq
from kiloq import native
from kiloq.convert import hf
from kiloq.convert.source import open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import ContextError, KiloqError, UsageError
from kiloq.core.safetensors import specs_of, write_safetensors
from kiloq.generate import native_load
from kiloq.generate.backend import Row
from kiloq.generate.engine import Engine
from kiloq.generate.model import Model
from kiloq.generate.native_backend import NativeBackend
from kiloq.generate.params import SamplingParams
from kiloq.model.config import ModelConfig
from kiloq.model.shapes import tensor_shapes

REQUESTS, READINGS = 10_000, 10
# Of the second half of a full run. A forgotten request is at least 1 KiB of Python and C++ and would be 5 MiB; a single
# forgotten allocation of 200 bytes a request is 1 MiB. What malloc moves about was 0.13 MiB.
MOST_BYTES = 1 << 20
MOST_OBJECTS = 500  # blocks of Python's allocator, of which one in ten requests would forget one
SMALL_CACHE_BYTES = 1 << 20  # 2,048 tokens of the small model: a few long prompts fill it
THREADS = 2
STUCK_S = 120  # a round takes half a second; one that takes this long ends the process with every thread's stack

SHAPE = dict(vocab_size=512, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, ffn_size=96)
WINDOWS = ModelConfig(**SHAPE, train_length=8192, windows=(10, 100))  # type: ignore[arg-type]
STRETCHED = ModelConfig(**SHAPE, train_length=128, max_length=4096, dynamic_ntk=True, logn=True)  # type: ignore[arg-type]
PLAIN = ModelConfig(**SHAPE, train_length=8192, tied_embeddings=True)  # type: ignore[arg-type]
PRECISIONS = [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16"), ("auto", "int8")]
SAMPLED: list[dict[str, Any]] = [
    dict(temperature=0),
    dict(),
    dict(temperature=0.7, top_p=0.9),
    dict(top_k=20),
    dict(min_p=0.1, temperature=2),
    dict(repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5),
    dict(logit_bias={5: 3.0, 9: -1000.0}),
    dict(min_new_tokens=3, stop_ids=(7, 8)),
    dict(stop=("a", "the end"), ignore_eos=True),
    dict(logprobs=3),
    dict(ntk="frozen"),
    dict(max_draft_tokens=0),
]


@dataclass(frozen=True)
class Reading:
    """What the process held after so many requests, while none was running."""

    requests: int
    rss_bytes: int
    objects: int  # that Python's garbage collector knows
    allocated: int  # blocks of Python's allocator
    cache_blocks: int  # in use, of all models
    seconds: float


def main() -> int:
    """Sends the requests, prints the readings and the verdict; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=REQUESTS, help="fewer are judged by cache blocks alone")
    parser.add_argument("--out", type=Path, help="write the figures here instead of into benchmarks/results")
    given = parser.parse_args()
    if native.engine() is None:
        raise SystemExit(native.MISSING)
    with tempfile.TemporaryDirectory() as folder:
        readings = list(run(Traffic(Path(folder)), max(1, given.requests)))
    faults = judge(readings)
    figures = {"readings": [asdict(reading) for reading in readings], "faults": faults}
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")
    elif given.requests >= REQUESTS:
        print(record.write("leaks", figures))
    for fault in faults:
        print(f"leaks: {fault}")
    print(f"leaks: {'FAILED' if faults else 'nothing is left'} after {readings[-1].requests:,} requests")
    return 1 if faults else 0


def run(traffic: Traffic, requests: int) -> Iterator[Reading]:
    """Rounds of all kinds until there were so many requests; a reading at every tenth, each printed as it comes."""
    begin, done, marks = time.perf_counter(), 0, [requests * tenth // READINGS for tenth in range(1, READINGS + 1)]
    while marks:
        faulthandler.dump_traceback_later(STUCK_S, exit=True)
        for kind in traffic.kinds():
            done += kind()
        if done < marks[0]:
            continue
        while marks and done >= marks[0]:
            marks.pop(0)
        reading = read(traffic, done, time.perf_counter() - begin)
        print(
            f"{done:7,} requests  {reading.rss_bytes / 2**20:7.2f} MiB  {reading.objects:8,} objects  "
            f"{reading.allocated:9,} allocated  {reading.cache_blocks} blocks  {reading.seconds:6.1f} s",
            flush=True,
        )
        yield reading
    faulthandler.cancel_dump_traceback_later()


def read(traffic: Traffic, requests: int, seconds: float) -> Reading:
    """Memory that is held on purpose: what Python and malloc only keep for later is given back first."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Reading(
        requests,
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(gc.get_objects()),
        sys.getallocatedblocks(),
        traffic.cache_blocks(),
        round(seconds, 1),
    )


def judge(readings: list[Reading]) -> list[str]:
    """One sentence for everything that is left behind."""
    used = ((reading.cache_blocks, reading.requests) for reading in readings if reading.cache_blocks)
    faults = [f"{blocks} cache blocks are in use after {requests:,} requests" for blocks, requests in used]
    end = readings[-1]
    middle = next(reading for reading in readings if 2 * reading.requests >= end.requests)
    if end.requests < REQUESTS:
        return faults  # caches of Python and of malloc are still being filled
    if (grown := end.rss_bytes - middle.rss_bytes) > MOST_BYTES:
        faults.append(f"memory grew by {grown / 2**20:.2f} MiB from {middle.requests:,} requests on")
    if (grown := end.allocated - middle.allocated) > MOST_OBJECTS:
        faults.append(f"Python holds {grown:,} blocks more than after {middle.requests:,} requests")
    return faults


class Traffic:
    """Models, and every kind of request to them; each kind returns how many requests it made."""

    def __init__(self, folder: Path) -> None:
        self.windows = write_model(folder / "windows", WINDOWS)
        self.stretched = folder / "stretched.gguf"
        write_gguf_file(open_model(write_model(folder / "stretched", STRETCHED)), self.stretched, "q4_0")
        self.plain = write_model(folder / "plain", PLAIN)
        self.models = [load(self.windows, "int8", "int8"), load(self.stretched, "auto", "bf16")]
        self.small = Engine(small_backend(self.plain), None, ())
        self.poisoned = load(write_model(folder / "poisoned", PLAIN, poison=True), "fp32", "fp32")
        self.turn = itertools.count()

    def kinds(self) -> list[Callable[[], int]]:
        """One round."""
        several: list[Callable[[Model], int]] = [
            self.alone, self.batch, self.long, self.split, self.copying, self.chat,
            self.cancelled, self.dropped, self.refused, self.threads, self.interrupted,
        ]  # fmt: skip
        each = [lambda kind=kind, model=model: kind(model) for kind in several for model in self.models]
        return [*each, self.overfull, self.not_numbers, self.reloaded, self.sequences]

    def cache_blocks(self) -> int:
        """In use, of all models that are loaded, but for what is kept on purpose."""
        engines = [self.small, *(model.engine for model in (*self.models, self.poisoned))]
        for engine in engines:
            engine.forget()
        return sum(engine.backend._decoder.cache_blocks[0] for engine in engines)  # type: ignore[attr-defined]

    def ids(self, count: int) -> list[int]:
        """A prompt of letters, never the same twice."""
        return [int(letter) for letter in np.random.default_rng(next(self.turn)).integers(32, 127, count)]

    def alone(self, model: Model) -> int:
        for at, sampling in enumerate(SAMPLED):
            model.generate(self.ids(1 + 9 * at), max_new_tokens=8, **sampling)
        return len(SAMPLED)

    def batch(self, model: Model) -> int:
        """All ways of sampling and all lengths in the same steps."""
        requests = [
            model.engine.submit(self.ids(1 + 17 * at), SamplingParams(max_new_tokens=4 + at, **sampling))
            for at, sampling in enumerate(SAMPLED)
        ]
        while model.engine.step():
            pass
        assert all(request.done for request in requests)
        return len(requests)

    def long(self, model: Model) -> int:
        """More than a chunk of prompt; windows are left behind, and answers grow past a stretch of dynamic NTK."""
        model.generate(self.ids(600), max_new_tokens=4, ignore_eos=True)
        model.generate(self.ids(120), max_new_tokens=20, ignore_eos=True)
        return 2

    def split(self, model: Model) -> int:
        """Several answers to one prompt share its cache until they write."""
        for n in (2, 5):
            answers = model.generate(self.ids(45), n=n, max_new_tokens=6, logprobs=2, ignore_eos=True)
            assert isinstance(answers, list) and len(answers) == n
        return 2

    def copying(self, model: Model) -> int:
        """Text that repeats itself, of which guesses are made; most are wrong and taken back."""
        piece = self.ids(6)
        model.generate(piece * 8, max_new_tokens=24, temperature=0, ignore_eos=True)
        model.generate(piece * 8, max_new_tokens=24, logit_bias=dict.fromkeys(piece, 100.0), ignore_eos=True)
        return 2

    def chat(self, model: Model) -> int:
        message = {"role": "user", "content": f"你好 {next(self.turn)}"}
        model.chat([message], max_new_tokens=4)
        list(model.stream_chat([message], max_new_tokens=4))
        return 2

    def cancelled(self, model: Model) -> int:
        """Some before their first step, some in the middle of prompt or answer, while others go on."""
        params = SamplingParams(max_new_tokens=10, ignore_eos=True, n=2)
        requests = [model.engine.submit(self.ids(length), params) for length in (1, 40, 200, 600, 700, 30)]
        model.engine.cancel(requests[0])
        for gone in requests[1:5]:
            model.engine.step()
            model.engine.cancel(gone)
        model.engine.finish(requests[5])
        model.engine.end_cancelled()
        return len(requests)

    def dropped(self, model: Model) -> int:
        """Streams that nobody reads to the end: never begun, left half-way, left by an error."""
        model.stream(self.ids(20), max_new_tokens=50, ignore_eos=True)
        next(iter(model.stream(self.ids(20), max_new_tokens=50, ignore_eos=True)))
        with model.stream(self.ids(20), max_new_tokens=50, ignore_eos=True) as stream:
            next(iter(stream))
        expect(ZeroDivisionError, lambda: [1 // 0 for _ in model.stream(self.ids(20), ignore_eos=True)])
        model.engine.end_cancelled()
        return 4

    def refused(self, model: Model) -> int:
        """Bad requests."""
        limit = model.config.max_length
        expect(UsageError, lambda: model.generate([]))
        expect(UsageError, lambda: model.generate([1, model.config.vocab_size]))
        expect(ContextError, lambda: model.generate([1] * limit))
        expect(UsageError, lambda: model.generate([1], temperature=float("nan")))
        expect(UsageError, lambda: model.generate([1], temperatur=1))
        expect(UsageError, lambda: model.generate([1], logit_bias={1 << 30: 1.0}))
        backend, sequence = model.engine.backend, model.engine.backend.open()
        good, bad = Row(sequence, [1], 1.0), Row(backend.open(), [1, -1], 1.0)
        expect(ValueError, lambda: backend.step([good, bad]))
        expect(ValueError, lambda: backend.step([good, good]))
        return 8

    def threads(self, model: Model) -> int:
        """Threads share the engine, and one ends with an error."""
        work: list[Callable[[], object]] = [lambda: model.generate(self.ids(30), max_new_tokens=6)] * 3
        work.append(lambda: expect(UsageError, lambda: model.generate([-1])))
        threads = [threading.Thread(target=one) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(threads)

    def interrupted(self, model: Model) -> int:
        """Ctrl-C somewhere in a long prompt, most often inside the native call, and in a long answer."""
        for prompt, new in ((self.ids(3000), 2), (self.ids(3), 1000)):
            with alarm(0.001 + 0.0005 * (next(self.turn) % 8)):
                model.generate(prompt, max_new_tokens=new, ignore_eos=True)
        return 2

    def overfull(self) -> int:
        """Together more than the cache holds: they wait for each other, and go back to the queue."""
        params = SamplingParams(max_new_tokens=40, ignore_eos=True)
        requests = [self.small.submit(self.ids(500), params) for _ in range(5)]
        while self.small.step():
            pass
        assert all(len(request.answers[0].ids) == 40 for request in requests)
        return len(requests)

    def not_numbers(self) -> int:
        """Logits that are NaN end a request, and its twins, with an error."""
        expect(KiloqError, lambda: self.poisoned.generate([1, 2, 3]))
        expect(KiloqError, lambda: self.poisoned.generate([1, 2, 3], n=3))
        return 2

    def reloaded(self) -> int:
        """A model of each precision in turn, loaded, used, and freed with an answer in the making."""
        weights, kv = PRECISIONS[next(self.turn) % len(PRECISIONS)]
        for path in (self.plain, self.windows, self.stretched):
            model = load(path, weights, kv)
            model.generate(self.ids(70), max_new_tokens=4, n=2)
            model.engine.submit(self.ids(70), SamplingParams())
            model.engine.step()
        return 6

    def sequences(self) -> int:
        """Beside the engine: forks of forks, cleared and dropped in any order."""
        for model in self.models:
            backend = model.engine.backend
            first = backend.open()
            backend.step([Row(first, self.ids(45), 1.0)])
            twins = [backend.fork(first), backend.fork(backend.fork(first))]
            backend.step([Row(sequence, self.ids(20), 1.0, wanted=1) for sequence in (first, *twins)])
            first.clear()
            backend.logits(self.ids(50))
        return 0  # not requests


def expect(kind: type[BaseException], action: Callable[[], object]) -> None:
    """Runs what must fail."""
    try:
        action()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} came")


class alarm:  # noqa: N801 - reads as a verb
    """A Ctrl-C after some seconds, unless the block has ended; the block may end by it."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._armed = seconds, True

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        return kind is KeyboardInterrupt

    def _ring(self, *_: object) -> None:
        if self._armed:
            raise KeyboardInterrupt


def load(path: Path, weights: str, kv: str) -> Model:
    """A model on the native engine."""
    return kiloq.load(path, weights=weights, kv=kv, engine="native")


def small_backend(path: Path) -> NativeBackend:
    """A backend whose cache is soon full."""
    source = open_model(path)
    decoder = native_load.decoder(
        native.engine(), source, native_load.slots(source, "fp32"), kv="fp32", threads=THREADS,
        cache_bytes=SMALL_CACHE_BYTES, tell=lambda share: None,
    )  # fmt: skip
    return NativeBackend(decoder, source.config, dtype="fp32", kv="fp32", threads=THREADS)


def write_model(folder: Path, config: ModelConfig, *, poison: bool = False) -> Path:
    """A folder of random weights with a vocabulary of single bytes; poison: the last norm is NaN."""
    folder.mkdir()
    random = np.random.default_rng(0)
    arrays = {
        hf.stored_name(name): (float("norm" in name) + 0.2 * random.standard_normal(shape)).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }
    if poison:
        arrays[hf.stored_name("norm.weight")][:] = np.nan
    write_safetensors(folder / "model.safetensors", specs_of(arrays))
    (folder / "config.json").write_text(json.dumps(hf.write_config(config, "fp32")))
    lines = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "qwen.tiktoken").write_text("".join(lines))
    return folder


if __name__ == "__main__":
    sys.exit(main())
