"""The processes of the later stages, as the first one sees them: started, told, listened to, and ended.

A process that ends by itself, says that it cannot go on, or has not moved for too long makes the whole crew fail, once,
with one sentence that names the stage; all others are ended then, so that nobody waits for them. A stage that has only
lost its neighbour leaves the one that is to blame a moment to be noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from kiloq.core.errors import KiloqError
from kiloq.generate.stage_part import LostError, Piece
from kiloq.generate.stage_plan import Share

GLANCE_S = 0.5  # how often who waits looks whether the crew has failed
BLAME_S = 2.0  # for the stage that is to blame to be noticed, before one is that only misses it
PATIENCE_S = 60.0  # ours: without a move of any stage, plus for each token of the longest row:
TOKEN_S = 2.0  # slower than 72B in fp32 on two cores


class Crew:
    """The later stages' processes."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = tuple(shares)
        self.failure: str | None = None
        self.ended = threading.Event()  # there is a failure, or the crew was ended
        self.done = [0] * len(self.shares)  # pieces that each stage has run, the first included
        self.asked = 0
        self.patience_s = PATIENCE_S
        self._moved_s, self._longest = time.monotonic(), 0
        self._lock = threading.Lock()
        self._news: list[queue.SimpleQueue[dict[str, Any]]] = [queue.SimpleQueue() for _ in self.shares]
        self._processes = [_start() for _ in self.shares[1:]]
        for share, process in zip(self.shares[1:], self._processes, strict=True):
            threading.Thread(target=self._listen, args=(share, process), daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """Of the later stages."""
        return [process.pid for process in self._processes]

    def tell(self, message: dict[str, Any], stage: int | None = None) -> None:
        """Sends a message to all, or to one. Raises LostError or KiloqError where they are not there."""
        self.check()
        line = json.dumps(message).encode() + b"\n"
        for process in self._processes if stage is None else [self._processes[stage - 1]]:
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except OSError as error:
                raise LostError(str(error)) from None

    def run(self, pieces: Sequence[Piece], drop: list[int]) -> None:
        """Tells all to run these pieces."""
        self.asked += len(pieces)
        self._moved_s, self._longest = time.monotonic(), max(piece.tokens for piece in pieces)
        self.tell({"do": "run", "pieces": pieces, "drop": drop})

    def moved(self, stage: int, done: int) -> None:
        """A stage has run so many pieces."""
        self.done[stage], self._moved_s = done, time.monotonic()

    def gather(self, what: str) -> list[dict[str, Any]]:
        """The next news of every later stage, which is of this kind. Raises KiloqError where there is none."""
        found = []
        for news in self._news[1:]:
            found.append(news.get())
            self.check()
            assert what in found[-1]
        return found

    def wait(self, future: Future[Any], *, hurried: bool = True) -> Any:
        """What a future gives. Raises KiloqError when the crew fails; hurried: also when no stage moves for long."""
        began_s = time.monotonic()
        while True:
            try:
                return future.result(timeout=GLANCE_S)
            except TimeoutError:
                if future.done():
                    continue
            still_s = time.monotonic() - max(began_s, self._moved_s)
            if hurried and still_s > self.patience_s + TOKEN_S * self._longest:
                behind = next((share for share in self.shares if self.done[share.stage] < self.asked), self.shares[-1])
                self.fail(f"{behind} has not moved for {still_s:.0f} s and was ended: start the model again")
            self.check()

    def blame(self, error: BaseException, share: Share) -> str:
        """Why the crew has failed, given what its first stage was stopped by."""
        if not isinstance(error, (LostError, KiloqError)):
            self.fail(f"{share} failed ({type(error).__name__}): start the model again")
        if not self.ended.wait(BLAME_S):
            self.fail(f"{share} has lost its connection to the others: start the model again")
        return self.failure or "the model has been closed: load it again"

    def check(self) -> None:
        """Raises KiloqError when the crew has failed or was ended."""
        if self.ended.is_set():
            raise KiloqError(self.failure or "the model has been closed: load it again")

    def fail(self, sentence: str) -> None:
        """The crew cannot go on; the first one to say so is believed."""
        with self._lock:
            if self.ended.is_set():
                return
            self.failure = sentence
            self._end()

    def end(self) -> None:
        """Ends all processes: they have nothing to lose."""
        with self._lock:
            self._end()
        for process in self._processes:
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # what it still held has no reader
                process.stdin.close()

    def _end(self) -> None:
        self.ended.set()
        for process in self._processes:
            process.kill()
        for news in self._news:
            news.put({})

    def _listen(self, share: Share, process: subprocess.Popen[bytes]) -> None:
        lost = False
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # its writer has ended in the middle
                news = json.loads(line)
                if "done" in news:
                    self.moved(share.stage, news["done"])
                elif "failed" in news:
                    self.fail(f"{share} failed ({news['failed']}): start the model again")
                elif "lost" in news:
                    lost = True
                else:
                    self._news[share.stage].put(news)
        code = process.wait()
        if lost and not self.ended.wait(BLAME_S):
            self.fail(f"{share} has lost its connection to the others: start the model again")
        self.fail(f"{share} has ended ({_why(code)}): start the model again")


def _start() -> subprocess.Popen[bytes]:
    """A process that runs this kiloq and nothing of the folder it is started in; Ctrl-C does not reach it.

    Its threads sleep while they have nothing to do, where OpenMP's default is to spin: they would take the cores from
    the stage whose turn it is.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "kiloq.generate.stage_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path},
        process_group=0,
    )


def _why(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
