"""The loss where each process has some rows of the vocabulary: its logits never meet those of the others.

Three numbers a token are brought together: the largest logit, the sum of exponentials, and the logit of the label.
Source: Shoeybi et al. 2019, section 3.

Shapes: N tokens, V rows of this process.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class VocabularyPart(NamedTuple):
    """Which rows a process has: those from `first` on."""

    group: Any
    first: int

    def log_z(self, logits_NV: Tensor) -> Tensor:
        """The logarithm of the sum of exponentials over the whole vocabulary, [N]."""
        most_N = logits_NV.amax(-1)
        dist.all_reduce(most_N, dist.ReduceOp.MAX, self.group)
        sums_N = (logits_NV - most_N[:, None]).exp_().sum(-1)
        dist.all_reduce(sums_N, group=self.group)
        return most_N + sums_N.log_()

    def inside(self, labels_N: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Each label's place among the `rows` rows of this process, and whether it has one: others have place 0."""
        places_N = labels_N - self.first
        ours_N = (places_N >= 0) & (places_N < rows)
        return torch.where(ours_N, places_N, 0), ours_N

    def total(self, values_N: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        dist.all_reduce(values_N, group=self.group)
        return values_N
