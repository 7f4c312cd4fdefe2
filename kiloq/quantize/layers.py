"""One layer of the network at a time: its matrices in the order in which they feed each other.

A layer has four groups of matrices with the same inputs: query, key and value; the attention's output; gate and up;
down. With `true_sequential` each group sees the inputs that the quantised groups before it give; without, all of them
see those of the unquantised layer. Hidden states of all samples stay in memory, float32; of the network only this layer.

The layer runs inside a `Network` of one layer, so that positions, NTK, LogN and windows are those of any other pass.

Shapes: T tokens of a sample, C hidden width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiloq.convert.integers import Integers
from kiloq.model.config import ModelConfig
from kiloq.model.network import Block, Context, Network
from kiloq.quantize.gptq import Hessian, gptq, relative_error
from kiloq.quantize.rtn import round_to_nearest
from kiloq.quantize.settings import Settings

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
MATRICES = tuple(name for group in GROUPS for name in group)

States = list[Tensor]  # hidden states [T, C] of each sample
Visit = Callable[[tuple[str, ...], Iterable[Tensor]], None]


class _Given(nn.Module):
    """Stands where the embedding is, and gives the states of the pass."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.states_BTC

    states_BTC: Tensor


class _Attention(nn.Module):
    """The attention of a block, behind its norm."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_BTC: Tensor, context: Context) -> Tensor:
        out_BTC: Tensor = self.block.self_attn(self.block.input_layernorm(x_BTC), context)
        return out_BTC


class Layer:
    """One layer with its weights in float32."""

    def __init__(self, config: ModelConfig, layer: int, weights: Mapping[str, Tensor]) -> None:
        """`weights`: names within the layer -> values."""
        one = config.replace(num_layers=1, windows=(config.window(layer),))
        with torch.device("meta"):
            network = Network(one).eval().requires_grad_(False)
        block = network.layers[0]
        assert isinstance(block, Block)
        block.load_state_dict(dict(weights), assign=True)
        block.requires_grad_(False)
        self.block, self._output = block, block.self_attn.o_proj
        block.self_attn.o_proj = nn.Identity()  # type: ignore[assignment]  # its inputs are what is wanted
        self._given = _Given()
        network.embed_tokens, network.norm = self._given, nn.Identity()  # type: ignore[assignment]
        network.layers = nn.ModuleList([_Attention(block)])
        self._network = network

    def linear(self, name: str) -> nn.Linear:
        """A matrix by its name, e.g. "mlp.up_proj"."""
        found = self._output if name == "self_attn.o_proj" else self.block.get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    @torch.no_grad()
    def run(self, states: States, visit: Visit | None = None) -> States:
        """The states behind the layer. `visit` is called with each group and its inputs, and may replace its weights."""
        see = visit or (lambda names, inputs: None)
        see(GROUPS[0], (self.block.input_layernorm(x_TC) for x_TC in states))
        mixed = [self._attend(x_TC) for x_TC in states]
        see(GROUPS[1], mixed)
        states = [x_TC + self._output(y_TC) for x_TC, y_TC in zip(states, mixed, strict=True)]
        del mixed
        norm, mlp = self.block.post_attention_layernorm, self.block.mlp
        see(GROUPS[2], (norm(x_TC) for x_TC in states))
        if visit is None:  # without looking there is no need to keep the wide inputs of `down`
            return [x_TC + mlp(norm(x_TC)) for x_TC in states]
        wide = [F.silu(mlp.gate_proj(norm(x_TC))) * mlp.up_proj(norm(x_TC)) for x_TC in states]
        see(GROUPS[3], wide)
        return [x_TC + mlp.down_proj(y_TF) for x_TC, y_TF in zip(states, wide, strict=True)]

    def _attend(self, x_TC: Tensor) -> Tensor:
        self._given.states_BTC = x_TC[None]
        return self._network.hidden(torch.zeros(1, len(x_TC), dtype=torch.long))[0]


@dataclass(frozen=True)
class Done:
    """A quantised layer: its integers, and the relative squared error of each matrix's outputs (of its weights where
    there was nothing to calibrate on)."""

    integers: dict[str, Integers]
    errors: dict[str, float]
    states: States


def quantise_layer(layer: Layer, states: States, settings: Settings) -> Done:
    """Quantise the matrices of `layer`, whose weights become the rounded ones. Without `states`: by weights alone."""
    integers: dict[str, Integers] = {}
    errors: dict[str, float] = {}

    def quantise(names: tuple[str, ...], hessian_CC: Tensor | None) -> None:
        w_RC = torch.cat([layer.linear(name).weight for name in names])
        made = _split(_rounded(w_RC, hessian_CC, settings), [layer.linear(name).out_features for name in names])
        for name, found in zip(names, made, strict=True):
            linear = layer.linear(name)
            rounded_RC = torch.from_numpy(found.decode())
            errors[name] = relative_error(linear.weight, rounded_RC, hessian_CC)
            integers[name] = found
            linear.weight = nn.Parameter(rounded_RC, requires_grad=False)

    if not states:
        for names in GROUPS:
            quantise(names, None)
        return Done(integers, errors, [])
    if settings.true_sequential:
        after = layer.run(states, lambda names, inputs: quantise(names, _hessian(inputs)))
        return Done(integers, errors, after)
    seen: dict[tuple[str, ...], Tensor] = {}
    layer.run(states, lambda names, inputs: seen.update({names: _hessian(inputs)}))
    for names in GROUPS:
        quantise(names, seen.pop(names))
    return Done(integers, errors, layer.run(states))


def _hessian(inputs: Iterable[Tensor]) -> Tensor:
    running: Hessian | None = None
    for x_TC in inputs:
        running = running or Hessian(x_TC.shape[1])
        running.add(x_TC)
    assert running is not None
    return running.finished()


def _rounded(w_RC: Tensor, hessian_CC: Tensor | None, settings: Settings) -> Integers:
    if settings.method == "rtn" or hessian_CC is None:
        return round_to_nearest(w_RC, settings)
    return gptq(w_RC, hessian_CC, settings)


def _split(found: Integers, rows: list[int]) -> list[Integers]:
    """The integers of matrices that were stacked."""
    parts, begin = [], 0
    for count in rows:
        parts.append(found.rows(begin, begin + count))
        begin += count
    return parts
