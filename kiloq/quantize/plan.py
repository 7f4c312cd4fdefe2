"""What a quantisation will need on this machine, part by part: memory and time by formula and one short measurement.

Operations are counted as in `kiloq.model.flops`; the speed of products is measured on a product of the size that
dominates. Both figures are estimates and are called so.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from kiloq.core import machine
from kiloq.model.config import ModelConfig
from kiloq.model.flops import forward_flops
from kiloq.model.shapes import layer_shapes
from kiloq.quantize.settings import Settings

BASE_BYTES = 450_000_000  # PyTorch itself, measured
COLUMN_SECONDS = 1e-4  # of GPTQ's work on one column that no product pays for, measured
COLUMN_BANDWIDTH = 6e9  # bytes/s at which a block of columns is corrected, measured
HESSIAN_SHARE = 0.6  # of a Hessian is computed, the rest mirrored
FACTOR_SHARE = 0.35  # speed of float64 factorisations relative to float32 products, measured


@dataclass(frozen=True)
class Plan:
    """Estimates for one run."""

    memory_bytes: dict[str, int]  # by part; their sum is the peak
    seconds: dict[str, float]  # by part, all layers
    available_bytes: int | None
    gflops: float  # measured

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory_bytes.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is below what is free; True where that is unknown."""
        return self.available_bytes is None or self.peak_bytes <= self.available_bytes


def make_plan(
    config: ModelConfig, settings: Settings, calibration_tokens: int, evaluation_tokens: int, length: int
) -> Plan:
    """The plan for samples of `length` tokens, with so many tokens in all."""
    c, speed = config, measured_flops()
    uses_inputs = settings.method == "gptq" and calibration_tokens > 0
    widths = [shape[1] for shape in layer_shapes(c).values() if len(shape) == 2]
    layer_bytes = 4 * sum(math.prod(shape) for shape in layer_shapes(c).values())
    widest = max(widths)
    memory = {
        "PyTorch": BASE_BYTES,
        "one layer, float32, before and after": 2 * layer_bytes,
        "hidden states of the samples": 8 * c.hidden_size * (calibration_tokens + 2 * evaluation_tokens),
        "inputs of the widest matrix": 4 * widest * max(calibration_tokens, length),
        "Hessian and its factor": (4 + 3 * 8) * widest**2 if uses_inputs else 0,
        "output head and logits": 4 * c.hidden_size * c.vocab_size if evaluation_tokens else 0,
    }
    passes = calibration_tokens + 2 * evaluation_tokens
    forward = forward_flops(c, length, logits=0) / length
    inputs = (c.hidden_size, c.hidden_size, c.num_heads * c.head_dim, c.ffn_size)  # of matrices that share a Hessian
    hessians = 2 * c.num_layers * sum(HESSIAN_SHARE * width**2 for width in inputs)
    factors = 4 / 3 * sum(width**3 for width in inputs) / (speed * FACTOR_SHARE)
    correction = 128 * layer_bytes / COLUMN_BANDWIDTH
    seconds = {
        "forward passes": passes * forward / speed,
        "Hessians": calibration_tokens * hessians / speed if uses_inputs else 0.0,
        "rounding": c.num_layers * (
            factors + sum(inputs) * COLUMN_SECONDS + correction if uses_inputs else layer_bytes / 5e7
        ),
        "logits for perplexity": 4 * evaluation_tokens * c.hidden_size * c.vocab_size / speed,
    }  # fmt: skip
    return Plan(memory, seconds, machine.memory()[1], speed / 1e9)


def measured_flops() -> float:
    """Operations a second of a float32 product of 512 tokens with a 2048 x 2048 matrix, now; a fifth of a second."""
    import torch

    x_TC, w_CC = torch.ones(512, 2048), torch.ones(2048, 2048)
    torch.mm(x_TC, w_CC)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        torch.mm(x_TC, w_CC)
        rounds += 1
    return 2 * 512 * 2048 * 2048 * rounds / (time.perf_counter() - began)
