"""A trained network as a model folder in the Qwen2 layout, which kiloq, transformers, vLLM and llama.cpp load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kiloq.convert import generation, hf
from kiloq.convert.generation import GenerationDefaults
from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write import INDENT, SHARD_BYTES, end_ids, write_weights
from kiloq.core.dtypes import SAFETENSORS_DTYPES, WEIGHT_DTYPES
from kiloq.core.errors import FormatError
from kiloq.core.manifest import atomic_folder, write_manifest
from kiloq.core.safe_json import write_json
from kiloq.core.safetensors import TensorSpec
from kiloq.model.network import Network
from kiloq.tokenize.tokenizer import Tokenizer


def export(
    network: Network, out: Path, tokenizer: Tokenizer | None, end_id: int | None, record: Mapping[str, Any]
) -> None:
    """Write `network` in bf16. `record`: the recipe, for the manifest."""
    config = hf.expressible(network.config, "native")
    code = WEIGHT_DTYPES["bf16"][0]
    specs = [
        TensorSpec(hf.stored_name(name), code, tuple(p.shape), lambda p=p: _array(p, code))  # type: ignore[misc]
        for name, p in network.named_parameters()
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
        counts = {"parameters": sum(p.numel() for p in network.parameters())}
        write_manifest(staging, "model", config=record, counts=counts)


def _array(parameter: Any, code: str) -> Any:
    return parameter.detach().float().cpu().numpy().astype(SAFETENSORS_DTYPES[code])


def load_weights(network: Network, source: ModelSource) -> None:
    """Put the weights of a model folder into a network of the same shape. Raises FormatError where they do not fit."""
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            array = np.ascontiguousarray(source.tensor(name), np.float32)
            if array.shape != tuple(parameter.shape):
                raise FormatError(
                    f"{source.path}: {name} has shape {array.shape}, and the network wants {tuple(parameter.shape)}"
                )
            parameter.copy_(torch.from_numpy(array))


def open_start(path: str) -> ModelSource:
    """The model to go on from: a folder or .gguf, or a name that `kiloq get` knows."""
    from kiloq.convert.assets import resolve

    return open_model(resolve(path))
