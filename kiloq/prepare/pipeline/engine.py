"""Where tasks run: on Daft, in processes of this machine or on the workers of a Ray cluster, with the same program.

The engine sees names of tasks, never documents: a task reads and writes files, so nothing large goes through a queue,
and another engine needs no more than a map. On a cluster the run's folder and the sources must lie on storage that all
machines see under one path. Daft's native runner gives every task to one of `workers` processes; on Ray each is an
actor, and a task whose machine is lost is given to another. Source: Daft 0.7 (docs.daft.ai, `daft.cls`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiloq.core import errors
from kiloq.core.errors import KiloqError, MissingError, UsageError, file_sentence
from kiloq.core.files import shown
from kiloq.core.machine import usable_cores
from kiloq.prepare.daft import QUIET, quiet_daft
from kiloq.prepare.pipeline.recipe import Recipe
from kiloq.prepare.pipeline.worker import Worker

CONNECT_SECONDS = 10
SETTLE_SECONDS = 0.5  # ours: a worker ends in some 10 ms
WATCH_SECONDS = 2.0  # ours: so long, and twice, a dead worker goes unnoticed; Daft notices most of them at once
LEASH = "leash"  # a file in the working folder
LOST = "a worker was ended from outside, as the system does when memory is short"
LESS = "give fewer --workers or a smaller most_bytes, and run the same command again to go on"


def run_tasks(
    recipe: Recipe, folder: str, tasks: Sequence[Mapping[str, Any]]
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """(Place in `tasks`, tally) of every task, as they finish. Raises the KiloqError of a task that fails with one."""
    names = [json.dumps(task) for task in tasks]
    if len(tasks) == 1 and recipe.engine == "native":  # another process would take longer to start
        yield 0, _tally(Tasks(folder).run(names[0]))
        return
    daft = _daft(recipe)
    native = recipe.engine == "native"
    workers = min(recipe.workers or usable_cores(), len(tasks))

    @daft.cls(max_concurrency=workers, use_process=native)
    class Hands:
        def __init__(self, folder: str, leash: str) -> None:
            self.tasks = Tasks(folder, leash)

        @daft.method(return_dtype=daft.DataType.string())  # type: ignore[untyped-decorator]
        def run(self, task: str) -> str:
            return self.tasks.run(task)

    frame = daft.from_pydict({"at": list(range(len(names))), "task": names})
    frame = frame.into_batches(1) if native else frame.into_partitions(len(names))
    done = 0
    with _words_to_stderr(), _leash(Path(folder) / LEASH) as leash:
        hands = Hands(folder, str(leash) if native else "")
        for row in _rows(frame.select("at", hands.run(daft.col("task")).alias("answer"))):
            done += 1
            yield row["at"], _tally(row["answer"])
        if done < len(tasks):  # so Daft ends its stream on Ctrl-C where Python was told to ignore it
            raise KeyboardInterrupt


class Tasks:
    """What a process of the engine has: it does tasks of the run in `folder`, and ends with the holder of `leash`."""

    def __init__(self, folder: str, leash: str = "") -> None:
        self._folder = folder
        self._worker: Worker | None = None
        if leash:
            threading.Thread(target=_follow, args=(Path(leash),), daemon=True).start()

    def run(self, task: str) -> str:
        """What a task came to, as text; errors meant for people travel as their sentence, others with a traceback."""
        try:
            self._worker = self._worker or Worker(self._folder)
            return json.dumps({"tally": self._worker.run(json.loads(task))})
        except KiloqError as error:
            return json.dumps({"error": str(error), "kind": type(error).__name__})
        except MemoryError:
            return json.dumps({"error": f"the memory of this machine does not suffice: {LESS}", "kind": "KiloqError"})
        except OSError as error:
            return json.dumps({"error": file_sentence(error), "kind": "KiloqError"})
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return json.dumps({"error": said, "kind": "", "trace": traceback.format_exc()})


def _tally(text: str) -> dict[str, Any]:
    """The tally in an answer of Tasks.run; raises the error in it."""
    answer = json.loads(text)
    if "error" in answer:
        error: Exception = getattr(errors, answer["kind"], RuntimeError)(answer["error"])
        error.add_note(answer.get("trace", ""))
        raise error
    tally: dict[str, Any] = answer["tally"]
    return tally


def _rows(frame: Any) -> Iterator[dict[str, Any]]:
    """The rows of a frame, as they are made. An engine that stops, whatever it says of it, is a KiloqError."""
    lost = threading.Event()
    try:
        with _watch(lost):
            yield from frame.iter_rows()
        if lost.is_set():
            raise EOFError
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise KiloqError(f"{LOST}: {LESS}") from None
    except Exception as error:  # Daft's and Ray's, and RuntimeError, ConnectionError, EOFError where a process is lost
        said = LOST
        if "UDF process" not in str(error) and not isinstance(error, ConnectionError | EOFError):
            said = f"the engine stopped ({shown(' '.join(str(error).split()), 200)})"
        raise KiloqError(f"{said}: {LESS}") from error


@contextmanager
def _watch(lost: threading.Event) -> Iterator[None]:
    """Interrupt this process, with `lost` set, if a child of it is dead and nobody takes note of that.

    Daft waits for ever for a worker that dies before it has called back. Without /proc nothing is watched.
    """
    ended, before = threading.Event(), _dead_children()

    def look() -> None:
        seen: set[int] = set()
        while not ended.wait(WATCH_SECONDS):
            dead = _dead_children() - before
            if seen & dead:
                lost.set()
                os.kill(os.getpid(), signal.SIGINT)  # Daft heeds it, while it holds the main thread
                return
            seen = dead

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _dead_children() -> set[int]:
    """Processes that this one has started, that have ended, and whose end it has not asked for yet."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it is gone by now
            continue
        if state == "Z" and int(parent) == os.getpid():
            found.add(int(path.parent.name))
    return found


@contextmanager
def _leash(path: Path) -> Iterator[Path]:
    """A file whose lock this process holds: workers end when it lets go, which the system sees to if it is killed.

    So nobody works on for a run that has ended, and Daft's threads, which abort a process that ends while they wait
    for a worker, are given time to notice.
    """
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield path
        except BaseException:
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(SETTLE_SECONDS)
            raise


def _follow(leash: Path) -> None:
    """End this process, whatever it is doing, when the lock of `leash` is free."""
    try:
        with leash.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    finally:
        os._exit(1)


@contextmanager
def _words_to_stderr() -> Iterator[None]:
    """What Daft and the libraries in its workers print goes to stderr, whatever they print it to."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _daft(recipe: Recipe) -> Any:
    """Daft with the recipe's runner; a process has one runner for its life."""
    daft = quiet_daft()
    logging.getLogger("daft_local_execution").setLevel(logging.CRITICAL)  # what stops it is told by our own sentence
    if recipe.engine == "ray":
        _join_cluster(recipe.address or "auto")
    try:
        if recipe.engine == "native":
            daft.set_runner_native()
        else:
            daft.set_runner_ray(noop_if_initialized=True)
    except daft.exceptions.DaftCoreException:  # it is set already
        if (now := daft.runners.get_or_infer_runner_type()) != recipe.engine:
            raise UsageError(
                f"this process runs Daft on {now!r} already: use a new process for {recipe.engine!r}"
            ) from None
    return daft


def _join_cluster(address: str) -> None:
    try:
        import ray
    except ImportError:
        raise MissingError("engine = \"ray\" needs Ray: run `pip install 'kiloq[data,ray]'` to get it") from None
    try:
        if host := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address):
            socket.create_connection((host[1], int(host[2])), CONNECT_SECONDS).close()  # Ray itself tries for ever
        ray.init(
            address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR,
            runtime_env={"env_vars": QUIET},
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"address {shown(address)}: no Ray cluster answers there ({shown(error, 120)}): start one with "
            '`ray start --head`, or give engine = "native"'
        ) from None
