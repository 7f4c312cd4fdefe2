"""Random weights for a new model, as the original drew them.

Every matrix and the embedding from N(0, 0.02), biases zero, norms one; the two matrices of a layer that write into
the residual stream from a distribution narrower by sqrt(2 * layers), so that its variance does not grow with depth.
Source: the released code of 2023; GPT-2 paper, section 2.3, for the residual scaling.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from kiloq.model.network import Network, RMSNorm

RESIDUAL_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def init_weights(network: Network, seed: int) -> None:
    """Fills all parameters in place; the same seed gives the same weights on the same device."""
    config = network.config
    generator = torch.Generator(device=network.embed_tokens.weight.device).manual_seed(seed)
    residual_std = config.init_std / math.sqrt(2 * config.num_layers)
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                std = residual_std if name.endswith(RESIDUAL_WRITERS) else config.init_std
                module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
