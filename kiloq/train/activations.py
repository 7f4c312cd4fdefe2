"""Which activations a layer keeps for the backward pass: all, all but the feed-forward's, or its input alone.

What is not kept is computed again: a third more work for the whole layer (Chen et al. 2016), less for the feed-forward,
whose activations are the widest (Korthikanti et al. 2022 choose what is cheap for its size in the same way).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kiloq.model.network import Block, Network


def keep_activations(network: Network, mode: str) -> None:
    """Set what the layers of `network` keep: "none" computes nothing again, "selective", or "full"."""
    if mode == "full":
        network.run_block = _full
    if mode == "selective":
        for block in network.layers:
            if isinstance(block, Block):
                again = partial(checkpoint, block.feed_forward, use_reentrant=False)
                block.feed_forward = again  # type: ignore[method-assign]


def _full(block: nn.Module, x_BTC: Tensor, context: Any) -> Tensor:
    out_BTC: Tensor = checkpoint(block, x_BTC, context, use_reentrant=False)
    return out_BTC
