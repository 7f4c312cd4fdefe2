"""How a batch goes through the network of this process: straight, micro-batch by micro-batch, or along a pipeline.

Both sum gradients into the parameters and return the sum of the losses that this process has computed; over all
processes these add up to the batch's loss, once for every process that shares a vocabulary.
Sources: Huang et al. 2019 (GPipe); Narayanan et al. 2021 (1F1B and its interleaved form). The schedules are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kiloq.model.network import Network
from kiloq.train.batches import Array, Sequences
from kiloq.train.learner import Learner
from kiloq.train.parallel.build import spread
from kiloq.train.parallel.world import World
from kiloq.train.plan import PARTS_A_STAGE
from kiloq.train.settings import Recipe


class Passes(Protocol):
    """What the loop needs of either way."""

    modules: list[nn.Module]
    networks: list[Network]

    def gradients(self, rows: Sequences, tokens: int) -> float:
        """Adds the gradients of the sum of losses / `tokens` to the parameters; returns what of it was computed here."""
        ...

    def losses(self, ids_BT: Array) -> float:
        """The sum of the losses of some rows, as far as it was computed here; no gradients."""
        ...


def stages_here(recipe: Recipe, world: World) -> tuple[list[int], int]:
    """Which stages this process has, and how many there are."""
    ranks = world.ranks("pipeline")
    each = PARTS_A_STAGE if recipe.parallel.schedule == "interleaved" and ranks > 1 else 1
    return [world.at("pipeline") + ranks * number for number in range(each)], ranks * each


def make_passes(networks: list[Network], recipe: Recipe, world: World) -> Passes:
    """The way that the recipe wants, for the stages of this process."""
    learners = [Learner(network, recipe, world) for network in networks]
    if world.ranks("pipeline") == 1:
        return Straight(learners[0], recipe, world)
    return Pipelined(learners, recipe, world)


class Straight:
    """One stage: everything but the pipeline."""

    def __init__(self, learner: Learner, recipe: Recipe, world: World) -> None:
        spread(learner, world, recipe.precision)
        self.modules: list[nn.Module] = [learner]
        self.networks = [learner.network]
        self._learner, self._recipe, self._device = learner, recipe, world.device

    def gradients(self, rows: Sequences, tokens: int) -> float:
        """As Passes."""
        total, recipe = 0.0, self._recipe
        for begin in range(0, len(rows.ids_BT), width := recipe.micro_batch or len(rows.ids_BT)):
            some = slice(begin, begin + width)
            if hasattr(self._learner, "set_requires_all_reduce"):  # shards add up every time: whole sums need memory
                self._learner.set_requires_all_reduce(begin + width >= len(rows.ids_BT))  # type: ignore[operator]
            segments_BT = put(rows.segments_BT[some, :-1], self._device) if recipe.block_diagonal else None
            ids_BT = put(rows.ids_BT[some], self._device)
            loss: Tensor = self._learner(ids_BT, segments_BT, recipe.optimizer.z_loss) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def losses(self, ids_BT: Array) -> float:
        """As Passes."""
        width = self._recipe.micro_batch or self._recipe.batch
        parts = (ids_BT[begin : begin + width] for begin in range(0, len(ids_BT), width))
        with torch.no_grad():
            return sum(float(self._learner(put(part, self._device))) for part in parts)


class _Stage(nn.Module):
    """A learner as a stage: hidden states to hidden states. The schedule computes the loss."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """What the stage makes of what comes to it."""
        return self.learner.hidden(x, segments_BT)


class Pipelined:
    """Some stages of a pipeline."""

    def __init__(self, learners: list[Learner], recipe: Recipe, world: World) -> None:
        self.modules: list[nn.Module] = [_Stage(learner) for learner in learners]
        self.networks = [learner.network for learner in learners]
        self._learners, self._recipe, self._world = learners, recipe, world
        for module in self.modules:
            spread(module, world, recipe.precision)
        self._numbers, self._stages = stages_here(recipe, world)

    def gradients(self, rows: Sequences, tokens: int) -> float:
        """As Passes."""
        segments_BT = put(rows.segments_BT[:, :-1], self._world.device) if self._recipe.block_diagonal else None
        schedule = self._schedule(len(rows.ids_BT), tokens, self._recipe.optimizer.z_loss)
        return self._run(schedule.step, rows.ids_BT, segments_BT)

    def losses(self, ids_BT: Array) -> float:
        """As Passes."""
        total = 0.0
        for begin in range(0, len(ids_BT), width := self._recipe.micro_batch or 1):
            part = ids_BT[begin : begin + width]
            with torch.no_grad():
                total += self._run(self._schedule(len(part), 1, 0.0, len(part)).eval, part, None)
        return total

    def _run(self, go: Callable[..., Any], ids_BT: Array, segments_BT: Tensor | None) -> float:
        inputs_BT, labels_BT = self._learners[-1].own(put(ids_BT, self._world.device))
        losses: list[Tensor] = []
        arguments = [inputs_BT] if 0 in self._numbers else []
        more: dict[str, Any] = {} if segments_BT is None else {"segments_BT": segments_BT}
        if self._stages - 1 in self._numbers:
            more |= {"target": labels_BT, "losses": losses}
        go(*arguments, **more)
        return sum(float(loss.detach()) for loss in losses)

    def _schedule(self, rows: int, tokens: int, z_loss: float, width: int | None = None) -> Any:
        """PyTorch's schedule for `rows` rows, of which `width` go together."""
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

        width = width or self._recipe.micro_batch or max(1, rows // self._world.ranks("pipeline"))
        group = self._world.mesh["pipeline"].get_group()
        stages: list[Any] = [
            PipelineStage(module, number, self._stages, self._world.device, *self._shapes(number, width), group=group)
            for number, module in zip(self._numbers, self.modules, strict=True)
        ]

        def loss(x_BTC: Tensor, labels_BT: Tensor) -> Tensor:
            return self._learners[-1].loss(x_BTC, labels_BT, z_loss) / tokens

        kind = (
            self._recipe.parallel.schedule if width < rows else "gpipe"
        )  # one micro-batch has nothing to take turns with
        if len(stages) > 1:
            return ScheduleInterleaved1F1B(stages, rows // width, loss, scale_grads=False)
        return {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}[kind](stages[0], rows // width, loss, scale_grads=False)

    def _shapes(self, stage: int, width: int) -> tuple[Tensor, Tensor]:
        """Empty tensors like what comes into a stage and what leaves it."""
        tokens = self._recipe.sequence // self._world.ranks("context")
        hidden = self.networks[0].config.hidden_size
        ids_BT = torch.empty(width, tokens, dtype=torch.int64, device="meta")
        x_BTC = torch.empty(width, tokens // self._world.ranks("tensor"), hidden, device="meta", requires_grad=True)
        return ids_BT if stage == 0 else x_BTC, x_BTC


def put(array: Array, device: torch.device) -> Tensor:
    """Numbers as a tensor where the network is."""
    return torch.from_numpy(array).to(device)


def trained_parameters(passes: Passes) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of this process under its name in the whole network."""
    for network in passes.networks:
        yield from network.named_parameters()
