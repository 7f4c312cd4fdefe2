"""A trained network as a model folder in the Qwen2 layout, which kiloq, transformers, vLLM and llama.cpp load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiloq.convert import generation, hf
from kiloq.convert.generation import GenerationDefaults
from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write import INDENT, SHARD_BYTES, end_ids, write_weights
from kiloq.core.dtypes import SAFETENSORS_DTYPES, WEIGHT_DTYPES
from kiloq.core.errors import FormatError
from kiloq.core.manifest import atomic_folder, write_manifest
from kiloq.core.safe_json import write_json
from kiloq.core.safetensors import TensorSpec
from kiloq.model.config import ModelConfig
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.train.checkpoint import Parts
from kiloq.train.parallel.build import Value


def export(
    weights: Parts,
    config: ModelConfig,
    out: Path,
    tokenizer: Tokenizer | None,
    end_id: int | None,
    record: Mapping[str, Any],
) -> None:
    """Write the weights of a checkpoint in bf16. `record`: the recipe, for the manifest."""
    config = hf.expressible(config, "native")
    code = WEIGHT_DTYPES["bf16"][0]
    specs = [
        TensorSpec(hf.stored_name(name), code, weights.shape(name), lambda name=name: _array(weights, name, code))  # type: ignore[misc]
        for name in weights.names()
    ]
    defaults = GenerationDefaults(eos_ids=() if end_id is None else (end_id,), pad_id=end_id)
    with atomic_folder(out) as staging:
        write_weights(staging, specs, SHARD_BYTES, None)
        if tokenizer is not None:
            tokenizer.save(staging, max_length=config.max_length)
        eos = end_ids(defaults, tokenizer)
        ends = {"eos_token_id": eos[0]} if eos else {}
        write_json(staging / "config.json", hf.write_config(config, "bf16") | ends, INDENT)
        write_json(staging / generation.NAME, generation.write_config(defaults, eos), INDENT)
        counts = {"parameters": sum(math.prod(weights.shape(name)) for name in weights.names())}
        write_manifest(staging, "model", config=record, counts=counts)


def _array(weights: Parts, name: str, code: str) -> Any:
    return weights.array(name).astype(SAFETENSORS_DTYPES[code])


def values_of(source: ModelSource) -> Value:
    """The weights of a model folder as first values. Raises FormatError, when asked, for those that do not fit."""

    def value(name: str, shape: Sequence[int]) -> Tensor:
        array = np.ascontiguousarray(source.tensor(name), np.float32)
        if array.shape != tuple(shape):
            raise FormatError(f"{source.path}: {name} has shape {array.shape}, and the network wants {tuple(shape)}")
        return torch.from_numpy(array)

    return value


def open_start(path: str) -> ModelSource:
    """The model to go on from: a folder or .gguf, or a name that `kiloq get` knows."""
    from kiloq.convert.assets import resolve

    return open_model(resolve(path))
