"""The bodies of OpenAI's requests, as far as we read them: types are strict, unknown fields are let pass.

Ranges of sampling fields are checked where they are used (`SamplingParams`), so that all doors have the same limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kiloq.serve.errors import ApiError
from kiloq.serve.service import MAX_CHOICES, MAX_STOPS

MOST_TOKENS = 1 << 31  # as in SamplingParams; what is longer than the context has a sentence of its own

Token = Annotated[int, Field(ge=0)]
Texts = str | list[str]


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None


def inputs_of(given: str | Sequence[Any]) -> list[Any]:
    """One or several inputs, each a text or a list of token ids, as a list."""
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    return [given] if one else list(given)


class StreamOptions(BaseModel):
    """What a stream has besides text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampled(Body):
    """The fields of chat and text completions alike; sampling beyond OpenAI's has vLLM's names."""

    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Texts | None = None
    stop_token_ids: list[Token] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self) -> dict[str, Any]:
        """The fields of SamplingParams that were given."""
        named = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": None if self.seed is None else self.seed & (1 << 64) - 1,
            "stop_ids": self.stop_token_ids,
            "ignore_eos": self.ignore_eos,
            "min_new_tokens": self.min_tokens,
            "n": self.n,
        }
        given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if self.stop is not None:
            stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            if len(stops) > MAX_STOPS:
                raise ApiError(400, f"stop has {len(stops)} texts: at most {MAX_STOPS} are taken", param="stop")
            given["stop"] = stops
        if self.logit_bias:
            given["logit_bias"] = {_token(key): bias for key, bias in self.logit_bias.items()}
        return given


def _token(key: str) -> int:
    if not key.isdecimal() or len(key) > 10:
        raise ApiError(400, f"logit_bias has the key {key!r:.40}: keys are token ids", param="logit_bias")
    return int(key)


class ResponseFormat(BaseModel):
    """text, json_object, json_schema; regex, grammar and choice are ours."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    json_schema: dict[str, Any] | None = None


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    continue_final_message: bool = False
    chat_template: str | None = None


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None
    best_of: int | None = None


class TokenizeBody(Body):
    """POST /tokenize: a text or a conversation."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: list[Token]
