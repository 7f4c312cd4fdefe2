"""One thread makes the engine's steps; coroutines submit requests, wait for what is new, and go when they like.

A job that nobody waits for any more is cancelled, and gives its place in the cache back before the next step. A slow
reader delays nobody: what its answer says in the meantime waits in the answer itself, which has a token limit.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

from kiloq.core.errors import KiloqError
from kiloq.generate.engine import Engine
from kiloq.generate.params import SamplingParams
from kiloq.generate.requests import Answer, Request

log = logging.getLogger("kiloq.serve")

IDLE_S = 0.5  # how often an idle thread looks whether it is to end


class Job:
    """A request in the engine, seen from a coroutine."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.request: Request

    @property
    def answers(self) -> list[Answer]:
        """The n answers."""
        return self.request.answers

    def notify(self) -> None:
        """Called by the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def updates(self, every_s: float) -> AsyncIterator[bool]:
        """Yields True when there is something new, False when there was nothing for so long; ends when all is done.

        Raises what ended the request. Leaving early cancels it.
        """
        try:
            while True:
                done = self.request.done
                if self.request.error is not None:
                    raise self.request.error
                yield True
                if done:
                    return
                while not await self._wait(every_s):
                    yield False
        finally:
            self.cancel()

    async def finish(self) -> None:
        """Waits for the end. Raises what ended it; being cancelled cancels it."""
        async for _ in self.updates(3600.0):
            pass

    def cancel(self) -> None:
        """Ends it with what it has; nothing when it is done."""
        if not self.request.done:
            self._runner.engine.cancel(self.request)
            self._runner.wake()

    async def _wait(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class Runner:
    """The engine's thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="kiloq-engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: list[int], params: SamplingParams, **options: Any) -> Job:
        """Queues a request, from a coroutine. Raises what `Engine.submit` raises."""
        job = Job(self)
        job.request = self.engine.submit(prompt, params, notify=job.notify, **options)
        self.wake()
        return job

    def wake(self) -> None:
        """There is something to do."""
        self._work.set()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self.engine.scheduler.live()

    def give_up(self, error: Exception) -> None:
        """Ends everything that runs or waits; `error` is raised to who waits for it."""
        for answer in self.engine.scheduler.live():
            answer.request.error = error
            self.engine.cancel(answer.request)
        self.wake()

    def stop(self) -> None:
        """Ends everything that runs, and the thread."""
        self._stopping = True
        self.give_up(KiloqError("the engine has ended"))
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._work.clear()
            try:
                while self.engine.step():
                    pass
            except KiloqError as error:
                log.error("a step of the engine failed: %s", error)
                self._fail_all(str(error))
            except Exception:
                log.exception("a step of the engine failed")
                self._fail_all("the engine failed while this was being answered: try again")
            if self._stopping and self.idle:
                return
            self._work.wait(IDLE_S)

    def _fail_all(self, sentence: str) -> None:
        """A step that failed would fail again with the same answers: they are told, and the next ones begin afresh."""
        self.give_up(KiloqError(sentence))
        self.engine.end_cancelled()
