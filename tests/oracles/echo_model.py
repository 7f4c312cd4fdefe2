"""A model without weights, with the interface of `kiloq.generate.model.Model`: it answers from the question.

    ask "settings?"    it answers with its sampling fields as JSON
    ask "messages?"    it answers with the messages it got as JSON
    ask "escape!"      it answers with terminal control sequences
    ask "long!"        it answers with 500 numbers, one a piece
    anything else      "echo: " and the question, one character a piece

Tokens are characters. `seen` keeps what every call got.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from kiloq.core.errors import ContextError
from kiloq.generate.params import SamplingParams
from kiloq.generate.records import Completion, Timings, Usage


class EchoTokenizer:
    """One id a character; a message costs 4 more, as the marks of ChatML do."""

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def chat(self, messages: Any, tools: Any = None) -> list[int]:
        return [code for message in messages for code in (1, *self.encode(message["content"]), 2, 3, 4)]


class EchoStream:
    def __init__(self, pieces: list[str], delay_s: float, prompt_tokens: int, params: SamplingParams) -> None:
        self._pieces, self._delay_s, self._prompt_tokens, self._params = pieces, delay_s, prompt_tokens, params
        self._text = ""
        self._reason = "cancelled"
        self._cancelled = False

    def __iter__(self) -> Iterator[str]:
        for count, piece in enumerate(self._pieces):
            if self._cancelled:
                return
            if count == self._params.max_new_tokens:
                self._reason = "length"
                return
            time.sleep(self._delay_s)
            self._text += piece
            yield piece
        self._reason = "stop"

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def completion(self) -> Completion:
        count = len(self._text)
        usage, timings = Usage(self._prompt_tokens, count), Timings(self._prompt_tokens, 0.5, count, 2.0)
        return Completion(self._text, tuple(map(ord, self._text)), self._reason, usage, timings, seed=0)

    def __enter__(self) -> EchoStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()


class EchoModel:
    name, dtype, device, backend = "echo", "fp32", "cpu", "echo"

    def __init__(self, *, delay_s: float = 0.0, context: int = 1000, warnings: tuple[str, ...] = ()) -> None:
        self.config = SimpleNamespace(max_length=context)
        self.defaults = SamplingParams(temperature=0.7)
        self.tokenizer = EchoTokenizer()
        self.warnings = warnings
        self.seen: list[tuple[Any, dict[str, Any]]] = []
        self._delay_s = delay_s

    def generate(self, prompt: str, **sampling: Any) -> Any:
        return self._all(self.tokenizer.encode(prompt), prompt, prompt, sampling)

    def stream(self, prompt: str, **sampling: Any) -> EchoStream:
        return self._stream(self.tokenizer.encode(prompt), prompt, prompt, sampling)

    def chat(self, messages: Any, tools: Any = None, **sampling: Any) -> Any:
        return self._all(self.tokenizer.chat(messages), messages, messages[-1]["content"], sampling)

    def stream_chat(self, messages: Any, tools: Any = None, **sampling: Any) -> EchoStream:
        return self._stream(self.tokenizer.chat(messages), messages, messages[-1]["content"], sampling)

    def _all(self, ids: list[int], prompt: Any, question: str, sampling: dict[str, Any]) -> Any:
        streams = [self._stream(ids, prompt, question, sampling) for _ in range(sampling.get("n", 1))]
        for stream in streams:
            list(stream)
        completions = [replace(stream.completion, index=index) for index, stream in enumerate(streams)]
        return completions if len(completions) > 1 else completions[0]

    def _stream(self, ids: list[int], prompt: Any, question: str, sampling: dict[str, Any]) -> EchoStream:
        params = self.defaults.override(**sampling)
        if len(ids) >= self.config.max_length:
            raise ContextError(f"the prompt has {len(ids)} tokens, the context is {self.config.max_length}: shorten it")
        self.seen.append((prompt, sampling))
        pieces = {
            "settings?": [json.dumps(sampling, sort_keys=True, ensure_ascii=False)],
            "messages?": [json.dumps(prompt, ensure_ascii=False)],
            "escape!": ["red \x1b[31m", "title \x1b]0;owned\x07", "clip \x9b5n", " end\r\n"],
            "long!": [f"{number} " for number in range(500)],
        }.get(question, list(f"echo: {question}"))
        return EchoStream(pieces, self._delay_s, len(ids), params)
