"""A network spread over the processes of a run, one layer in memory at a time.

Each process makes the whole network without memory, keeps the stages of the pipeline that are its own, and then fills
one module after the other with its first values, cuts its matrices for tensor parallelism (DTensor, Megatron-LM's
pattern: columns, then rows, the sequence shared out between them) and spreads what is left over its copies and shards
(FSDP2). First values depend on a parameter's name alone, so they are the same however many processes there are.
Sources: Shoeybi et al. 2019 and Korthikanti et al. 2022 (tensor and sequence parallelism); Zhao et al. 2023 (FSDP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kiloq.model.config import ModelConfig
from kiloq.model.network import Block, Network
from kiloq.train import plan
from kiloq.train.parallel.ring import Ring
from kiloq.train.parallel.world import World

Value = Callable[[str, Sequence[int]], Tensor]  # (name of a parameter, shape) -> its first value, float32 on the CPU


class Elsewhere(nn.Module):
    """What stands for a part of the network that another process has: hands on what it gets."""

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """`x` itself."""
        return x


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each stage, as many as the plan gives it."""
    starts = accumulate(plan.stage_layers(layers, stages), initial=0)
    return [range(begin, end) for begin, end in pairwise(starts)]


def make_stage(
    config: ModelConfig, value: Value, world: World, precision: str, stage: int = 0, stages: int = 1
) -> Network:
    """The network, or one stage of it, filled and spread."""
    with torch.device("meta"):
        network = Network(config)
    mine = stage_layers(config.num_layers, stages)[stage]
    for layer in range(config.num_layers):
        if layer not in mine:
            network.layers[layer] = Elsewhere()
    if stage > 0:
        network.embed_tokens = Elsewhere()  # type: ignore[assignment]
    if stage < stages - 1:
        network.norm, network.lm_head = Elsewhere(), None  # type: ignore[assignment]
    for name, part in _parts(network):
        _fill(part, name, value)
        _cut(part, name, world)
        part.to(world.device)
        if isinstance(part, Block):
            spread(part, world, precision)
    if world.ranks("context") > 1:
        network.attend = Ring(world.mesh["context"].get_group(), world.at("context"), world.ranks("context"))
    return network


def spread(module: nn.Module, world: World, precision: str) -> None:
    """Let the copies and shards of `world` share a module's parameters; gradients are summed, not averaged.

    In bf16 a layer is gathered in bf16: the autograd graph would keep whole copies of that width anyway.
    """
    if world.mesh is None or world.readers * world.ranks("context") == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    narrow = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    found = fully_shard(module, mesh=world.spread, mp_policy=policy)
    found.set_gradient_divide_factor(1.0)
    found.set_force_sum_reduction_for_comms(True)  # a factor of 1 would be a kind of sum that gloo has not


def _parts(network: Network) -> Iterator[tuple[str, nn.Module]]:
    """The pieces that are filled one after the other, with their names."""
    for name, module in network.named_children():
        if name != "layers":
            yield name, module
    for layer, block in enumerate(network.layers):
        yield f"layers.{layer}", block


def _fill(part: nn.Module, prefix: str, value: Value) -> None:
    """Real memory with first values in the place of none."""
    part.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            parameter.copy_(value(f"{prefix}.{name}", parameter.shape))


def _cut(part: nn.Module, name: str, world: World) -> None:
    """Cut the matrices of a part for tensor parallelism."""
    if world.ranks("tensor") == 1 or isinstance(part, Elsewhere):
        return
    from torch.distributed.tensor.parallel import parallelize_module

    cuts = _cuts(part, name)
    parallelize_module(part, world.mesh["tensor"], cuts, src_data_rank=None)  # all have drawn the same values


def _cuts(part: nn.Module, name: str) -> Any:
    """How each matrix of a part is cut. Between matrices a process has its part of the tokens, inside all of them."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
    )

    tokens, whole = Shard(1), Replicate()
    if name == "embed_tokens":
        return RowwiseParallel(input_layouts=whole, output_layouts=tokens)
    if name == "lm_head":
        return ColwiseParallel()
    if name == "norm":
        return SequenceParallel()
    assert isinstance(part, Block)
    assert part.self_attn.q_norm is None, "check_layout refuses these"
    columns, rows = ColwiseParallel(), RowwiseParallel(output_layouts=tokens)
    return {
        "input_layernorm": SequenceParallel(),
        "self_attn": PrepareModuleInput(input_layouts=(tokens, None), desired_input_layouts=(whole, None)),
        "self_attn.q_proj": columns, "self_attn.k_proj": columns, "self_attn.v_proj": columns,
        "self_attn.o_proj": rows,
        "post_attention_layernorm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(tokens,), desired_input_layouts=(whole,)),
        "mlp.gate_proj": columns, "mlp.up_proj": columns, "mlp.down_proj": rows,
    }  # fmt: skip
