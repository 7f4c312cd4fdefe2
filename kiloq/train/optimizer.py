"""AdamW as the original ran it, and the learning rate of a step.

Matrices decay and norms and biases do not, as in GPT-3 (Brown et al. 2020, appendix B) and every code since; the
report does not say. PyTorch's fused kernel does the arithmetic in one pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from kiloq.train.settings import Optimizer


def make_optimizer(parameters: Sequence[nn.Parameter], settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over some parameters, in two groups; `set_rate` gives them their rate before every step."""
    matrices = [p for p in parameters if p.requires_grad and p.dim() >= 2]
    others = [p for p in parameters if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=settings.peak_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True
    )


def rate(settings: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step 0, 1, …: a line up to the peak, then a cosine down to its final share at the end."""
    if step < settings.warmup_steps:
        return settings.peak_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    share = settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return settings.peak_rate * share


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give all groups the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value
