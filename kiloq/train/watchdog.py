"""Tells what a run that hangs is doing, and ends it: a process that waits for ever costs as much as one that works.

Every process lets a thread touch a file of its own once a second, as long as it can run at all. When no step has ended
for too long, the thread says which processes have stopped to do so, writes where its own process is in all threads,
and ends it; the launcher then ends the others.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiloq.train.parallel.world import World

BEAT_S = 1.0
SILENT_S = 10.0  # ours: a process that has not touched its file for so long does not run
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again


class Watchdog:
    """Knows when the last step has ended."""

    def __init__(self, folder: Path, world: World, most_s: float) -> None:
        self._folder, self._world, self._most_s = folder, world, most_s
        self._last = time.monotonic()
        self._ended = threading.Event()

    def step(self) -> None:
        """A step has ended."""
        self._last = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.step()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._own.unlink(missing_ok=True)

    @property
    def _own(self) -> Path:
        return self._folder / f"{self._world.rank:05}"

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._own.touch()
            if time.monotonic() - self._last > self._most_s:
                sys.stderr.write(f"kiloq: {self.sentence()}\n")
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EXIT_CODE)

    def sentence(self) -> str:
        """What is known of a run in which nothing happens."""
        now = time.time()
        silent = [
            rank
            for rank in range(self._world.size)
            if not (path := self._folder / f"{rank:05}").exists() or now - path.stat().st_mtime > SILENT_S
        ]
        who = f"process {', '.join(map(str, silent))} does not run" if silent else "all processes run"
        return (
            f"process {self._world.rank} of {self._world.size}: no step has ended for {self._most_s / 60:g} minutes, and "
            f"{who}; it ends, and the same command goes on from the last checkpoint. It was here:"
        )
