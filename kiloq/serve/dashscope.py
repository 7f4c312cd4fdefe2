"""DashScope's routes under /api/v1: text generation, embeddings, tokenizer and models, as its SDK asks for them.

A stream is asked for by the header X-DashScope-SSE, or by accepting nothing but events. Tasks that are fetched later
(X-DashScope-Async) and encrypted inputs are refused, and so are models that are not here; all errors have DashScope's
shape (`dialects.py`). Source: DashScope's API reference, and the dashscope package 2.0.2.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kiloq.serve.dashscope_chat import Generation
from kiloq.serve.dashscope_fields import (
    Asked,
    EmbeddingParameters,
    GenerationBody,
    Parameters,
    TextsBody,
    TokenizerBody,
)
from kiloq.serve.dialects import DASHSCOPE, request_id
from kiloq.serve.errors import ApiError
from kiloq.serve.openai_embeddings import embedded
from kiloq.serve.service import Service
from kiloq.serve.stream import Json
from kiloq.serve.waiting import answered, watched

EVENTS = "text/event-stream"
MAX_PAGE = 1000

Input = TypeVar("Input")


def add_dashscope(app: FastAPI, service: Service) -> None:
    """Adds the routes to an application."""
    synchronous = [Depends(_synchronous)]

    @app.post(f"{DASHSCOPE}/services/aigc/text-generation/generation", dependencies=synchronous)
    async def generation(request: Request, body: GenerationBody) -> Response:
        """DashScope's text generation."""
        _check_model(service, body.model)
        service.model  # noqa: B018 - asked for its refusal
        asked, parameters = _given(body.input), body.parameters or Parameters()
        call = await run_in_threadpool(Generation, service, asked, parameters, request_id(request.scope))
        return await answered(request, call, _wants_events(request), call.failure)

    @app.post(f"{DASHSCOPE}/services/embeddings/text-embedding/text-embedding", dependencies=synchronous)
    async def embedding(request: Request, body: TextsBody) -> Response:
        """DashScope's text embeddings: mean-pooled hidden states, as at /v1/embeddings."""
        _check_model(service, body.model)
        texts, parameters = _given(body.input).texts, body.parameters or EmbeddingParameters()
        parameters.check(service.model.config.hidden_size)
        vectors, tokens = await watched(request, [], embedded(service, texts))
        found = [{"text_index": place, "embedding": vector.tolist()} for place, vector in enumerate(vectors)]
        return _answer(request, {"embeddings": found}, {"total_tokens": tokens})

    @app.post(f"{DASHSCOPE}/tokenizer", dependencies=synchronous)
    def tokenizer(request: Request, body: TokenizerBody) -> Response:
        """The tokens of a prompt's text, or those that a conversation is for the model."""
        _check_model(service, body.model)
        ids = _ids(service, _given(body.input))
        token_bytes = service.model.tokenizer.token_bytes
        output = {"token_ids": ids, "tokens": [token_bytes(i).decode("utf-8", "replace") for i in ids]}
        return _answer(request, output, {"input_tokens": len(ids)})

    @app.get(f"{DASHSCOPE}/models")
    async def models(
        request: Request,
        page_no: Annotated[int, Query(ge=1)] = 1,
        page_size: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 10,
        model: str | None = None,
    ) -> Response:
        """The names of the model that is served, or the one that is asked for, if it is among them."""
        names = [name for name in service.names if model in (None, name)]
        page = names[(page_no - 1) * page_size : page_no * page_size]
        output = {"total": len(names), "page_no": page_no, "page_size": page_size}
        return _answer(request, {**output, "models": [_described(service, name) for name in page]})


def _synchronous(request: Request) -> None:
    """Runs before the body is looked at: an encrypted one has no fields."""
    if request.headers.get("x-dashscope-async", "").lower() == "enable":
        raise _unsupported("X-DashScope-Async is set: tasks are not kept here, so leave it out and wait for the answer")
    if request.headers.get("x-dashscope-encryptionkey"):
        raise _unsupported("X-DashScope-EncryptionKey is set: inputs are not decrypted here, so send them as they are")


def _unsupported(message: str) -> ApiError:
    return ApiError(400, message, code="unsupported_operation")


def _wants_events(request: Request) -> bool:
    accepted = request.headers.get("accept", "").partition(";")[0].strip().lower()
    return request.headers.get("x-dashscope-sse", "").lower() == "enable" or accepted == EVENTS


def _check_model(service: Service, name: str | None) -> None:
    if not name:
        raise ApiError(400, f"the request has no model: ask for {service.names[0]!r}", code="empty_model")
    try:
        service.check_name(name)
    except ApiError as error:
        raise ApiError(404, error.message, code="model_not_found") from None


def _given(value: Input | None) -> Input:
    if value is None:
        raise ApiError(400, "the request has no input: give an object with what is asked", code="empty_input")
    return value


def _ids(service: Service, asked: Asked) -> list[int]:
    tokenizer = service.model.tokenizer
    return tokenizer.encode(asked.prompt or "") if asked.is_text else tokenizer.chat(asked.conversation())


def _described(service: Service, name: str) -> dict[str, Any]:
    length = service.model.engine.max_length if service.ready else None
    return {"model": name, "model_id": name, "owner": "kiloq", "max_model_len": length}


def _answer(request: Request, output: dict[str, Any], usage: dict[str, int] | None = None) -> Json:
    shape = {"output": output} | ({"usage": usage} if usage is not None else {})
    return Json({**shape, "request_id": request_id(request.scope)})
