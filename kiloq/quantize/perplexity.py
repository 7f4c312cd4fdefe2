"""Perplexity from the final hidden states of windows: exp of the mean negative log-likelihood of each next token.

Every window starts afresh, so a token sees only those before it in its window. Logits are made some hundred tokens at
a time: with 152,000 rows of vocabulary those of a whole window would take more memory than the layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TOKENS_AT_ONCE = 256


@torch.no_grad()
def perplexity(states: Sequence[Tensor], samples: Sequence[Sequence[int]], head_VC: Tensor) -> float:
    """Of `samples` (ids), whose hidden states [T, C] behind the final norm are `states`."""
    total, count = 0.0, 0
    for x_TC, ids in zip(states, samples, strict=True):
        targets_T = torch.tensor(ids[1:])
        for begin in range(0, len(targets_T), TOKENS_AT_ONCE):
            end = min(begin + TOKENS_AT_ONCE, len(targets_T))
            loss = F.cross_entropy(F.linear(x_TC[begin:end], head_VC).float(), targets_T[begin:end], reduction="sum")
            total, count = total + float(loss), count + end - begin
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf
