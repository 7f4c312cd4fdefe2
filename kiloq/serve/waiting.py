"""Waiting for answers with a client on the line: who goes away is not answered any more, and who waits too long is told.

Both forms of an answer end the same way: the jobs are cancelled, which does nothing to those that are done, and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.responses import Response

from kiloq.serve.errors import ApiError
from kiloq.serve.metrics import Metrics
from kiloq.serve.runner import Job
from kiloq.serve.stream import Json, failure, sse

Result = TypeVar("Result")


class Call(Protocol):
    """A request of any dialect, checked and ready."""

    async def submit(self) -> list[Job]:
        """Queues it. Raises ApiError or KiloqError for what cannot be answered."""

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The answer in events."""


async def answered(
    request: Request, call: Call, stream: bool | None, written: Callable[[ApiError], bytes] = failure
) -> Response:
    """Queues a call and answers it, in events or at once. written: the event that ends a stream which went wrong."""
    jobs = await call.submit()
    if stream:
        return sse(timed(request, jobs, call.chunks()), written)
    return Json(await watched(request, jobs, call.whole()))


async def timed(request: Request, jobs: list[Job], chunks: Any) -> Any:
    """A stream that ends with an error when it takes too long, and is counted at its end."""
    metrics, seconds = request.app.state.metrics, request.app.state.request_s
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    try:
        async for chunk in chunks:
            yield chunk
            if loop.time() > deadline:
                raise _too_long(seconds)
    finally:
        await chunks.aclose()
        _close(metrics, jobs)


async def watched(request: Request, jobs: list[Job], work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, unless the client goes away or it takes too long: then the jobs are cancelled."""
    metrics, seconds = request.app.state.metrics, request.app.state.request_s
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ApiError(499, "the client has gone away", code="client_closed_request")
        raise _too_long(seconds)
    except BaseExceptionGroup as group:  # of several jobs: the first one's trouble
        raise group.exceptions[0] from None
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(BaseException):
                await each
        _close(metrics, jobs)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _close(metrics: Metrics, jobs: list[Job]) -> None:
    for job in jobs:
        job.cancel()
        metrics.ended(job.request)


def _too_long(seconds: float) -> ApiError:
    return ApiError(504, f"the answer took longer than {seconds:g} s: ask for fewer tokens", "timeout_error", "timeout")
