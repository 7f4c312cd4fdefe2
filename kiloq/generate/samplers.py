"""A sampler belongs to one answer: it knows the rules, the prompt's tokens, and counts the answer's as they come.

The native one is in C++ (`kiloq/native/src/sampler.h`), for any backend; `NumpySampler` has the same rules where the
extension is not built, by the functions of `sampling.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from kiloq import native
from kiloq.generate import sampling
from kiloq.generate.params import SamplingParams

RULES = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias",
)  # fmt: skip


class Sampler(Protocol):
    """Picks the tokens of one answer."""

    def sample(self, logits: NDArray[np.float32], uniform: float, banned: list[int]) -> int:
        """The token that `uniform` in [0, 1) picks from logits [V]; KiloqError when they are not numbers."""

    def accept(self, token: int) -> None:
        """Counts a token of the answer."""

    def logprobs(self, logits: NDArray[np.float32], token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
        """Log-probability of `token`, and the `count` likeliest with theirs, of the raw logits [V]."""

    def fork(self) -> Sampler:
        """A copy, for another answer to the same prompt."""


class NumpySampler:
    """See `Sampler`."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        self._prompt = frozenset(prompt) if params.repetition_penalty != 1.0 else frozenset()
        self._counts: Counter[int] = Counter()

    def sample(self, logits: NDArray[np.float32], uniform: float, banned: list[int]) -> int:
        """See `Sampler`."""
        steered = sampling.penalise(logits, self._params, self._prompt, self._counts, banned)
        return sampling.choose(steered, self._params, uniform)

    def accept(self, token: int) -> None:
        """See `Sampler`."""
        self._counts[token] += 1

    def logprobs(self, logits: NDArray[np.float32], token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
        """See `Sampler`."""
        logprobs_V = sampling.log_softmax(logits)
        return float(logprobs_V[token]), sampling.top_logprobs(logprobs_V, count)

    def fork(self) -> NumpySampler:
        """See `Sampler`."""
        copy = NumpySampler(self._params, ())
        copy._prompt, copy._counts = self._prompt, self._counts.copy()
        return copy


def make_sampler(params: SamplingParams, prompt: Sequence[int]) -> Sampler:
    """A sampler for a new answer to `prompt`."""
    engine = native.engine()
    if engine is None:
        return NumpySampler(params, prompt)
    rules = {name: getattr(params, name) for name in RULES}
    return cast(Sampler, engine.Sampler(**rules, prompt=list(prompt)))
