"""What the engine needs of a machine that runs the network: sequences with caches, and one call for many rows.

The PyTorch backend lives in `torch_backend.py`. Rows are independent by contract: a row's logits must not depend on
the other rows of the call, nor on how its tokens were cut into calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiloq.model.config import ModelConfig


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence in one call."""

    sequence: Any  # what `open` or `fork` returned
    ids: list[int]
    alpha: float  # dynamic-NTK stretch of the whole sequence
    want_logits: bool  # of the last token


class Backend(Protocol):
    """Runs sequences; the engine owns the policy."""

    name: str
    config: ModelConfig
    dtype: str
    device: str

    def open(self) -> Any:
        """A new, empty sequence."""

    def fork(self, sequence: Any) -> Any:
        """A copy of a sequence and its cache."""

    def clear(self, sequence: Any) -> None:
        """Forgets the sequence's tokens, so that it can be run again with another alpha."""

    def step(self, rows: list[Row]) -> list[NDArray[np.float32] | None]:
        """Runs all rows; logits [V] of each row's last token where wanted."""

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits [T, V] of all positions in one uncached pass."""
