"""One engine in a process of its own, which times what it is told to: engines must not share threads or memory.

The process keeps to the first two processors it is allowed, so that every engine has as many as it has threads.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import BATCH, SPARE, THREADS, Engine, Kiloq, LlamaCpp, Sequences, Transformers, random_ids
from quiet import quietly

SLICE_S = 1.0  # timed at a stretch
KINDS = {"kiloq": Kiloq, "llama.cpp": LlamaCpp, "transformers": Transformers}


class EngineError(Exception):
    """An engine failed in its process; one sentence, the traceback is on standard error."""


@dataclass(frozen=True)
class Task:
    """What is timed: steps of `streams` sequences behind `context` tokens, or without streams a prompt."""

    name: str
    streams: int = 0
    context: int = 0


PREFILL = Task(f"prefill {BATCH}")
DECODE = Task("decode", 1, 64)
SHORT = (PREFILL, DECODE, Task("8 streams", 8, 64), Task("32 streams", 32, 64))
LONG = (Task("decode at 8,192", 1, 8192), Task("decode at 32,768", 1, 32768))


class Worker:
    """A process with one engine; calls block, and an engine's error is raised here."""

    def __init__(self, kind: str, *arguments: Any, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, arguments, options), daemon=True)
        self._process.start()
        theirs.close()
        self.features = str(self._receive())

    def rate(self, task: Task, patience_s: float) -> tuple[float, bool]:
        """(tokens per second of all streams together, nobody disturbed) of one slice."""
        figure: tuple[float, bool] = self._call("rate", task, patience_s)
        return figure

    def probe(self) -> NDArray[np.float32]:
        """Logits behind fixed ids, to see that two engines compute the same network."""
        logits: NDArray[np.float32] = self._call("probe")
        return logits

    def peak_bytes(self) -> int:
        """The most memory that the process has held so far, mapped files included."""
        return int(self._call("peak_bytes"))

    def close(self) -> None:
        self._process.terminate()
        self._process.join()

    def _call(self, *message: Any) -> Any:
        self._ours.send(message)
        return self._receive()

    def _receive(self) -> Any:
        try:
            result = self._ours.recv()
        except EOFError:
            self._process.join()
            raise EngineError(f"the engine's process ended with code {self._process.exitcode}") from None
        if isinstance(result, BaseException):
            raise result
        return result


def _serve(connection: Connection, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    try:
        engine: Any = KINDS[kind](*arguments, **options)
        calls = _Calls(engine)
        connection.send(engine.features())
        while True:
            name, *values = connection.recv()
            connection.send(getattr(calls, name)(*values))
    except EOFError:  # the other side is gone
        return
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        connection.send(EngineError(f"{kind}: {type(error).__name__}: {error}"))


class _Calls:
    """What a worker is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prepared: dict[Task, Sequences] = {}

    def rate(self, task: Task, patience_s: float) -> tuple[float, bool]:
        if not task.streams:
            ids = random_ids(BATCH, self._engine.vocabulary)
            self._engine.prompt(ids)
            return quietly(lambda: prompt_rate(self._engine, ids), patience_s)
        if task not in self._prepared:
            self._prepared[task] = self._engine.prepare(task.streams, task.context)
        ids = random_ids(task.streams, self._engine.vocabulary)
        return quietly(lambda: step_rate(self._prepared[task], ids), patience_s)

    def probe(self) -> NDArray[np.float32]:
        return self._engine.prepare(1, DECODE.context).step(random_ids(1, self._engine.vocabulary))

    def peak_bytes(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0


def prompt_rate(engine: Engine, ids: NDArray[np.int32], slice_s: float = SLICE_S) -> float:
    """Tokens per second of reading `ids` again and again, for at least `slice_s`."""
    start, tokens = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < slice_s:
        engine.prompt(ids)
        tokens += len(ids)
    return tokens / took


def step_rate(sequences: Sequences, ids: NDArray[np.int32], slice_s: float = SLICE_S) -> float:
    """Tokens per second of all streams; rewinding and the first step after it are not timed."""
    took, steps = 0.0, 0
    while took < slice_s:
        sequences.rewind()
        sequences.step(ids)
        start = time.perf_counter()
        for _ in range(SPARE // 2):
            sequences.step(ids)
            steps += 1
            if time.perf_counter() - start > slice_s - took:
                break
        took += time.perf_counter() - start
    return steps * len(ids) / took
