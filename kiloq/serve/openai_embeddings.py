"""POST /v1/embeddings: the mean of a text's last hidden states. The models here are not trained for it; docs/serve.md
and the path's description in /openapi.json say so."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from kiloq.serve.errors import ApiError
from kiloq.serve.fields import Body, Token, inputs_of
from kiloq.serve.service import Service

MAX_INPUTS = 256


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: str | list[str] | list[Token] | list[list[Token]]
    encoding_format: Annotated[str, Field(max_length=20)] = "float"
    dimensions: int | None = None


async def embeddings(service: Service, body: EmbeddingBody) -> dict[str, Any]:
    """The answer."""
    name = service.check_name(body.model)
    if body.encoding_format not in ("float", "base64"):
        raise ApiError(
            400, f"encoding_format is {body.encoding_format!r}: it can be float or base64", param="encoding_format"
        )
    if body.dimensions not in (None, service.model.config.hidden_size):
        raise ApiError(
            400, f"dimensions is {body.dimensions}: this model's vectors have {service.model.config.hidden_size}", param="dimensions"
        )  # fmt: skip
    vectors, tokens = await embedded(service, inputs_of(body.input))
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


async def embedded(service: Service, inputs: list[Any]) -> tuple[list[NDArray[np.float32]], int]:
    """Vectors of texts or token ids, and the tokens of all. Beside the engine's own steps: one text at a time, whoever
    asks, so that many askers take neither all threads nor all of the processor."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise ApiError(400, f"input has {len(inputs)} texts: it can have 1 to {MAX_INPUTS}", param="input")
    model = service.model
    vectors, tokens = [], 0
    for each in inputs:
        ids = await run_in_threadpool(model.prompt_ids, each)
        tokens += len(ids)
        async with service.embedding_turn:
            vectors.append(await run_in_threadpool(model.embedding, ids))
    return vectors, tokens


def _written(vector: NDArray[np.float32], form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
