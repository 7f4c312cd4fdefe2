"""Random weights for a new model, as the original drew them.

Every matrix and the embedding from N(0, 0.02), biases zero, norms one; the two matrices of a layer that write into
the residual stream from a distribution narrower by sqrt(2 * layers), so that its variance does not grow with depth.
Source: the released code of 2023; GPT-2 paper, section 2.3, for the residual scaling.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kiloq.model.config import ModelConfig
from kiloq.model.network import Network

RESIDUAL_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def init_weights(network: Network, seed: int) -> None:
    """Fills all parameters in place."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(drawn(name, parameter.shape, network.config, seed))


def drawn(name: str, shape: Sequence[int], config: ModelConfig, seed: int) -> Tensor:
    """The first value of one parameter, float32 on the CPU: each has a stream of its own, whoever else is drawn."""
    if len(shape) == 1:
        return torch.zeros(*shape) if name.endswith("bias") else torch.ones(*shape)
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
    narrowed = math.sqrt(2 * config.num_layers) if name.removesuffix(".weight").endswith(RESIDUAL_WRITERS) else 1.0
    return torch.empty(*shape).normal_(0.0, config.init_std / narrowed, generator=generator)
