"""Tokens to the sum of their losses: the network, or a stage of it, with the loss on top, as one module.

Where processes share the vocabulary, each has the logits of its own rows, and the sums over all rows are made by
all-reduce; where they share a sequence, each has the losses of its own tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kiloq.model.network import Network
from kiloq.train.loss import chunked_cross_entropy
from kiloq.train.parallel.ring import own_positions
from kiloq.train.parallel.vocabulary import VocabularyPart
from kiloq.train.parallel.world import World
from kiloq.train.settings import Recipe


class Learner(nn.Module):
    """What FSDP2, DeepSpeed and the pipeline wrap."""

    def __init__(self, network: Network, recipe: Recipe, world: World) -> None:
        super().__init__()
        self.network, self._recipe, self._world = network, recipe, world
        ranks = world.ranks("context")
        self._own_T = own_positions(recipe.sequence, world.at("context"), ranks) if ranks > 1 else None

    def forward(self, ids_BT: Tensor, segments_BT: Tensor | None = None, z_loss: float = 0.0) -> Tensor:
        """ids_BT: int64 [B, T + 1], each to be predicted from those before it. The sum of the losses, float32."""
        inputs_BT, labels_BT = self.own(ids_BT)
        return self.loss(self.hidden(inputs_BT, segments_BT), labels_BT, z_loss)

    def own(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the tokens of this process."""
        inputs_BT, labels_BT = ids_BT[:, :-1], ids_BT[:, 1:]
        if self._own_T is None:
            return inputs_BT, labels_BT
        return inputs_BT[:, self._own_T], labels_BT[:, self._own_T]

    def hidden(self, x: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """What the network, or the stage, makes of ids [B, T] or of the hidden states before it [B, T, C]."""
        positions_BT = None if self._own_T is None else self._own_T.to(x.device)[None]
        with self._precision():
            return self.network.hidden(x, segments_BT=segments_BT, positions_BT=positions_BT)

    def loss(self, x_BTC: Tensor, labels_BT: Tensor, z_loss: float) -> Tensor:
        """Hidden states behind the final norm to the sum of the losses."""
        head = self.network.lm_head
        matrix_VC: Any = self.network.embed_tokens.weight if head is None else head.weight
        part = None
        if self._world.ranks("tensor") > 1:
            x_BTC, matrix_VC, part = _gathered(x_BTC, matrix_VC, self._world)
        with self._precision():
            return chunked_cross_entropy(
                x_BTC.flatten(0, 1), matrix_VC, labels_BT.flatten(), self._recipe.loss_chunk, z_loss, part
            )

    def _precision(self) -> AbstractContextManager[Any]:
        """bf16 matrix products where the recipe wants them."""
        if self._recipe.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._world.device.type, torch.bfloat16)


def _gathered(x_BTC: Any, matrix_VC: Any, world: World) -> tuple[Tensor, Tensor, VocabularyPart]:
    """All tokens, and the rows of the vocabulary that are ours. The gradient of x is a part of a sum over processes."""
    from torch.distributed.tensor import Partial, Replicate

    group = world.mesh["tensor"].get_group()
    whole_BTC = x_BTC.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    rows_VC = matrix_VC.to_local()
    return whole_BTC, rows_VC, VocabularyPart(group, world.at("tensor") * rows_VC.shape[0])
