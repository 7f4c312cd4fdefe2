"""A whole model, layer by layer: one layer of the network in memory, the hidden states of the samples, and no more.

Three sets of states walk through the layers side by side: the calibration samples, which always see what the quantised
layers before give; and the evaluation samples twice, through the original and the quantised weights, for perplexity
before and after without a second pass. A finished layer is on disk before the next one begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiloq.convert.source import ModelSource
from kiloq.core.errors import FormatError
from kiloq.model.network import RMSNorm
from kiloq.quantize.layers import MATRICES, Layer, States, quantise_layer
from kiloq.quantize.packing import packed
from kiloq.quantize.perplexity import perplexity
from kiloq.quantize.settings import Settings
from kiloq.quantize.work import Work

Progress = Callable[[int, int, dict[str, float], float], None]  # (layer, layers in all, errors, seconds of the layer)


@dataclass(frozen=True)
class Samples:
    """Token ids to calibrate on and to measure with; either may be empty."""

    calibration: list[list[int]] = field(default_factory=list)
    evaluation: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What was measured on the way."""

    errors: list[dict[str, float]]  # of each layer: matrix -> relative squared error
    before: float | None  # perplexity of the evaluation samples with the original weights; None: there were none
    after: float | None
    seconds: float  # of the layers, those of earlier runs included
    resumed: int  # layers that an earlier run had finished


def quantise_model(
    source: ModelSource, settings: Settings, samples: Samples, work: Work, progress: Progress | None = None
) -> Outcome:
    """Quantise every layer of `source` into `work`. Raises KiloqError where the weights or texts are unusable."""
    layers, start = source.config.num_layers, work.layers_done()
    if start:
        states = {kind: work.states(kind) for kind in ("calibration", "before", "after")}
    else:
        evaluation = _embedded(source, samples.evaluation)
        states = {"calibration": _embedded(source, samples.calibration), "before": evaluation, "after": evaluation}
    for at in range(start, layers):
        began = time.monotonic()
        layer = Layer(source.config, at, layer_weights(source, at))
        states["before"] = layer.run(states["before"])
        done = quantise_layer(layer, states["calibration"], settings)
        states |= {"calibration": done.states, "after": layer.run(states["after"])}
        tensors: dict[str, Any] = {}
        for name in MATRICES:
            tensors |= packed(f"layers.{at}.{name}", done.integers[name])
        seconds = time.monotonic() - began
        work.save(at, tensors, states, {"errors": done.errors, "seconds": seconds})
        source.release_pages()  # what has been read would stand beside what the plan counts
        if progress is not None:
            progress(at, layers, done.errors, seconds)
    figures = [work.figures(at) for at in range(layers)]
    seconds = sum(figure["seconds"] for figure in figures)
    before, after = (_perplexity(source, states[kind], samples.evaluation) for kind in ("before", "after"))
    return Outcome([figure["errors"] for figure in figures], before, after, seconds, start)


def to_float(array: Any) -> Tensor:
    """A NumPy array of any type of weight as a float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def layer_weights(source: ModelSource, layer: int) -> dict[str, Tensor]:
    """The tensors of one layer in float32, by their names within it. Raises FormatError for NaN or infinity."""
    prefix, found = f"layers.{layer}.", {}
    for name in source.names():
        if name.startswith(prefix):
            values = to_float(source.tensor(name))
            if not bool(values.isfinite().all()):
                raise FormatError(f"{source.path}: {name} holds NaN or infinity, which no integers can stand for")
            found[name.removeprefix(prefix)] = values
    return found


def _embedded(source: ModelSource, samples: list[list[int]]) -> States:
    table, rows = source.tensor("embed_tokens.weight") if samples else np.empty(0), source.config.vocab_size
    for ids in samples:
        if max(ids) >= rows:
            raise FormatError(f"{source.path}: its tokenizer gives id {max(ids)}, and the embedding has {rows} rows")
    return [to_float(table[ids]) for ids in samples]


def _perplexity(source: ModelSource, states: States, samples: list[list[int]]) -> float | None:
    if not samples:
        return None
    norm = RMSNorm(source.config.hidden_size, source.config.norm_eps)
    norm.load_state_dict({"weight": to_float(source.tensor("norm.weight"))})
    head = "embed_tokens.weight" if source.config.tied_embeddings else "lm_head.weight"
    with torch.no_grad():
        final = [norm(x_TC) for x_TC in states]
    return perplexity(final, samples, to_float(source.tensor(head)))
