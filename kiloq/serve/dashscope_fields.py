"""The bodies of DashScope's requests, as far as we read them: {"model", "input", "parameters"}.

What is asked is either a list of messages, or a prompt with the older history of {"user", "bot"}; both become one
conversation. Unknown fields are let pass, and with them what a local model has no use for: enable_search, plugins,
enable_thinking, thinking_budget. Source: the requests of the dashscope package 2.0.2, and DashScope's API reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kiloq.core.errors import UsageError
from kiloq.serve.errors import ApiError
from kiloq.serve.fields import Body, ResponseFormat, Sampled, Token


class Turn(BaseModel):
    """A question and its answer, in the older form."""

    model_config = ConfigDict(extra="ignore", strict=True)

    user: str
    bot: str = ""


class Asked(BaseModel):
    """`input` of a generation."""

    model_config = ConfigDict(extra="ignore", strict=True)

    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    history: list[Turn] | None = None

    @property
    def is_text(self) -> bool:
        """Whether there is nothing but a prompt."""
        return bool(self.prompt) and not self.messages and not self.history

    def conversation(self) -> list[Mapping[str, Any]]:
        """All of it as messages; a prompt beside messages is the last question, as the SDK puts it."""
        found = [_with_text_parts(message) for message in self.messages or ()]
        for turn in self.history or ():
            found += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.bot}]
        if self.prompt:
            found.append({"role": "user", "content": self.prompt})
        elif not self.messages:
            raise UsageError("input has neither messages nor a prompt: give one of them")
        return found


class Parameters(Sampled):
    """`parameters` of a generation. Sampling that DashScope has no name for has that of the other dialects."""

    result_format: Literal["text", "message"] | None = None
    incremental_output: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    stop_sequences: list[list[Token]] = Field(default_factory=list, description="a form of `stop`: several tokens")

    @model_validator(mode="before")
    @classmethod
    def _sorted_stops(cls, given: Any) -> Any:
        """`stop` may be token ids, or lists of them: these are put where the rest of the server looks for them."""
        stop = given.get("stop") if isinstance(given, dict) else None
        if not isinstance(stop, list) or not stop or not all(isinstance(each, int | list) for each in stop):
            return given
        lists = [each if isinstance(each, list) else [each] for each in stop]
        single, longer = [each[0] for each in lists if len(each) == 1], [each for each in lists if len(each) != 1]
        return {**given, "stop": None, "stop_token_ids": single or None, "stop_sequences": longer}

    def sampling(self) -> dict[str, Any]:
        """The fields of SamplingParams that were given."""
        given = super().sampling()
        if self.max_tokens is not None:
            given["max_new_tokens"] = self.max_tokens
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        return given


class GenerationBody(Body):
    """POST /api/v1/services/aigc/text-generation/generation."""

    input: Asked | None = None
    parameters: Parameters | None = None


class TokenizerBody(Body):
    """POST /api/v1/tokenizer."""

    input: Asked | None = None


class Texts(BaseModel):
    """`input` of embeddings."""

    model_config = ConfigDict(extra="ignore", strict=True)

    texts: list[str]


class EmbeddingParameters(BaseModel):
    """`parameters` of embeddings; text_type and instruct are for models that were trained with them."""

    model_config = ConfigDict(extra="ignore", strict=True)

    dimension: int | None = None
    output_type: Literal["dense", "sparse", "dense&sparse"] | None = None

    def check(self, length: int) -> None:
        """Raises ApiError for vectors that a model with hidden states of this length does not have."""
        if self.dimension not in (None, length):
            raise ApiError(400, f"parameters.dimension is {self.dimension}: this model's vectors have {length}")
        if self.output_type not in (None, "dense"):
            raise ApiError(400, f"parameters.output_type is {self.output_type!r}: this model's vectors are 'dense'")


class TextsBody(Body):
    """POST /api/v1/services/embeddings/text-embedding/text-embedding."""

    input: Texts | None = None
    parameters: EmbeddingParameters | None = None


def _with_text_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """DashScope's parts {"text": ...} with the type that the other dialects give to them."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        {"type": "text", "text": part["text"]} if isinstance(part, dict) and list(part) == ["text"] else part
        for part in content
    ]
    return {**message, "content": parts}
