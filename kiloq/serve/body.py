"""JSON bodies, read more strictly than Python does: what is no JSON, or would be trouble later, is one sentence.

NaN and infinities have no place in an answer that repeats them, and the last of two equal keys need not be the one that
a proxy has looked at. Large bodies are read in a thread, so that they delay nobody else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kiloq.core.errors import FormatError
from kiloq.core.safe_json import MAX_DEPTH, parse
from kiloq.serve.errors import ApiError

LARGE_BYTES = 64 << 10


class StrictRoute(APIRoute):
    """A route whose bodies are read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, given a stricter request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_Strict(request.scope, request.receive))

        return strict


class _Strict(Request):
    async def json(self) -> Any:
        body = await self.body()
        return await run_in_threadpool(read_json, body) if len(body) > LARGE_BYTES else read_json(body)


def read_json(body: bytes) -> Any:
    """The value. Raises ApiError."""
    try:
        return parse(body.removeprefix(b"\xef\xbb\xbf"), "the body")
    except FormatError as error:
        found = error.__context__
        why = f": {found.msg} in line {found.lineno}, column {found.colno}" if isinstance(found, json.JSONDecodeError) else (
            f" as it is read here: UTF-8, no NaN or infinity, no key twice in an object, at most {MAX_DEPTH} levels deep"
        )  # fmt: skip
        raise ApiError(400, f"the body is not JSON{why}", code="invalid_json") from None
