"""What goes wrong with a request, as one value that each dialect writes in its own shape.

Texts that leave the process are our own sentences: those of KiloqError, which are written for people, and fixed ones.
No exception's own words are ever among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kiloq.core.errors import BusyError, ContextError, KiloqError, UsageError

OURS = "the server could not answer this request: it is our mistake, and its log has the details"


@dataclass
class ApiError(Exception):
    """A refusal or failure, with OpenAI's names for what kind it is."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def openai(self) -> dict[str, object]:
        """OpenAI's body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def api_error(error: Exception) -> ApiError:
    """What to tell about an exception; nothing but that it happened, where it is not made for people."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, BusyError):
        return ApiError(429, str(error), "rate_limit_error", "queue_full", headers={"Retry-After": "1"})
    if isinstance(error, UsageError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, KiloqError):
        return ApiError(500, str(error), "server_error", "generation_failed")
    return ApiError(500, OURS, "server_error", "internal_error")


def unavailable(message: str) -> ApiError:
    """The server is loading, draining, or has failed."""
    return ApiError(503, message, "unavailable_error", "unavailable", headers={"Retry-After": "2"})


def not_found(what: str) -> ApiError:
    """There is no such model or page."""
    return ApiError(404, what, code="not_found")
