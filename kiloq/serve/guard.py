"""What stands before every route: keys, origins, limits of requests, ids, counts and log lines. Plain ASGI.

Nothing is open unless it is named here: with keys, every path but health answers 401 without one, and a path that does
not exist as well. A browser is asked for the key by its own dialog (HTTP Basic, any name, the key as password) when it
opens the page. Without keys the server is for this machine alone, and only takes requests that name it by a loopback
name: a page elsewhere whose name is made to resolve to 127.0.0.1 must not talk to it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kiloq.serve.dialects import error_answer
from kiloq.serve.errors import ApiError
from kiloq.serve.metrics import Metrics

log = logging.getLogger("kiloq.serve")

OPEN_PATHS = frozenset({"/health", "/v1/health", "/ping"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 << 10  # ours; browsers and proxies stay below 16 KiB
MAX_BODY_BYTES = 4 << 20
BODY_S = 30.0  # in which a body must come
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


@dataclass(frozen=True)
class Rules:
    """Who may send what."""

    keys: frozenset[bytes] = frozenset()  # SHA-256 of each
    origins: frozenset[str] = frozenset()  # besides the server's own
    max_body_bytes: int = MAX_BODY_BYTES

    @staticmethod
    def hashed(keys: Iterable[str]) -> frozenset[bytes]:
        """Keys as they are kept."""
        return frozenset(hashlib.sha256(key.encode()).digest() for key in keys)


@dataclass
class _Seen:
    """A request on its way through."""

    id: str
    path: str
    method: str
    headers: dict[bytes, bytes]
    began_s: float = field(default_factory=time.perf_counter)
    status: int = 500


class Guard:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics) -> None:
        self._app, self._rules, self._metrics = app, rules, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":  # there are none, and what is not here cannot be open by mistake
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        # With a space or a quote it could look like other fields of a log line.
        plain = given.isascii() and given.isprintable() and not set(' "') & set(given)
        request_id = given if plain and 0 < len(given) <= 128 else secrets.token_hex(16)
        seen = _Seen(request_id, scope["path"], scope["method"], headers)
        scope.setdefault("state", {})["request_id"] = request_id
        origin = headers.get(b"origin", b"").decode("latin-1")

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), *SECURITY_HEADERS]
                if origin in self._rules.origins:
                    extra += _allowed(origin)
                message = {**message, "headers": [*message["headers"], *extra]}
            try:
                await send(message)
            except RuntimeError as error:  # uvloop's, where the client has reset the connection a moment ago
                if "closed" not in str(error):
                    raise

        try:
            self._check(seen, scope, origin)
            if scope["method"] == "OPTIONS" and origin:
                await Response(status_code=204)(scope, receive, sending)
                return
            await self._app(scope, await self._received(receive), sending)
        except ApiError as error:
            await error_answer(scope, error)(scope, receive, sending)
        finally:
            self._record(seen, scope)

    def _check(self, seen: _Seen, scope: Scope, origin: str) -> None:
        host = seen.headers.get(b"host", b"").decode("latin-1").lower()
        count = len(scope["headers"])
        if count > MAX_HEADERS:
            raise ApiError(431, f"the request has {count} headers: at most {MAX_HEADERS} are taken")
        size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["query_string"])
        if size > MAX_HEADER_BYTES:
            raise ApiError(431, f"the request's headers have {size} bytes: at most {MAX_HEADER_BYTES} are taken")
        if origin and origin not in self._rules.origins and origin.split("://")[-1].lower() != host:
            raise ApiError(
                403, "this origin may not use the server: start it with --cors-origin to allow it", "permission_error"
            )
        if not self._rules.keys and _name_of(host) not in LOOPBACK_NAMES:
            raise ApiError(
                403,
                "without a key the server only answers to loopback names: start it with --api-key",
                "permission_error",
            )
        if self._rules.keys and seen.path not in OPEN_PATHS and not (seen.method == "OPTIONS" and origin):
            self._check_key(seen)
        length = seen.headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._rules.max_body_bytes:
            raise _too_large(self._rules.max_body_bytes)

    def _check_key(self, seen: _Seen) -> None:
        digest = hashlib.sha256(_key_of(seen.headers.get(b"authorization", b""))).digest()
        matches = [hmac.compare_digest(digest, key) for key in self._rules.keys]  # all of them, whichever fits
        if not any(matches):
            page = seen.path == "/" or seen.path.startswith("/ui/")
            challenge = 'Basic realm="kiloq", charset="UTF-8"' if page else "Bearer"
            raise ApiError(
                401, "a key is needed: send it as 'Authorization: Bearer KEY'", "authentication_error",
                "invalid_api_key", headers={"WWW-Authenticate": challenge},
            )  # fmt: skip

    async def _received(self, receive: Receive) -> Receive:
        """Takes the whole body, within its limits of size and time, and gives it to the application at once."""
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(BODY_S):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":  # gone away
                        return _replay([message], receive)
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._rules.max_body_bytes:
                        raise _too_large(self._rules.max_body_bytes)
        except TimeoutError:
            raise ApiError(408, f"the request's body did not come within {BODY_S:g} s: send it at once") from None
        return _replay([{"type": "http.request", "body": bytes(body), "more_body": False}], receive)

    def _record(self, seen: _Seen, scope: Scope) -> None:
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.perf_counter() - seen.began_s
        self._metrics.http(route, seen.status)
        log.info(
            "request",
            extra={"fields": {"id": seen.id, "method": seen.method, "route": route, "status": seen.status,
                              "seconds": round(seconds, 4)}},
        )  # fmt: skip


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Gives these messages first, then those that come."""

    async def receiving() -> Message:
        return messages.pop(0) if messages else await receive()

    return receiving


def _key_of(header: bytes) -> bytes:
    kind, _, value = header.partition(b" ")
    value = value.strip()
    if kind.lower() == b"bearer":
        return value
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _name_of(host: str) -> str:
    """The host without its port."""
    return host if host.endswith("]") else host.rsplit(":", 1)[0] if ":" in host else host


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request's body is larger than {most} bytes: send less at a time", code="body_too_large")


def _allowed(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"origin"),
    ]
