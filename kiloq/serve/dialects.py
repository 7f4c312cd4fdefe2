"""In which words an error is told: those of the dialect that the request's path belongs to.

DashScope's are {"code", "message", "request_id"}, with the codes of its table of status codes; everything outside
/api/v1 is OpenAI's. Source: "Status codes" in the documentation of Alibaba Cloud Model Studio.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Scope

from kiloq.serve.errors import ApiError
from kiloq.serve.stream import Json, error_response

DASHSCOPE = "/api/v1"

_CODES = {  # of our own codes, where DashScope has one that says more than the status
    "empty_input": "BadRequest.EmptyInput",
    "empty_model": "BadRequest.EmptyModel",
    "generation_failed": "InternalError.Algo",
    "model_not_found": "ModelNotFound",
    "unsupported_operation": "UnsupportedOperation",
}
_STATUSES = {
    401: "InvalidApiKey",
    403: "AccessDenied",
    404: "InvalidURL",
    405: "InvalidURL",
    413: "BadRequest.TooLarge",
    429: "Throttling",
    503: "ModelUnavailable",
    504: "RequestTimeOut",
}


def error_answer(scope: Scope, error: ApiError) -> Json:
    """A refusal in the shape of the path's dialect."""
    if not is_dashscope(scope):
        return error_response(error)
    return Json(dashscope_error(error, request_id(scope)), error.status, headers=error.headers)


def dashscope_error(error: ApiError, request: str) -> dict[str, str]:
    """DashScope's body."""
    other = "InternalError" if error.status >= 500 else "InvalidParameter"
    code = _CODES.get(error.code or "") or _STATUSES.get(error.status, other)
    return {"code": code, "message": error.message, "request_id": request}


def is_dashscope(scope: Scope) -> bool:
    """Whether the path is one of DashScope's."""
    path = str(scope["path"])
    return path == DASHSCOPE or path.startswith(DASHSCOPE + "/")


def request_id(scope: Scope) -> str:
    """The id that the guard gave to the request, which is also its x-request-id."""
    return str(scope.get("state", {}).get("request_id", ""))


def place_of(scope: Scope, location: Sequence[int | str]) -> str:
    """The field that pydantic complains about, from its (source, name, ...); "" for the whole body.

    Behind the name pydantic's own names may follow, but DashScope's fields are one step further inside.
    """
    return ".".join(map(str, location[1 : 3 if is_dashscope(scope) else 2]))
