"""`Model`: what `kiloq.load` returns, and the whole Python interface of generation.

    model.generate("1 + 1 =", max_new_tokens=16, temperature=0)  -> Completion
    for piece in model.stream("Once"): ...                       -> complete UTF-8 pieces
    model.chat([{"role": "user", "content": "Hello!"}])          -> Completion
    model.logits([1, 2, 3])                                      -> float32 [T, V]

Keyword arguments are the fields of SamplingParams, over the defaults of the model's generation_config.json. Threads
may share a model; a process made by fork may not (PyTorch's threads stay behind).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import ContextError, UsageError
from kiloq.generate.arguments import conversation, token_ids
from kiloq.generate.backend import Backend
from kiloq.generate.engine import Engine, Limits
from kiloq.generate.params import SamplingParams
from kiloq.generate.records import Completion
from kiloq.generate.requests import Request
from kiloq.model.config import ModelConfig
from kiloq.tokenize.chatml import Message
from kiloq.tokenize.tokenizer import Tokenizer


class Stream:
    """An answer in the making: iterate for pieces of text, then read `completion`.

    Leaving the loop early, `cancel`, the end of a `with` block and dropping the stream stop the answer; `completion`
    then has the text so far and finish_reason "cancelled". Several streams may be read in turns.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine = engine
        self._request = request
        weakref.finalize(self, engine.cancel, request).atexit = False  # nobody can read it any more

    def __iter__(self) -> Iterator[str]:
        answer = self._request.answers[0]
        try:
            while True:
                ended = answer.completion is not None  # asked first: what another thread adds now is not lost
                while answer.pieces:
                    yield answer.pieces.popleft()
                if ended and self._request.error is None:
                    return
                self._engine.advance(self._request)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stops the answer; does nothing when it is complete."""
        if not self._request.done:
            self._engine.cancel(self._request)
            self._engine.end_cancelled()

    @property
    def completion(self) -> Completion:
        """The finished answer; runs it to its end if it is not. Raises what ended it when it failed."""
        self._engine.finish(self._request)
        finished = self._request.answers[0].completion
        assert finished is not None
        return finished

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()


class Model:
    """A loaded model with its tokenizer; threads may share it."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer | None,
        *,
        name: str,
        defaults: SamplingParams | None = None,
        eos_ids: tuple[int, ...] = (),
        warnings: Sequence[str] = (),
        limits: Limits | None = None,
        react: bool = False,
    ) -> None:
        """react: the model calls tools by Qwen-1's ReAct prompt, not by its template."""
        self.name = name
        self.react = react
        self.eos_ids = eos_ids
        self.defaults = defaults or SamplingParams()
        self.warnings = tuple(warnings)
        self.engine = Engine(backend, tokenizer, eos_ids, limits)
        self._tokenizer = tokenizer
        self._backend = backend

    @property
    def config(self) -> ModelConfig:
        """Sizes and switches of the network."""
        return self._backend.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; raises UsageError when its folder has none."""
        if self._tokenizer is None:
            raise UsageError(f"{self.name} has no tokenizer: give token ids, or put its tokenizer files in its folder")
        return self._tokenizer

    @property
    def backend(self) -> str:
        """Which engine runs the network, e.g. "torch"."""
        return self._backend.name

    @property
    def device(self) -> str:
        """Where it runs, e.g. "cpu"."""
        return self._backend.device

    @property
    def dtype(self) -> str:
        """Precision of the weights: fp32, bf16 or fp16."""
        return self._backend.dtype

    def generate(self, prompt: str | Iterable[int], **sampling: Any) -> Completion | list[Completion]:
        """Continues a raw prompt (text without control tokens, or ids); a list when n > 1."""
        return self._run(self.prompt_ids(prompt), sampling, continues=True)

    def stream(self, prompt: str | Iterable[int], **sampling: Any) -> Stream:
        """Like `generate`, piece by piece."""
        return self._stream(self.prompt_ids(prompt), sampling, continues=True)

    def chat(
        self, messages: Sequence[Message], tools: Sequence[Message] | None = None, **sampling: Any
    ) -> Completion | list[Completion]:
        """Answers a conversation of OpenAI message dicts; `.message` of the result continues it."""
        return self._run(self._chat_ids(messages, tools), sampling, continues=False)

    def stream_chat(
        self, messages: Sequence[Message], tools: Sequence[Message] | None = None, **sampling: Any
    ) -> Stream:
        """Like `chat`, piece by piece."""
        return self._stream(self._chat_ids(messages, tools), sampling, continues=False)

    def logits(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Logits [T, V] of every position in one uncached pass: the reference semantics of all other calls."""
        checked = token_ids(ids, name="ids")
        if not checked:
            raise UsageError("ids is empty: give at least one token id")
        self.engine.check_ids(checked)
        return self._backend.logits(checked)

    def embedding(self, text: str | Iterable[int]) -> NDArray[np.float32]:
        """The text as a vector [C] of length 1: the mean of the last hidden states. These are language models, not
        trained for this: texts alike have vectors alike, no more is promised."""
        ids = self.prompt_ids(text)
        if not 0 < len(ids) <= self.engine.max_length:
            raise ContextError(f"the text has {len(ids)} tokens: it can have 1 to {self.engine.max_length}")
        self.engine.check_ids(ids)
        mean_C = self._backend.pooled(ids)
        return mean_C / max(float(np.linalg.norm(mean_C)), 1e-12)

    def params(self, **sampling: Any) -> SamplingParams:
        """The model's defaults with some fields changed; checked."""
        return self.defaults.override(**sampling)

    def prompt_ids(self, prompt: str | Iterable[int]) -> list[int]:
        """The ids of a raw prompt: of a text, with the token that begins all texts where the model has one."""
        if not isinstance(prompt, str):
            return token_ids(prompt)
        start = [self.tokenizer.bos_id] if self.tokenizer.add_bos and self.tokenizer.bos_id is not None else []
        return [*start, *self.tokenizer.encode(prompt)]

    def _chat_ids(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> list[int]:
        return self.tokenizer.chat(conversation(messages), tools=tools)

    def _run(self, ids: list[int], sampling: dict[str, Any], *, continues: bool) -> Completion | list[Completion]:
        request = self.engine.submit(ids, self.params(**sampling), continues=continues)
        self.engine.finish(request)
        completions = [answer.completion for answer in request.answers if answer.completion is not None]
        return completions if request.params.n > 1 else completions[0]

    def _stream(self, ids: list[int], sampling: dict[str, Any], *, continues: bool) -> Stream:
        params = self.params(**sampling)
        if params.n != 1:
            raise UsageError(f"n is {params.n}: a stream has one answer; use generate or chat for several")
        return Stream(self.engine, self.engine.submit(ids, params, continues=continues))
