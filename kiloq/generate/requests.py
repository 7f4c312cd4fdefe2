"""What the engine works on: a request, its answers in the making, and what it needs of a vocabulary and a constraint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiloq.generate.params import SamplingParams
from kiloq.generate.records import Completion, TokenLogprob
from kiloq.generate.samplers import Sampler
from kiloq.generate.speculate import PromptLookup
from kiloq.generate.stop import StopMatcher


class Decoder(Protocol):
    """Turns ids into text pieces that are complete UTF-8."""

    def push(self, token: int) -> str:
        """Text that became complete with this token; UsageError, and no change, when it has no text."""

    def flush(self) -> str:
        """What is left at the end."""


class Vocabulary(Protocol):
    """The part of a tokenizer that the engine uses."""

    def stream(self, *, skip_special: bool = False, continues: bool = False) -> Decoder:
        """A fresh decoder; `continues` keeps a leading space that some vocabularies put before every text."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; UsageError when it has no text."""


class Constraint(Protocol):
    """What an answer's text may be, token by token (`constrain.py`)."""

    def apply(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy in which the tokens that may not follow are -inf."""

    def accept(self, token: int) -> None:
        """The answer goes on with `token`."""

    @property
    def done(self) -> bool:
        """Whether the text is complete, and nothing may follow."""

    def fork(self) -> Constraint:
        """A copy, for another answer to the same prompt."""


@dataclass(eq=False)
class Request:
    """A prompt with its parameters; the answers appear in `answers`, one for each of n."""

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    submitted_s: float
    answers: list[Answer] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)  # of its second token, its third, ...
    error: Exception | None = None  # what ended it, when it could not be answered
    notify: Callable[[], None] | None = None  # called after a step that changed it, by the thread that made the step

    @property
    def done(self) -> bool:
        """True when every answer has a Completion."""
        return all(answer.completion is not None for answer in self.answers)


@dataclass(eq=False)
class Answer:
    """One of the n answers of a request, while it is being made and after."""

    request: Request
    index: int
    sampler: Sampler
    stops: StopMatcher
    decoder: Decoder | None = None
    constraint: Constraint | None = None
    random: np.random.Generator | None = None  # None: greedy
    # What is known of it so far.
    pieces: deque[str] = field(default_factory=deque)  # text that was not taken yet
    completion: Completion | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cancelled: bool = False
    first_token_s: float = 0.0
    reused_tokens: int = 0  # of the prompt, that others had left in the cache
    # Its place in the cache; see scheduler.py.
    sequence: Any = None
    fed: int = 0  # tokens of prompt + ids that are in the sequence's cache
    alpha: float = 1.0
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # of whole blocks of tokens, from the first on
    published: int = 0  # blocks that others can find, or that need not be looked at again
    # The next tokens.
    uniforms: deque[float] = field(default_factory=deque)  # one is used up by a token, not by a step
    lookup: PromptLookup | None = None
    guess: list[int] = field(default_factory=list)  # in the row that is being run

    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.request.prompt) + len(self.ids)

    def tokens(self, start: int, end: int) -> list[int]:
        """Part of prompt and answer laid end to end."""
        prompt = self.request.prompt
        if start >= len(prompt):
            return self.ids[start - len(prompt) : end - len(prompt)]
        return [*prompt[start:end], *self.ids[: max(0, end - len(prompt))]]
