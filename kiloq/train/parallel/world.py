"""The processes of a run: which there are, what each is for, and sums over all of them.

torchrun (or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) starts them. They form one device
mesh, from the slowest to the fastest changing: pipeline, copies, shard, context, tensor, so that what talks most lies
closest together, as Megatron-LM orders them (Narayanan et al. 2021). Every number that decides what a step does is
summed over all of them in float64: with one process and with many it is the same to the last bit but for ties.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from kiloq.core.errors import UsageError
from kiloq.train.settings import Parallel

DIMENSIONS = ("pipeline", "copies", "shard", "context", "tensor")
SPREAD = "shard_context"  # both as one: context ranks see other tokens, as shards see other rows
PATIENCE = timedelta(minutes=30)  # of a collective before it is called hung; PyTorch's own for gloo


@dataclass(frozen=True)
class World:
    """This process among the others. Without a launcher it is the only one."""

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: Any = None  # the DeviceMesh; None: one process
    spread: Any = None  # the processes over which FSDP2 spreads layers: shards and context ranks, and copies if any

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def ranks(self, name: str) -> int:
        """How many processes one of DIMENSIONS has."""
        return 1 if self.mesh is None else int(self.mesh[name].size())

    def at(self, name: str) -> int:
        """This process' place in one of DIMENSIONS."""
        return 0 if self.mesh is None else int(self.mesh.get_local_rank(name))

    @property
    def readers(self) -> int:
        """How many parts a batch is cut into: the processes that see different rows."""
        return self.ranks("copies") * self.ranks("shard")

    @property
    def reader(self) -> int:
        """Which of the parts of a batch is ours."""
        return self.at("copies") * self.ranks("shard") + self.at("shard")

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in float64."""
        if self.mesh is None:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(total, group=_talk())
        return [float(value) for value in total]

    def share(self, value: Any) -> Any:
        """What the main process has, in all of them."""
        if self.mesh is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=_talk())
        return box[0]

    def wait(self) -> None:
        """Until all have come here."""
        if self.mesh is not None:
            dist.barrier(group=_talk())


_groups: dict[str, Any] = {}


def _talk() -> Any:
    """The group for numbers on the CPU, whatever device the network is on."""
    return _groups["talk"]


@contextmanager
def world(parallel: Parallel, device: str) -> Iterator[World]:
    """The processes that a launcher has started, as `parallel` wants them used. Raises UsageError where they do not fit."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    needed = 1 if parallel.engine == "deepspeed" else parallel.processes
    if size % needed:
        raise UsageError(
            f"parallel: shard x tensor x pipeline x context is {needed}, and there are {size} processes: start a multiple "
            f"of {needed}, as with `torchrun --nproc-per-node {needed}`"
        )
    if size == 1:
        yield World(torch.device(device))
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(device, local) if device == "cuda" else torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        _groups["talk"] = dist.new_group(backend="gloo", timeout=PATIENCE)
        mesh, spread = _meshes(parallel, place.type, size)
        yield World(place, dist.get_rank(), size, mesh, spread)
    finally:
        _groups.clear()
        dist.destroy_process_group()


def _meshes(parallel: Parallel, kind: str, size: int) -> tuple[Any, Any]:
    """The whole mesh, and what FSDP2 spreads over."""
    if parallel.engine == "deepspeed":
        parallel = Parallel(shard=size)
    shape = {"pipeline": parallel.pipeline, "copies": size // parallel.processes, "shard": parallel.shard,
             "context": parallel.context, "tensor": parallel.tensor}  # fmt: skip
    mesh = init_device_mesh(kind, tuple(shape[name] for name in DIMENSIONS), mesh_dim_names=DIMENSIONS)
    spread = mesh["shard", "context"]._flatten(SPREAD)
    return mesh, DeviceMesh._concatenate([mesh["copies"], spread]) if mesh["copies"].size() > 1 else spread
