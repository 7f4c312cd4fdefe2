"""The engine's native backend: all rows of a step in one call of the C++ decoder, without PyTorch.

A row's logits are the same to the last bit whatever else is in the call, however its tokens were cut into calls and
however many threads run it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import KiloqError
from kiloq.generate.backend import PREFILL_CHUNK, Outcome, Row, check_process
from kiloq.generate.sampling import NOT_NUMBERS
from kiloq.model.config import ModelConfig
from kiloq.model.ntk import ntk_alpha

LOGITS_TOKENS = 256  # of `logits`, in one call: bounds what the head's output takes


class NativeBackend:
    """See `Backend`."""

    name = "native"
    device = "cpu"
    takes_guesses = True
    exact_cuts = True

    def __init__(self, decoder: Any, config: ModelConfig, *, dtype: str, kv: str, threads: int) -> None:
        self._decoder = decoder
        self.block_tokens: int = decoder.block_tokens
        self.block_bytes: int = decoder.cache_block_bytes * config.num_layers
        self.cache_limit_bytes: int = decoder.cache_limit_bytes
        self._process = os.getpid()
        self.config = config
        self.dtype = dtype
        self.kv = kv
        self.threads = threads

    def open(self, pages: Sequence[Any] = ()) -> Any:
        """A new sequence, empty or with the tokens of pages; None where a layer's window has let go what it needs."""
        return self._decoder.open(list(pages))

    def page(self, sequence: Any, index: int) -> Any:
        """A block of a sequence, which stays in the cache as long as the page does."""
        return sequence.page(index)

    def fork(self, sequence: Any) -> Any:
        """A copy of a sequence that shares its cache until one of them writes."""
        return sequence.fork()

    def step(self, rows: list[Row]) -> list[Outcome]:
        """Runs all rows, and draws the tokens that are asked for."""
        given = []
        for row in rows:
            draw = row.draw and (row.draw.sampler, list(row.draw.uniforms), list(row.draw.banned))
            given.append((row.sequence, row.ids, row.alpha, row.wanted, draw))
        logits_NV, drawn = self._run(given)
        outcomes, begin = [], 0
        for row, tokens in zip(rows, drawn, strict=True):
            own_NV = logits_NV[begin : begin + row.wanted] if row.wanted else None
            begin += row.wanted
            failed = row.draw is not None and not tokens
            outcomes.append(Outcome(error=KiloqError(NOT_NUMBERS)) if failed else Outcome(own_NV, tokens))
        return outcomes

    def pooled(self, ids: list[int]) -> NDArray[np.float32]:
        """The mean [C] over all positions of the final norm's outputs."""
        check_process(self._process)
        config, sequence = self.config, self.open()
        alpha = ntk_alpha(len(ids), config.train_length) if config.dynamic_ntk else 1.0
        sums_C = np.zeros(config.hidden_size)
        for start in range(0, len(ids), PREFILL_CHUNK):  # others may make a step in between
            self._decoder.pool(sequence, np.array(ids[start : start + PREFILL_CHUNK], np.int32), alpha, sums_C)
        return np.asarray(sums_C / len(ids), dtype=np.float32)

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits [T, V] of all positions in one uncached pass."""
        config, sequence = self.config, self.open()
        alpha = ntk_alpha(len(ids), config.train_length) if config.dynamic_ntk else 1.0
        pieces = [ids[start : start + LOGITS_TOKENS] for start in range(0, len(ids), LOGITS_TOKENS)]
        parts = [self._run([(sequence, piece, alpha, len(piece), None)])[0] for piece in pieces]
        return np.concatenate(parts)

    def _run(
        self, rows: list[tuple[Any, list[int], float, int, Any]]
    ) -> tuple[NDArray[np.float32], list[tuple[int, ...]]]:
        """Logits [all wanted, V], and the tokens that each row drew."""
        check_process(self._process)
        given = [(sequence, np.array(ids, np.int32), *rest) for sequence, ids, *rest in rows]
        interruptible = threading.current_thread() is threading.main_thread()  # only there do signals arrive
        logits_NV, drawn = self._decoder.step(given, interruptible)
        return logits_NV[:, : self.config.vocab_size], drawn
