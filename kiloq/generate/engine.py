"""The engine: requests in, events out, one step at a time, on any backend.

The life of a request: (1) `submit` checks that the prompt fits and opens a sequence; (2) each `step` feeds every
waiting prompt one chunk and every running answer one token, in one backend call; (3) a finished prompt forks into its
n answers; (4) each answer's next token is drawn, in that same call, and checked for an end; (5) its token becomes
text that is complete UTF-8 and free of stop strings; (6) a finished answer frees its sequence and leaves a Completion.

Dynamic NTK belongs to the request: before a token is fed, the alpha of the length it makes is compared with the one
its cache was built with; when it differs the cache is forgotten and the whole sequence run again, so that every
logit equals the one of an uncached pass at that length. `ntk="frozen"` keeps the prompt's alpha, as the original did.

Threads may share an engine: whoever waits for an answer drives the steps of all of them, one thread at a time.
Whatever ends a step early, Ctrl-C included, leaves the engine usable: caches that may be half written are built again
from their ids, and what goes wrong with one answer is told to the one who waits for it and touches no other.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import ContextError, UsageError
from kiloq.generate.backend import Backend, Draw, Outcome, Row, drawn
from kiloq.generate.params import SamplingParams
from kiloq.generate.records import Completion, FinishReason, Timings, TokenLogprob, Usage
from kiloq.generate.samplers import Sampler, make_sampler
from kiloq.generate.speculate import PromptLookup
from kiloq.generate.stop import StopMatcher
from kiloq.model.ntk import ntk_alpha

PREFILL_CHUNK = 512  # ours: long enough for full matrix speed, short enough to stop within a moment
GLANCE_S = 0.02  # how often a thread that waits for another's step looks for what has come for it


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


@dataclass(eq=False)
class Request:
    """A prompt with its parameters; the answers appear in `answers`, one for each of n."""

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    submitted_s: float
    answers: list[Answer] = field(default_factory=list)
    error: Exception | None = None  # what ended it, when it could not be answered

    @property
    def done(self) -> bool:
        """True when every answer has a Completion."""
        return all(answer.completion is not None for answer in self.answers)


@dataclass(eq=False)
class Answer:
    """One of the n answers of a request, while it is being made and after."""

    request: Request
    index: int
    pieces: deque[str] = field(default_factory=deque)  # text that was not taken yet
    completion: Completion | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cancelled: bool = False
    sequence: Any = None
    fed: int = 0  # tokens of prompt + ids that are in the sequence's cache
    alpha: float = 1.0
    first_token_s: float = 0.0
    decoder: Decoder | None = None
    stops: StopMatcher | None = None
    sampler: Sampler | None = None
    random: np.random.Generator | None = None  # None: greedy
    uniforms: deque[float] = field(
        default_factory=deque
    )  # of the next tokens; one is used up by a token, not by a step
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
        return [*prompt, *self.ids][start:end]


class Engine:
    """Runs requests on one backend; threads may share it."""

    def __init__(self, backend: Backend, vocabulary: Vocabulary | None, eos_ids: tuple[int, ...]) -> None:
        self.backend = backend
        self._vocabulary = vocabulary
        self._eos_ids = frozenset(eos_ids)
        self._running: list[Answer] = []
        self._lock = threading.RLock()  # held by the thread that makes a step

    def submit(self, prompt: list[int], params: SamplingParams, *, continues: bool = False) -> Request:
        """Queues a request; raises ContextError or UsageError when it cannot be run.

        continues: the answer goes on with the prompt's text, instead of being a text of its own as in a chat.
        """
        self._check(prompt, params)
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(4), "little")
        request = Request(tuple(prompt), params, seed, time.perf_counter())
        first = Answer(request, 0, sequence=self.backend.open())
        first.alpha = self._alpha(first, len(prompt))
        request.answers = [first, *(Answer(request, index) for index in range(1, params.n))]
        sampler = make_sampler(params, prompt)
        for answer in request.answers:
            if self._vocabulary is not None:
                answer.decoder = self._vocabulary.stream(skip_special=True, continues=continues)
            answer.stops = StopMatcher(params.stop)
            answer.sampler = sampler.fork()
            if params.temperature:  # greedy draws nothing, and need not wait for numpy.random to be imported
                key = np.array([seed, answer.index], dtype=np.uint64)  # NumPy makes a list with 2**63 a list of floats
                answer.random = np.random.Generator(np.random.Philox(key=key))
        self._running.append(first)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request's answers at the next step, with what they have. Safe at any moment, in any thread."""
        for answer in request.answers:
            answer.cancelled = True

    def end_cancelled(self) -> None:
        """Ends the cancelled answers now, without a step."""
        with self._lock:
            for answer in [a for a in self._running if a.cancelled]:
                self._cancel(answer)

    def advance(self, request: Request) -> None:
        """Brings a request that is not done further: one step, or a moment's wait while another thread makes one.

        Raises the error that ended the request.
        """
        try:
            if self._lock.acquire(timeout=GLANCE_S) and not request.done:
                self.step()
        finally:  # whatever `acquire` returned, if it did: Ctrl-C may come after it has the lock and before it tells
            try:  # noqa: SIM105 - the call of suppress() would be another such moment
                self._lock.release()
            except RuntimeError:
                pass  # another thread has it
        if request.error is not None:
            raise request.error

    def finish(self, request: Request) -> None:
        """Runs a request to its end. Leaving early, by an error or Ctrl-C, ends it too. Raises what ended it."""
        try:
            while not request.done:
                self.advance(request)
        finally:
            if not request.done:
                self.cancel(request)
                self.end_cancelled()
        if request.error is not None:
            raise request.error

    def step(self) -> bool:
        """Feeds every live answer once; False when there is nothing left to do."""
        with self._lock:
            self.end_cancelled()
            live = list(self._running)
            if live:
                self._feed(live)
            return bool(live)

    def _feed(self, live: list[Answer]) -> None:
        behind = deque(live)  # their caches may be ahead of what they know
        try:
            rows = [self._next_row(answer) for answer in live]
            for row, outcome in zip(rows, self.backend.step(rows), strict=True):
                answer = behind.popleft()
                answer.fed += len(row.ids) - len(answer.guess) + max(len(outcome.tokens) - 1, 0)
                if (row.want_logits or row.draw is not None) and answer.completion is None:
                    self._continue_or_fail(answer, outcome)
        except BaseException:
            for answer in behind:
                answer.sequence, answer.fed = self.backend.open(), 0
            raise

    def _continue_or_fail(self, answer: Answer, outcome: Outcome) -> None:
        try:
            self._continue(answer, outcome)
        except BaseException as error:
            self.cancel(answer.request)
            if not isinstance(error, Exception):
                raise
            answer.request.error = error
            self.end_cancelled()

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises UsageError for an id that is not a row of the embedding."""
        vocabulary = self.backend.config.vocab_size
        for token in ids:
            if not 0 <= token < vocabulary:
                raise UsageError(f"token id {token} is outside the model's vocabulary of {vocabulary}")

    def _check(self, prompt: list[int], params: SamplingParams) -> None:
        limit = self.backend.config.max_length
        if not prompt:
            raise UsageError("the prompt is empty: give at least one token")
        if len(prompt) >= limit:
            raise ContextError(
                f"the prompt has {len(prompt)} tokens and the model's context is {limit}: "
                "shorten the prompt so that there is room for an answer"
            )
        self.check_ids((*prompt, *params.stop_ids, *params.logit_bias))
        if params.stop and self._vocabulary is None:
            raise UsageError("stop strings need a tokenizer, and this model has none: use stop_ids")

    def _alpha(self, answer: Answer, length: int) -> float:
        config = self.backend.config
        frozen = answer.request.params.ntk == "frozen"
        length = len(answer.request.prompt) if frozen else length
        return ntk_alpha(length, config.train_length) if config.dynamic_ntk else 1.0

    def _next_row(self, answer: Answer) -> Row:
        alpha = self._alpha(answer, answer.length())
        if alpha != answer.alpha:
            self.backend.clear(answer.sequence)
            answer.alpha, answer.fed = alpha, 0
        end = min(answer.fed + PREFILL_CHUNK, answer.length())
        ids = answer.tokens(answer.fed, end)
        if end < answer.length():
            return Row(answer.sequence, ids, alpha)
        shared = not answer.ids and answer.index == 0 and answer.request.params.n > 1  # its twins draw from them too
        with_logits = shared or answer.request.params.logprobs is not None
        answer.guess = [] if with_logits else self._guess(answer)
        draw = None if shared else self._draw(answer)
        return Row(answer.sequence, [*ids, *answer.guess], alpha, want_logits=with_logits, draw=draw)

    def _guess(self, answer: Answer) -> list[int]:
        """Tokens that may follow, as far as they can be verified: within the limits, at the same NTK stretch."""
        params, config = answer.request.params, self.backend.config
        if not params.max_draft_tokens or not self.backend.takes_guesses or len(answer.ids) < params.min_new_tokens:
            return []
        if answer.lookup is None:
            answer.lookup = PromptLookup([*answer.request.prompt, *answer.ids])
        room = min(params.max_new_tokens - len(answer.ids), config.max_length - answer.length()) - 1
        guess = answer.lookup.guess(min(room, params.max_draft_tokens))
        while guess and self._alpha(answer, answer.length() + len(guess)) != answer.alpha:
            guess.pop()
        return guess

    def _draw(self, answer: Answer) -> Draw:
        params = answer.request.params
        assert answer.sampler is not None
        while len(answer.uniforms) <= len(answer.guess):
            answer.uniforms.append(float(answer.random.random()) if answer.random else 0.0)
        vocabulary = self.backend.config.vocab_size
        banned = [*self._eos_ids, *params.stop_ids] if len(answer.ids) < params.min_new_tokens else []
        uniforms = [answer.uniforms[i] for i in range(len(answer.guess) + 1)]
        return Draw(answer.sampler, uniforms, [token for token in banned if token < vocabulary])

    def _continue(self, answer: Answer, outcome: Outcome) -> None:
        request = answer.request
        if not answer.ids:
            answer.first_token_s = time.perf_counter()
            for twin in request.answers[1:] if answer.index == 0 else []:
                if twin.sequence is None and not twin.cancelled:
                    twin.sequence = self.backend.fork(answer.sequence)
                    twin.fed, twin.alpha, twin.first_token_s = answer.fed, answer.alpha, answer.first_token_s
                    self._running.append(twin)
                    self._take(twin, self._pick(twin, outcome))
        self._take(answer, outcome if outcome.tokens or outcome.error else self._pick(answer, outcome))

    def _pick(self, answer: Answer, outcome: Outcome) -> Outcome:
        """The answer's own token from logits that several answers share."""
        return drawn(Row(None, [], answer.alpha, want_logits=True, draw=self._draw(answer)), outcome.logits_V)

    def _take(self, answer: Answer, outcome: Outcome) -> None:
        """The next token is known, or the next few: shows them."""
        if outcome.error is not None:
            raise outcome.error
        count, sampler = answer.request.params.logprobs, answer.sampler
        if answer.lookup is not None:
            if answer.guess:
                answer.lookup.learn(len(answer.guess), len(outcome.tokens) - 1)
            for token in outcome.tokens:
                answer.lookup.push(token)
        for token in outcome.tokens:
            if count is not None and outcome.logits_V is not None and sampler is not None:
                answer.logprobs.append(self._logprob(sampler, outcome.logits_V, token, count))
            answer.uniforms.popleft()
            answer.ids.append(token)
            self._emit(answer, token)
            if answer.completion is not None:  # what was drawn behind the end is not part of the answer
                return

    def _emit(self, answer: Answer, token: int) -> None:
        """Turns the newest token into text, and ends the answer where it must end."""
        params, stops = answer.request.params, answer.stops
        assert stops is not None
        ended = token in params.stop_ids or (token in self._eos_ids and not params.ignore_eos)
        if not ended and answer.decoder is not None:
            self._show(answer, stops.push(self._text(answer.decoder, token)))
        if ended or stops.stopped:
            self._finish(answer, "stop")
        elif len(answer.ids) >= params.max_new_tokens or answer.length() >= self.backend.config.max_length:
            self._finish(answer, "length")

    def _show(self, answer: Answer, piece: str) -> None:
        if piece:
            answer.text += piece
            answer.pieces.append(piece)

    def _finish(self, answer: Answer, reason: FinishReason) -> None:
        assert answer.stops is not None
        if answer.decoder is not None:
            self._show(answer, answer.stops.push(answer.decoder.flush()))
            self._show(answer, answer.stops.flush())
        if answer.stops.stopped:
            reason = "stop"
        request, now = answer.request, time.perf_counter()
        first_s = answer.first_token_s or now
        answer.completion = Completion(
            text=answer.text,
            ids=tuple(answer.ids),
            finish_reason=reason,
            usage=Usage(len(request.prompt), len(answer.ids)),
            timings=Timings(
                len(request.prompt), first_s - request.submitted_s, max(len(answer.ids) - 1, 0), now - first_s
            ),
            seed=request.seed,
            logprobs=tuple(answer.logprobs) if request.params.logprobs is not None else None,
            index=answer.index,
        )
        answer.sequence = None
        if answer in self._running:
            self._running.remove(answer)

    def _cancel(self, answer: Answer) -> None:
        self._finish(answer, "cancelled")
        for twin in answer.request.answers:  # those that wait for this one's prompt will never start
            if twin.completion is None and twin not in self._running:
                self._finish(twin, "cancelled")

    def _logprob(self, sampler: Sampler, logits_V: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
        own, best = sampler.logprobs(logits_V, token, count)
        top = tuple(TokenLogprob(other, self._bytes(other), logprob) for other, logprob in best)
        return TokenLogprob(token, self._bytes(token), own, top)

    def _text(self, decoder: Decoder, token: int) -> str:
        try:
            return decoder.push(token)
        except UsageError:  # a row that only pads the embedding: random weights choose such
            return ""

    def _bytes(self, token: int) -> bytes:
        try:
            return self._vocabulary.token_bytes(token) if self._vocabulary else b""
        except UsageError:
            return b""
