"""What the engine needs of a machine that runs the network: sequences with caches, and one call for many rows.

The native backend lives in `native_backend.py`, the PyTorch one in `torch_backend.py`. Rows are independent by
contract: a row's logits must not depend on the other rows of the call, nor on how its tokens were cut into calls.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import KiloqError, UsageError
from kiloq.generate.samplers import Sampler
from kiloq.model.config import ModelConfig

# Tokens of a prompt in one call; ours: long enough for full matrix speed, short enough to stop soon.
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class Draw:
    """How a row's next token is picked by the call itself; the sampler counts what it picks.

    With more than one uniform number the last tokens of the row are guesses: the token behind each is drawn too, as
    long as the guesses are what was drawn. Those that were not are forgotten, in the sequence's cache as well.
    """

    sampler: Sampler
    uniforms: Sequence[float]  # in [0, 1); one more than guesses
    banned: Sequence[int] = ()


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence in one call."""

    sequence: Any  # what `open` or `fork` returned
    ids: list[int]
    alpha: float  # dynamic-NTK stretch of the whole sequence
    wanted: int = 0  # logits of so many of the last tokens
    draw: Draw | None = None  # what follows the last token


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a call makes of a row: what was asked for, or why its token could not be picked."""

    logits_NV: NDArray[np.float32] | None = None  # of the last N tokens
    tokens: tuple[int, ...] = ()
    error: KiloqError | None = None


class Backend(Protocol):
    """Runs sequences; the engine owns the policy."""

    name: str
    config: ModelConfig
    dtype: str
    device: str
    takes_guesses: bool  # whether a Draw may have several uniform numbers
    exact_cuts: bool  # whether a row's bits do not depend on how its tokens were cut into calls
    block_tokens: int  # tokens of a block of the cache, all layers together
    block_bytes: int
    cache_limit_bytes: int

    def open(self, pages: Sequence[Any] = ()) -> Any:
        """A new sequence: empty, or with the tokens of pages. None where a window needs what the pages lack."""

    def page(self, sequence: Any, index: int) -> Any:
        """What the cache holds of block `index` of a sequence, for others that begin with the same tokens."""

    def fork(self, sequence: Any) -> Any:
        """A copy of a sequence and its cache."""

    def step(self, rows: list[Row]) -> list[Outcome]:
        """Runs all rows."""

    def pooled(self, ids: list[int]) -> NDArray[np.float32]:
        """The mean [C] over all positions of what the output head sees: the final norm's outputs."""

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits [T, V] of all positions in one uncached pass."""


def drawn(row: Row, logits_NV: NDArray[np.float32] | None) -> Outcome:
    """The outcome of a row whose last tokens have these logits, for a backend that does not draw by itself."""
    given_NV = logits_NV if row.wanted else None
    if row.draw is None or logits_NV is None:
        return Outcome(given_NV)
    try:
        token = row.draw.sampler.sample(logits_NV[-1], row.draw.uniforms[0], list(row.draw.banned))
    except KiloqError as error:
        return Outcome(error=error)
    row.draw.sampler.accept(token)
    return Outcome(given_NV, (token,))


def check_process(loaded_by: int) -> None:
    """Raises UsageError in a process that was forked from the one that loaded the model: its threads did not come along,
    and the first matrix would wait for them for ever."""
    if os.getpid() != loaded_by:
        raise UsageError(
            f"the model was loaded by process {loaded_by} and this is {os.getpid()}, forked from it: load the "
            "model in each process, or start processes with multiprocessing's 'spawn'"
        )
