"""The reference outputs of GPTQ, and the folder that AutoGPTQ would have written for the tiny model of the goldens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support import shared

LAYER: dict[str, Any] = {}


def layer() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(cases, tensors) of the single matrix."""
    if not LAYER:
        LAYER["cases"] = json.loads(shared("goldens", "gptq", "layer.json").read_text())["cases"]
        LAYER["tensors"] = load_file(shared("goldens", "gptq", "layer.safetensors"))
    return LAYER["cases"], LAYER["tensors"]


def tiny() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(golden.json, golden.safetensors) of the whole model."""
    folder = shared("goldens", "gptq", "tiny")
    return json.loads((folder / "golden.json").read_text()), load_file(folder / "golden.safetensors")


def tiny_folder(run: str, folder: Path, *, modern: bool) -> Path:
    """The quantised tiny model under Qwen-1's names, described in config.json (modern) or beside it."""
    golden, tensors = tiny()
    source = shared("goldens", "gptq", "tiny")
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    found = golden["runs"][run]
    parts = {name[len(run) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{run}.transformer")}
    base = load_file(source / "model.safetensors")
    for name in found["state_dict_keys"]:
        if name not in parts:  # AutoGPTQ writes a bias of zeros where the model has none
            columns = parts[f"{name.removesuffix('bias')}qweight"].shape[1] if name.endswith(".bias") else 0
            parts[name] = base[name].float() if name in base else torch.zeros(columns)
    save_file(parts, folder / "model.safetensors")
    if modern:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": found["quantize_config_json"]}))
    else:
        (folder / "quantize_config.json").write_text(json.dumps(found["quantize_config_json"]))
    return folder
