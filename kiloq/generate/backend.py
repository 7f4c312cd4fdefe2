"""What the engine needs of a machine that runs the network: sequences with caches, and one call for many rows.

The native backend lives in `native_backend.py`, the PyTorch one in `torch_backend.py`. Rows are independent by
contract: a row's logits must not depend on the other rows of the call, nor on how its tokens were cut into calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import KiloqError
from kiloq.generate.samplers import Sampler
from kiloq.model.config import ModelConfig


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
    want_logits: bool = False  # of the last token
    draw: Draw | None = None  # what follows the last token


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a call makes of a row: what was asked for, or why its token could not be picked."""

    logits_V: NDArray[np.float32] | None = None
    tokens: tuple[int, ...] = ()
    error: KiloqError | None = None


class Backend(Protocol):
    """Runs sequences; the engine owns the policy."""

    name: str
    config: ModelConfig
    dtype: str
    device: str
    takes_guesses: bool  # whether a Draw may have several uniform numbers

    def open(self) -> Any:
        """A new, empty sequence."""

    def fork(self, sequence: Any) -> Any:
        """A copy of a sequence and its cache."""

    def clear(self, sequence: Any) -> None:
        """Forgets the sequence's tokens, so that it can be run again with another alpha."""

    def step(self, rows: list[Row]) -> list[Outcome]:
        """Runs all rows."""

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits [T, V] of all positions in one uncached pass."""


def drawn(row: Row, logits_V: NDArray[np.float32] | None) -> Outcome:
    """The outcome of a row whose last token has these logits, for a backend that does not draw by itself."""
    if row.draw is None or logits_V is None:
        return Outcome(logits_V if row.want_logits else None)
    try:
        token = row.draw.sampler.sample(logits_V, row.draw.uniforms[0], list(row.draw.banned))
    except KiloqError as error:
        return Outcome(error=error)
    row.draw.sampler.accept(token)
    return Outcome(logits_V if row.want_logits else None, (token,))
