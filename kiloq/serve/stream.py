"""Server-sent events: the bytes that both dialects send, and a response that ends its job when its reader goes."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse, StreamingResponse

from kiloq.serve.errors import ApiError, api_error

log = logging.getLogger("kiloq.serve")

PING_S = 10.0  # a comment after so long a silence keeps proxies from closing the connection
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def compact(value: Any) -> str:
    """JSON without spaces; text stays as it is written, but for lone surrogates, which UTF-8 does not have."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace").decode()


def event(value: Mapping[str, Any]) -> bytes:
    """One event of OpenAI's streams."""
    return f"data: {compact(value)}\n\n".encode()


class Json(JSONResponse):
    """A JSON answer."""

    def render(self, content: Any) -> bytes:
        return compact(content).encode()


def error_response(error: ApiError) -> Json:
    """A refusal in OpenAI's shape."""
    return Json(error.openai(), error.status, headers=error.headers)


def failure(error: ApiError) -> bytes:
    """The event that ends one of OpenAI's streams which went wrong."""
    return event(error.openai())


def sse(chunks: AsyncIterator[bytes], written: Callable[[ApiError], bytes] = failure) -> StreamingResponse:
    """A stream of events. What goes wrong after it has begun is one more event, as `written`, and its last."""
    return StreamingResponse(_guarded(chunks, written), media_type="text/event-stream", headers=HEADERS)


async def _guarded(chunks: AsyncIterator[bytes], written: Callable[[ApiError], bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        told = api_error(error)
        if told.status == 500:
            log.exception("a stream failed")
        yield written(told)
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]
