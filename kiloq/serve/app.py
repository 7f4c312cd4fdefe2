"""The HTTP application: routes of both dialects, health, metrics, and the page.

FastAPI checks bodies and writes the openapi page; what it would say about a mistake is said in the shape of the
path's dialect instead. Requests that are not streams are watched too: who goes away before the answer is not answered.
What may take long with a long text (its tokens) is done in threads, so that it delays nobody else.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from kiloq import __version__
from kiloq.core.errors import KiloqError, UsageError
from kiloq.serve.body import StrictRoute
from kiloq.serve.dashscope import add_dashscope
from kiloq.serve.dialects import error_answer, place_of
from kiloq.serve.errors import ApiError, api_error
from kiloq.serve.fields import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from kiloq.serve.guard import Guard, Rules
from kiloq.serve.metrics import CONTENT_TYPE, Metrics
from kiloq.serve.openai_chat import ChatCall
from kiloq.serve.openai_embeddings import EmbeddingBody, embeddings
from kiloq.serve.openai_responses import ResponsesBody, ResponsesCall
from kiloq.serve.openai_text import TextCall
from kiloq.serve.openapi import describe
from kiloq.serve.service import Service
from kiloq.serve.stream import Json, error_response
from kiloq.serve.waiting import answered, watched

log = logging.getLogger("kiloq.serve")

UI = Path(__file__).parent / "ui"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REQUEST_S = 600.0  # ours: longer than any answer that somebody waits for
MAX_REQUEST_S = 7 * 86_400


def create_app(service: Service, rules: Rules | None = None, *, request_s: float = REQUEST_S) -> Guard:
    """The application for one service."""
    if not 0 < request_s <= MAX_REQUEST_S:
        raise UsageError(f"a request may take {request_s:g} s: give a --timeout above 0, up to {MAX_REQUEST_S}")
    app = FastAPI(title="kiloq", version=__version__, docs_url=None, redoc_url=None)
    app.router.route_class = StrictRoute
    metrics = Metrics()
    metrics.watch(service)
    app.state.service, app.state.metrics, app.state.request_s = service, metrics, request_s
    _handle_errors(app)
    _add_health(app, service, metrics)
    _add_models(app, service)
    _add_openai(app, service)
    _add_tokens(app, service)
    add_dashscope(app, service)
    _add_page(app)
    rules = rules or Rules()
    describe(app, keys=bool(rules.keys))
    return Guard(app, rules, metrics)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = place_of(request.scope, first["loc"])
        told = f"{place or 'the body'}: {first['msg']}"[:500]
        if not place and request.method == "POST" and "json" not in request.headers.get("content-type", "").lower():
            told = "the body is not sent as JSON: add the header 'Content-Type: application/json'"
        return error_answer(request.scope, ApiError(400, told, param=place or None, code="invalid_value"))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):  # FastAPI's own words about a body that our reader has refused
            return error_answer(request.scope, error.__cause__)
        known = {404: "there is no such path here: see /openapi.json", 405: "this path does not take this method"}
        message = known.get(error.status_code, "the request cannot be answered")
        return error_answer(
            request.scope, ApiError(error.status_code, message, code="not_found" if error.status_code == 404 else None)
        )

    @app.exception_handler(ApiError)
    @app.exception_handler(KiloqError)
    async def told(request: Request, error: Exception) -> Response:
        return error_answer(request.scope, api_error(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return error_answer(request.scope, api_error(error))


def _add_health(app: FastAPI, service: Service, metrics: Metrics) -> None:
    async def health() -> Response:
        """200 when requests are answered, 503 while the model is loaded and when the server shuts down."""
        try:
            service.model  # noqa: B018 - asked for its refusal
        except ApiError as error:
            return error_response(error)
        return Json({"status": "ok"})

    for path in ("/health", "/v1/health", "/ping"):
        app.get(path)(health)

    @app.get("/metrics")
    async def numbers() -> Response:
        """Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The program's version."""
        return {"version": __version__}


def _add_models(app: FastAPI, service: Service) -> None:
    def described(name: str) -> dict[str, Any]:
        found = {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "kiloq",
            "root": service.names[0],
        }
        return found | (
            {"max_model_len": service.model.engine.max_length} if service.ready else {"max_model_len": None}
        )

    @app.get("/v1/models")
    @app.get("/compatible-mode/v1/models")
    async def models() -> Any:
        """The names of the model that is served; known while it is loaded, too."""
        return {"object": "list", "data": [described(name) for name in service.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Any:
        """One of them."""
        return described(service.check_name(name))


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    @app.post("/compatible-mode/v1/chat/completions")
    async def chat(request: Request, body: ChatBody) -> Response:
        """OpenAI's chat completions."""
        service.model  # noqa: B018
        return await answered(request, await run_in_threadpool(ChatCall, service, body), body.stream)

    @app.post("/v1/completions")
    @app.post("/compatible-mode/v1/completions")
    async def completions(request: Request, body: CompletionBody) -> Response:
        """OpenAI's text completions."""
        service.model  # noqa: B018
        return await answered(request, await run_in_threadpool(TextCall, service, body), body.stream)

    @app.post("/v1/responses")
    async def responses(request: Request, body: ResponsesBody) -> Response:
        """OpenAI's responses, of which nothing is stored."""
        service.model  # noqa: B018
        return await answered(request, await run_in_threadpool(ResponsesCall, service, body), body.stream)

    @app.post("/v1/embeddings")
    @app.post("/compatible-mode/v1/embeddings")
    async def vectors(request: Request, body: EmbeddingBody) -> Response:
        """Mean-pooled hidden states; see docs/serve.md."""
        service.model  # noqa: B018
        return Json(await watched(request, [], embeddings(service, body)))


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    def tokenize(body: TokenizeBody) -> Any:
        """The token ids of a text or a conversation."""
        service.check_name(body.model)
        model = service.model
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if body.messages is not None:
            tools = body.tools or None
            ids = model.tokenizer.chat(body.messages, tools=tools, add_generation_prompt=body.add_generation_prompt)
        else:
            text = body.prompt or ""
            ids = model.tokenizer.encode(text) if body.add_special_tokens is False else model.prompt_ids(text)
        answer = {"tokens": ids, "count": len(ids), "max_model_len": model.engine.max_length}
        if body.return_token_strs:
            every = [model.tokenizer.token_bytes(token) for token in ids]
            answer["token_strs"] = [each.decode("utf-8", "replace") for each in every]
            answer["token_bytes"] = [list(each) for each in every]  # exact where a token is a part of a character
        return Json(answer)

    @app.post("/detokenize")
    def detokenize(body: DetokenizeBody) -> Any:
        """The text of token ids."""
        service.check_name(body.model)
        model = service.model
        model.engine.check_ids(body.tokens)
        return Json({"prompt": model.tokenizer.decode(body.tokens)})

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Any:
        """What evaluation programs need to know of the tokenizer."""
        tokenizer = service.model.tokenizer

        def text(token: int | None) -> str | None:
            return None if token is None else tokenizer.token_bytes(token).decode("utf-8", "replace")

        return {
            "tokenizer_class": "kiloq",
            "eos_token": text(tokenizer.eos_ids[0] if tokenizer.eos_ids else None),
            "bos_token": text(tokenizer.bos_id),
            "pad_token": text(tokenizer.pad_id),
            "chat_template": tokenizer.vocabulary.chat_template,
        }


def _add_page(app: FastAPI) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    files = (
        {path.relative_to(UI).as_posix(): path for path in UI.rglob("*") if path.suffix in kinds} if UI.is_dir() else {}
    )

    def file(name: str) -> Response:
        path = files.get(name)
        if path is None:
            raise ApiError(404, "there is no such file", code="not_found")
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        return FileResponse(path, media_type=kinds[path.suffix], headers=headers)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/ui/{name:path}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return file(name)
