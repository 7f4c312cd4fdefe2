"""Worker processes for texts: they end with the process that started them, and one that is lost is one sentence.

Python's own pool has two gaps. Workers of a parent that was killed wait for it for ever; so each watches its parent.
And the pool waits for ever for a worker that was being started at the moment when another one died
(concurrent.futures.process, `terminate_broken`); so all are killed then.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from kiloq.core.errors import KiloqError

WATCH_S = 0.5  # ours
CLOSED = "handle is closed"  # what `submit` says in the moment in which the pool breaks


@contextmanager
def workers(processes: int, what: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes; `what` they do is for the KiloqError that is raised when one is lost."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with, (os.getpid(),))
    try:
        yield pool
    except (BrokenProcessPool, OSError) as error:
        if isinstance(error, OSError) and str(error) != CLOSED:
            raise  # about something else
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        raise KiloqError(
            f"a process that {what} was killed: there may be too little memory, try --processes 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """Let this process end when its parent has."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
