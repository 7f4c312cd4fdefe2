"""The reference folders of ../shared/goldens/model, read with the `safetensors` package and mapped by hand.

Independent of kiloq's own readers on purpose, so that a mistake in one of the two shows.
"""

from __future__ import annotations

import json
import lzma
from typing import Any

import torch
from safetensors.torch import load, load_file
from support import shared

from kiloq.model.config import ModelConfig
from kiloq.model.network import Network

CASES = ("m18b", "m7b", "m14b", "m72b", "logn", "odd", "real")


def golden(case: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Descriptions and tensors of one case."""
    folder = shared("goldens", "model", case)
    return json.loads((folder / "golden.json").read_text()), load_file(folder / "golden.safetensors")


def golden_config(case: str) -> ModelConfig:
    c = json.loads(shared("goldens", "model", case, "config.json").read_text())
    return ModelConfig(
        vocab_size=c["vocab_size"],
        hidden_size=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        ffn_size=c["intermediate_size"] // 2,
        head_dim=c["kv_channels"],
        rotary_dim=int(c["kv_channels"] * c["rotary_pct"]),
        rope_base=float(c["rotary_emb_base"]),
        norm_eps=c["layer_norm_epsilon"],
        train_length=c["seq_length"],
        max_length=c["max_position_embeddings"],
        dynamic_ntk=c["use_dynamic_ntk"],
        logn=c["use_logn_attn"],
        output_bias=not c["no_bias"],
        mlp_bias=not c["no_bias"],
    )


def golden_state(case: str) -> dict[str, torch.Tensor]:
    """Weights in float32 under kiloq's names."""
    folder = shared("goldens", "model", case)
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        state |= load_file(file)
    if (packed := folder / "model.safetensors.xz").exists():
        state |= load(lzma.decompress(packed.read_bytes()))
    renamed = {}
    for name, tensor in state.items():
        for old, new in kiloq_names(name, tensor.float()):
            renamed[old] = new
    return renamed


def kiloq_names(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """One Qwen-1 tensor -> one or three (name, tensor)."""
    name = name.removeprefix("transformer.")
    for old, new in {
        "wte.": "embed_tokens.",
        "ln_f.": "norm.",
        "h.": "layers.",
    }.items():
        if name.startswith(old):
            name = new + name[len(old) :]
    for old, new in {
        ".ln_1.": ".input_layernorm.",
        ".ln_2.": ".post_attention_layernorm.",
        ".attn.c_proj.": ".self_attn.o_proj.",
        ".mlp.c_proj.": ".mlp.down_proj.",
        ".mlp.w1.": ".mlp.up_proj.",
        ".mlp.w2.": ".mlp.gate_proj.",
    }.items():
        name = name.replace(old, new)
    if ".attn.c_attn." not in name:
        return [(name, tensor)]
    return [(name.replace("attn.c_attn", f"self_attn.{part}_proj"), piece)
            for part, piece in zip("qkv", tensor.chunk(3), strict=True)]  # fmt: skip


def golden_network(case: str) -> Network:
    """The network of one case in float32, in evaluation mode."""
    network = Network(golden_config(case))
    network.load_state_dict(golden_state(case))
    return network.eval()
