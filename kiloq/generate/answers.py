"""From drawn tokens to an answer: text that is complete UTF-8, ends, log-probabilities, and the Completion at last."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import UsageError
from kiloq.generate.backend import Outcome
from kiloq.generate.records import Completion, FinishReason, Timings, TokenLogprob, Usage
from kiloq.generate.requests import Answer, Decoder, Request, Vocabulary
from kiloq.generate.samplers import Sampler


class Writer:
    """Writes the answers of one model."""

    def __init__(self, vocabulary: Vocabulary | None, eos_ids: Iterable[int], max_length: int) -> None:
        self._vocabulary = vocabulary
        self.eos_ids = frozenset(eos_ids)
        self._max_length = max_length

    def take(self, answer: Answer, outcome: Outcome) -> None:
        """The next token is known, or the next few: shows them. Ends the answer where it must end."""
        if outcome.error is not None:
            raise outcome.error
        count = answer.request.params.logprobs
        if answer.lookup is not None:
            if answer.guess:
                answer.lookup.learn(len(answer.guess), len(outcome.tokens) - 1)
            for token in outcome.tokens:
                answer.lookup.push(token)
        for token in outcome.tokens:
            if count is not None and outcome.logits_NV is not None:
                answer.logprobs.append(self.logprob(answer.sampler, outcome.logits_NV[-1], token, count))
            answer.uniforms.popleft()
            answer.ids.append(token)
            self._emit(answer, token)
            if answer.completion is not None:  # what was drawn behind the end is not part of the answer
                return
            if answer.constraint is not None:
                answer.constraint.accept(token)
                if answer.constraint.done:  # also where an end token was forbidden
                    self.finish(answer, "stop")
                    return

    def score(self, request: Request, tokens: Sequence[int], logits_NV: NDArray[np.float32]) -> None:
        """The log-probabilities of some of the prompt's tokens, each with the logits before it."""
        count, sampler = request.params.prompt_logprobs or 0, request.answers[0].sampler
        for token, logits_V in zip(tokens, logits_NV, strict=True):
            request.prompt_logprobs.append(self.logprob(sampler, np.ascontiguousarray(logits_V), token, count))

    def finish(self, answer: Answer, reason: FinishReason) -> None:
        """Ends an answer with what it has."""
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
            usage=Usage(len(request.prompt), len(answer.ids), answer.reused_tokens),
            timings=Timings(
                len(request.prompt), first_s - request.submitted_s, max(len(answer.ids) - 1, 0), now - first_s
            ),
            seed=request.seed,
            logprobs=tuple(answer.logprobs) if request.params.logprobs is not None else None,
            index=answer.index,
        )

    def logprob(self, sampler: Sampler, logits_V: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
        """A token's log-probability under these logits, and those of the `count` likeliest."""
        own, best = sampler.logprobs(logits_V, token, count)
        top = tuple(TokenLogprob(other, self._bytes(other), logprob) for other, logprob in best)
        return TokenLogprob(token, self._bytes(token), own, top)

    def _emit(self, answer: Answer, token: int) -> None:
        """Turns the newest token into text, and ends the answer where it must end."""
        params = answer.request.params
        ended = token in params.stop_ids or (token in self.eos_ids and not params.ignore_eos)
        if not ended and answer.decoder is not None:
            self._show(answer, answer.stops.push(self._text(answer.decoder, token)))
        if ended or answer.stops.stopped:
            self.finish(answer, "stop")
        elif len(answer.ids) >= params.max_new_tokens or answer.length() >= self._max_length:
            self.finish(answer, "length")

    def _show(self, answer: Answer, piece: str) -> None:
        if piece:
            answer.text += piece
            answer.pieces.append(piece)

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
