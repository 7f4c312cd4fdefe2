"""Which activations a layer keeps for the backward pass: all, all but the feed-forward's, or its input alone.

What is not kept is computed again: a third more work for the whole layer (Chen et al. 2016), less for the feed-forward,
whose activations are the widest (Korthikanti et al. 2022 choose what is cheap for its size in the same way).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kiloq.model.network import Block, Network, run_block


def keep_activations(network: Network, mode: str) -> None:
    """Set how the layers of `network` are run: "none" computes nothing again, "selective", or "full"."""
    network.run_block = {"none": run_block, "selective": _selective, "full": _full}[mode]


def _full(block: nn.Module, x_BTC: Tensor, context: Any) -> Tensor:
    out_BTC: Tensor = checkpoint(block, x_BTC, context, use_reentrant=False)
    return out_BTC


def _selective(block: Any, x_BTC: Tensor, context: Any) -> Tensor:
    if not isinstance(block, Block):  # another process has this layer
        return run_block(block, x_BTC, context)
    x_BTC = x_BTC + block.self_attn(block.input_layernorm(x_BTC), context)
    out_BTC: Tensor = x_BTC + checkpoint(_feed_forward, block, x_BTC, use_reentrant=False)
    return out_BTC


def _feed_forward(block: Any, x_BTC: Tensor) -> Tensor:
    out_BTC: Tensor = block.mlp(block.post_attention_layernorm(x_BTC))
    return out_BTC
