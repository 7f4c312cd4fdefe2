"""Requests in DashScope's dialect, and readers of its answers that check every byte on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
from serving import Served

from kiloq.generate.model import Model
from kiloq.serve.stream import compact

GENERATION = "/api/v1/services/aigc/text-generation/generation"
EMBEDDING = "/api/v1/services/embeddings/text-embedding/text-embedding"
SSE = {"X-DashScope-SSE": "enable"}
FRAME = re.compile(r"id:(\d+)\nevent:(result|error)\n:HTTP_STATUS/(\d+)\n(status:\d+\n)?data:(\{.*\})")


def body_of(asked: Any, **parameters: Any) -> dict[str, Any]:
    """A request; `asked` is a prompt, a list of messages, or the whole input."""
    given = {"prompt": asked} if isinstance(asked, str) else {"messages": asked} if isinstance(asked, list) else asked
    return {"model": "scripted", "input": given, "parameters": parameters}


def ask(server: Served, asked: Any, **parameters: Any) -> dict[str, Any]:
    response = server.post(GENERATION, body_of(asked, **parameters))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert found["request_id"] == response.headers["x-request-id"]
    return found


def stream(server: Served, asked: Any, **parameters: Any) -> list[dict[str, Any]]:
    """The events of a stream, every byte of which is checked."""
    response = server.post(GENERATION, body_of(asked, **parameters), headers=SSE)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.content.decode().split("\n\n")
    assert blocks.pop() == ""
    shapes = []
    for number, block in enumerate(blocks, 1):
        found = FRAME.fullmatch(block)
        assert found is not None and found.group(1, 2, 3, 4) == (str(number), "result", "200", None), block
        shape = json.loads(found[5])
        assert found[5] == compact(shape), "no spaces, nothing escaped that need not be"
        assert list(shape) == ["output", "usage", "request_id"]
        assert shape["request_id"] == response.headers["x-request-id"]
        shapes.append(shape)
    return shapes


def pooled(model: Model) -> Callable[[str], Any]:
    """Gives a scripted model hidden states to pool; they depend on the text's bytes. Returns how."""

    def means(ids: list[int]) -> Any:
        return np.array([sum(i**power for i in ids) for power in range(8)], dtype=np.float32)

    model.engine.backend.pooled = means  # type: ignore[method-assign]
    return lambda text: means(list(text.encode()))


def error_in(response: httpx2.Response, status: int) -> str:
    """The code of a refusal, whose shape is checked."""
    assert response.status_code == status, response.text
    found = response.json()
    assert list(found) == ["code", "message", "request_id"] and found["message"]
    assert found["request_id"] == response.headers["x-request-id"]
    return str(found["code"])
