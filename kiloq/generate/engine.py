"""The engine: requests in, events out, one step at a time, on any backend.

The life of a request: (1) `submit` checks that it can be answered and puts its answers into the queue; (2) each `step`
plans (`scheduler.py`) which of them get how many tokens, and runs them in one backend call; (3) a finished prompt forks
into its n answers; (4) each answer's next token is drawn, in that same call, and checked for an end; (5) its token
becomes text that is complete UTF-8 and free of stop strings (`answers.py`); (6) a finished answer frees its place in
the cache, leaves what others may use of it, and a Completion.

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
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from kiloq.core.errors import BusyError, ContextError, UsageError
from kiloq.generate.answers import Writer
from kiloq.generate.backend import Backend, Draw, Outcome, Row, drawn
from kiloq.generate.params import SamplingParams
from kiloq.generate.requests import Answer, Constraint, Request, Vocabulary
from kiloq.generate.samplers import make_sampler
from kiloq.generate.scheduler import MOST_RUNNING, Scheduler
from kiloq.generate.speculate import PromptLookup
from kiloq.generate.stop import StopMatcher

GLANCE_S = 0.02  # how often a thread that waits for another's step looks for what has come for it
MOST_GUESSING = 2  # answers at once: in larger batches a guess costs as much as a token that is sure


@dataclass(frozen=True)
class Limits:
    """What an engine may take."""

    cache_bytes: int | None = None  # of keys and values, all of which may be kept for reuse; None: as they come
    most_running: int = MOST_RUNNING  # answers in one step
    most_waiting: int | None = None  # answers in the queue; beyond it `submit` raises BusyError


class Engine:
    """Runs requests on one backend; threads may share it."""

    def __init__(
        self, backend: Backend, vocabulary: Vocabulary | None, eos_ids: Iterable[int], limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.backend = backend
        self.scheduler = Scheduler(backend, cache_bytes=self.limits.cache_bytes, most_running=self.limits.most_running)
        self._vocabulary = vocabulary
        self._writer = Writer(vocabulary, eos_ids, self.max_length)
        self._lock = threading.RLock()  # held by the thread that makes a step

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its answer: the model's context, or what the whole cache holds."""
        return self.scheduler.max_length

    def submit(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        continues: bool = False,
        constraint: Constraint | None = None,
        notify: Callable[[], None] | None = None,
    ) -> Request:
        """Queues a request; raises ContextError, UsageError or BusyError when it cannot be run.

        continues: the answer goes on with the prompt's text, instead of being a text of its own as in a chat.
        notify: called after each step that changed the request, by the thread that made the step.
        """
        self._check(prompt, params)
        waiting, most = len(self.scheduler.waiting), self.limits.most_waiting
        if most is not None and waiting and waiting + params.n > most:
            raise BusyError(f"{waiting} answers are waiting and the limit is {most}: try again later")
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(4), "little")
        request = Request(tuple(prompt), params, seed, time.perf_counter(), notify=notify)
        sampler = make_sampler(params, prompt)
        for index in range(params.n):
            answer = Answer(request, index, sampler.fork(), StopMatcher(params.stop))
            if self._vocabulary is not None:
                answer.decoder = self._vocabulary.stream(skip_special=True, continues=continues)
            if constraint is not None:
                answer.constraint = constraint.fork()
            if params.temperature:  # greedy draws nothing, and need not wait for numpy.random to be imported
                key = np.array([seed, index], dtype=np.uint64)  # NumPy makes a list with 2**63 a list of floats
                answer.random = np.random.Generator(np.random.Philox(key=key))
            request.answers.append(answer)
        self.scheduler.enqueue(request.answers)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request's answers at the next step, with what they have. Safe at any moment, in any thread."""
        for answer in request.answers:
            answer.cancelled = True

    def end_cancelled(self) -> None:
        """Ends the cancelled answers now, without a step."""
        with self._lock:
            for answer in self.scheduler.live():
                if answer.cancelled:
                    self._writer.finish(answer, "cancelled")
                    self.scheduler.remove(answer)
                    self._notify([answer])

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
        """Feeds the live answers once; False when there is nothing left to do."""
        with self._lock:
            self.end_cancelled()
            work = self.scheduler.plan()
            if work:
                self._feed(work)
            return bool(work)

    def forget(self) -> None:
        """Empties the cache of what ended answers have left for others."""
        with self._lock:
            self.scheduler.forget()

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises UsageError for an id that is not a row of the embedding."""
        vocabulary = self.backend.config.vocab_size
        for token in ids:
            if not 0 <= token < vocabulary:
                raise UsageError(f"token id {token} is outside the model's vocabulary of {vocabulary}")

    def _check(self, prompt: list[int], params: SamplingParams) -> None:
        if not prompt:
            raise UsageError("the prompt is empty: give at least one token")
        if len(prompt) >= self.max_length:
            raise ContextError(
                f"the prompt has {len(prompt)} tokens and the model's context is {self.max_length}: "
                "shorten the prompt so that there is room for an answer"
            )
        self.check_ids((*prompt, *params.stop_ids, *params.logit_bias))
        if params.stop and self._vocabulary is None:
            raise UsageError("stop strings need a tokenizer, and this model has none: use stop_ids")

    def _feed(self, work: list[tuple[Answer, int]]) -> None:
        behind = deque(answer for answer, _ in work)  # their caches may be ahead of what they know
        began = time.perf_counter()
        try:
            rows = [self._row(answer, end) for answer, end in work]
            outcomes = self.backend.step(rows)
            self.scheduler.took(sum(len(row.ids) for row in rows), time.perf_counter() - began)
            for row, outcome in zip(rows, outcomes, strict=True):
                answer = behind[0]
                self.scheduler.fed(answer, len(row.ids) - len(answer.guess) + max(len(outcome.tokens) - 1, 0))
                behind.popleft()
                if row.wanted or row.draw is not None:
                    self._continue_or_fail(answer, row, outcome)
        except BaseException:
            self.scheduler.restart(reversed(behind))
            raise
        finally:
            self._notify(answer for answer, _ in work)

    def _notify(self, answers: Iterable[Answer]) -> None:
        for request in {id(answer.request): answer.request for answer in answers}.values():
            if request.notify is not None:
                request.notify()

    def _row(self, answer: Answer, end: int) -> Row:
        ids = answer.tokens(answer.fed, end)
        params = answer.request.params
        answer.guess = []
        scored = params.prompt_logprobs is not None and answer.index == 0 and not answer.ids
        wanted = len(ids) if scored else 0
        if end < answer.length():
            return Row(answer.sequence, ids, answer.alpha, wanted=wanted)
        shared = not answer.ids and answer.index == 0 and params.n > 1  # its twins draw from them too
        picked = shared or answer.constraint is not None  # by `_pick`
        if picked or params.logprobs is not None:
            wanted = max(wanted, 1)
        elif not wanted:
            answer.guess = self._guess(answer)
        draw = None if picked else self._draw(answer)
        return Row(answer.sequence, [*ids, *answer.guess], answer.alpha, wanted=wanted, draw=draw)

    def _guess(self, answer: Answer) -> list[int]:
        """Tokens that may follow, as far as they can be verified: within the limits, at the same NTK stretch."""
        params = answer.request.params
        few = len(self.scheduler.running) <= MOST_GUESSING and self.backend.takes_guesses
        if not params.max_draft_tokens or not few or len(answer.ids) < params.min_new_tokens:
            answer.lookup = None  # what it does not see pushed it would not know
            return []
        if answer.lookup is None:
            answer.lookup = PromptLookup([*answer.request.prompt, *answer.ids])
        room = min(params.max_new_tokens - len(answer.ids), self.max_length - answer.length()) - 1
        guess = answer.lookup.guess(min(room, params.max_draft_tokens))
        while guess and self.scheduler.alpha(answer, answer.length() + len(guess)) != answer.alpha:
            guess.pop()
        return guess[: self.scheduler.room(answer, len(guess))]

    def _draw(self, answer: Answer) -> Draw:
        params = answer.request.params
        while len(answer.uniforms) <= len(answer.guess):
            answer.uniforms.append(float(answer.random.random()) if answer.random else 0.0)
        vocabulary = self.backend.config.vocab_size
        early = len(answer.ids) < params.min_new_tokens
        banned = [*self._writer.eos_ids, *params.stop_ids] if early else []
        uniforms = [answer.uniforms[i] for i in range(len(answer.guess) + 1)]
        return Draw(answer.sampler, uniforms, [token for token in banned if token < vocabulary])

    def _continue_or_fail(self, answer: Answer, row: Row, outcome: Outcome) -> None:
        try:
            self._continue(answer, row, outcome)
        except BaseException as error:
            self.cancel(answer.request)
            if not isinstance(error, Exception):
                raise
            answer.request.error = error
            self.end_cancelled()

    def _continue(self, answer: Answer, row: Row, outcome: Outcome) -> None:
        request = answer.request
        if request.params.prompt_logprobs is not None and answer.index == 0 and not answer.ids:
            begin = answer.fed - len(row.ids) + 1
            del request.prompt_logprobs[begin - 1 :]  # it may have been put back in the middle
            tokens = request.prompt[begin : answer.fed + 1]
            assert outcome.logits_NV is not None
            self._writer.score(request, tokens, outcome.logits_NV[: len(tokens)])
            if answer.fed < answer.length():
                return
        if not answer.ids:
            answer.first_token_s = time.perf_counter()
            for twin in request.answers[1:] if answer.index == 0 else []:
                if not twin.ids and twin.sequence is None and not twin.cancelled and self.scheduler.fork(answer, twin):
                    twin.first_token_s = answer.first_token_s
                    self._take(twin, self._pick(twin, outcome))
        self._take(answer, outcome if outcome.tokens or outcome.error else self._pick(answer, outcome))

    def _take(self, answer: Answer, outcome: Outcome) -> None:
        self._writer.take(answer, outcome)
        if answer.completion is not None:
            self.scheduler.remove(answer)

    def _pick(self, answer: Answer, outcome: Outcome) -> Outcome:
        """The answer's own token from logits that it may share with others, or that a constraint changes first."""
        assert outcome.logits_NV is not None
        logits_V = np.ascontiguousarray(outcome.logits_NV[-1])
        own_V = logits_V if answer.constraint is None else answer.constraint.apply(logits_V)
        picked = drawn(Row(None, [], answer.alpha, draw=self._draw(answer)), own_V[None])
        return Outcome(outcome.logits_NV, picked.tokens, picked.error)
