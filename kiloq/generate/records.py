"""The nouns of generation: what an answer consists of, in plain dataclasses that turn into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer, as the OpenAI API names them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt's, that had been left in the cache by others

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Where the time went; the first token belongs to the prefill."""

    prefill_tokens: int
    prefill_s: float
    decode_tokens: int
    decode_s: float


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of one token under the model, before penalties, temperature and filters."""

    id: int
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()  # the likeliest tokens at this place, best first

    def to_json(self) -> dict[str, Any]:
        """The OpenAI shape: `bytes` are exact where `token` cannot be (a part of a character)."""
        shape: dict[str, Any] = {
            "id": self.id,
            "token": self.token_bytes.decode("utf-8", errors="replace"),
            "bytes": list(self.token_bytes),
            "logprob": self.logprob,
        }
        if self.top:
            shape["top_logprobs"] = [entry.to_json() for entry in self.top]
        return shape


@dataclass(frozen=True)
class Completion:
    """One finished answer."""

    text: str  # without end tokens and stop strings
    ids: tuple[int, ...]  # every generated token, a final end token included
    finish_reason: FinishReason  # stop: end token or stop string; length: a token limit; cancelled: by the caller
    usage: Usage
    timings: Timings
    seed: int  # given again, it gives the same answer
    logprobs: tuple[TokenLogprob, ...] | None = None  # one for each of `ids`
    index: int = 0  # which of the n answers

    @property
    def message(self) -> dict[str, Any]:
        """The answer as an OpenAI chat message."""
        return {"role": "assistant", "content": self.text}

    def to_json(self) -> dict[str, Any]:
        """A JSON object with everything."""
        shape: dict[str, Any] = {
            "index": self.index,
            "text": self.text,
            "ids": list(self.ids),
            "finish_reason": self.finish_reason,
            "usage": {**asdict(self.usage), "total_tokens": self.usage.total_tokens},
            "timings": asdict(self.timings),
            "seed": self.seed,
        }
        if self.logprobs is not None:
            shape["logprobs"] = [entry.to_json() for entry in self.logprobs]
        return shape
