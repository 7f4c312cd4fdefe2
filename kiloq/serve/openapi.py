"""What /openapi.json tells beyond what FastAPI sees by itself: our errors, streams, other media types, and the key.

FastAPI would promise its own 422, which we never send. Programs that test or wrap a server by its description (such as
schemathesis) find every status, media type and shape of an error that can come.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from kiloq.serve.dialects import DASHSCOPE
from kiloq.serve.guard import OPEN_PATHS

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
DASHSCOPE_ERROR = {
    "type": "object",
    "required": ["code", "message", "request_id"],
    "properties": {name: {"type": "string"} for name in ("code", "message", "request_id")},
}
STREAMS = ("/chat/completions", "/completions", "/responses", "/generation")
STREAM: dict[str, Any] = {"text/event-stream": {}}
PLAIN = {"text/plain": {"schema": {"type": "string"}}}
UNUSED = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI, *, keys: bool) -> None:
    """Corrects the description of all routes that are there by now. With `keys`, it says which of them want one."""
    plain = app.openapi

    def corrected() -> dict[str, Any]:
        if app.openapi_schema is None:
            _correct(plain(), keys)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = corrected  # type: ignore[method-assign]


def _correct(described: dict[str, Any], keys: bool) -> None:
    shapes = described["components"]["schemas"]
    for name in UNUSED:
        shapes.pop(name, None)
    shapes |= {"Error": ERROR, "DashScopeError": DASHSCOPE_ERROR}
    if keys:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in described["paths"].items():
        for operation in operations.values():
            _correct_one(path, operation)
            if keys and path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]


def _correct_one(path: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    content = answers["200"]["content"]
    if path == "/metrics":
        answers["200"]["content"] = PLAIN
    elif path.endswith(STREAMS):
        content |= STREAM
    name = "DashScopeError" if path.startswith(DASHSCOPE) else "Error"
    shape = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    answers["4XX"] = {"description": "What is wrong with the request.", "content": shape}
    answers["5XX"] = {"description": "Why it cannot be answered now.", "content": shape}
