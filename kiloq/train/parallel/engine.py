"""What the loop needs of whatever holds the weights: gradients, their norm, a step, and everything for a checkpoint.

PyTorch's is here; DeepSpeed's is kiloq.train.parallel.zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from kiloq.model.config import ModelConfig
from kiloq.model.network import Network
from kiloq.train import checkpoint
from kiloq.train.activations import keep_activations
from kiloq.train.batches import Array, Sequences
from kiloq.train.checkpoint import MOMENTS, Progress
from kiloq.train.optimizer import make_optimizer, set_rate
from kiloq.train.parallel.build import Value, make_stage
from kiloq.train.parallel.gradients import local, scale, settle, squares
from kiloq.train.parallel.passes import Passes, make_passes, stages_here, trained_parameters
from kiloq.train.parallel.world import World
from kiloq.train.settings import Recipe


class Engine(Protocol):
    """The weights of a run, as far as this process has them, and what changes them."""

    networks: list[Network]

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step."""
        ...

    def gradients(self, rows: Sequences, tokens: int) -> float:
        """As kiloq.train.parallel.passes.Passes."""
        ...

    def losses(self, ids_BT: Array) -> float:
        """As kiloq.train.parallel.passes.Passes."""
        ...

    def squares(self) -> float:
        """This process' part of the squared norm of the gradient."""
        ...

    def update(self, norm: float) -> float:
        """Clip gradients of this norm and take a step; the norm."""
        ...

    def discard(self) -> None:
        """Forget the gradients: nothing has changed."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments by name, for a checkpoint."""
        ...

    def load(self, folder: Path, progress: Progress) -> None:
        """Weights and moments of a checkpoint."""
        ...


def make_engine(recipe: Recipe, config: ModelConfig, value: Value, world: World) -> Engine:
    """The engine that a recipe names, with first values."""
    zero = recipe.parallel.engine == "deepspeed"
    numbers, stages = stages_here(recipe, world)
    among = World(world.device) if zero else world  # DeepSpeed shares the network out itself
    networks = [make_stage(config, value, among, recipe.precision, number, stages) for number in numbers]
    for network in networks:
        network.train()  # no stretching of positions, in evaluations neither
        keep_activations(network, recipe.checkpointing)
        if recipe.compile:
            for block in network.layers:
                block.compile()
    if zero:
        from kiloq.train.parallel.zero import Zero

        return Zero(networks[0], recipe, world)
    return TorchEngine(make_passes(networks, recipe, world), recipe, world)


class TorchEngine:
    """PyTorch's parallelism and its AdamW."""

    def __init__(self, passes: Passes, recipe: Recipe, world: World) -> None:
        self.passes, self.networks, self._recipe, self._world = passes, passes.networks, recipe, world
        self.named = list(trained_parameters(passes))
        self.parameters = [parameter for _, parameter in self.named]
        self.optimizer = make_optimizer(self.parameters, recipe.optimizer)

    def set_rate(self, rate: float) -> None:
        """As Engine."""
        set_rate(self.optimizer, rate)

    def gradients(self, rows: Sequences, tokens: int) -> float:
        """As Engine."""
        loss = self.passes.gradients(rows, tokens)
        settle(self.parameters)
        return loss

    def losses(self, ids_BT: Array) -> float:
        """As Engine."""
        return self.passes.losses(ids_BT)

    def squares(self) -> float:
        """As Engine."""
        return squares(self.parameters, self._world)

    def update(self, norm: float) -> float:
        """As Engine."""
        scale(self.parameters, norm, self._recipe.optimizer.clip)
        self.optimizer.step()
        self.discard()
        return norm

    def discard(self) -> None:
        """As Engine."""
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """As Engine; the tensors themselves."""
        found = {}
        for name, parameter in self.named:
            found[f"weights.{name}"] = parameter.detach()
            state = _state(self.optimizer, parameter)
            found |= {f"{moment}.{name}": state[moment] for moment in MOMENTS}
        return found

    def load(self, folder: Path, progress: Progress) -> None:
        """As Engine. Raises FormatError if the checkpoint is of another network."""
        checkpoint.load(folder, self.tensors(), self._world)
        for parameter in self.parameters:
            self.optimizer.state[parameter]["step"].fill_(float(progress.updates))


def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's state of a parameter; zeros before the first step."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=local(parameter).device)
        for name in MOMENTS:
            state[name] = torch.zeros_like(parameter)
    return state
