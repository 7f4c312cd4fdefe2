"""GGUF of arch llama, qwen, qwen2 and qwen3: metadata keys and tensor names, both directions.

Arch `qwen` is Qwen-1 (fused attn_qkv, feed_forward_length twice the real width). Arch `llama` stores the rows of Q
and K in pairs (i beside i + 1), because llama.cpp rotates them so; reading puts them back into NeoX order. A file
without output.weight has tied embeddings. Which biases a model has is seen from its tensors.
Source: ggml-org/llama.cpp, gguf-py/gguf/constants.py and docs/gguf.md of ggml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiloq.convert import rope
from kiloq.convert.fields import Fields, shortest
from kiloq.convert.layout import Entry
from kiloq.core.errors import FormatError
from kiloq.core.files import shown
from kiloq.core.gguf import GGUFFile
from kiloq.model.config import MAX_LAYERS, ModelConfig
from kiloq.model.shapes import tensor_shapes

ARCHITECTURES = ("llama", "qwen", "qwen2", "qwen3")
OWN_KEYS = ("dynamic_ntk", "logn", "train_length", "max_length")  # written as kiloq.*, ignored by llama.cpp
TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FUSED = ("q_proj", "k_proj", "v_proj")


def read_config(file: GGUFFile) -> ModelConfig:
    """ModelConfig from a GGUF's metadata and tensor names."""
    fields = Fields(file.path, file.metadata)
    arch = fields.text("general.architecture")
    if arch not in ARCHITECTURES:
        raise FormatError(f"{file.path}: is of architecture {shown(arch)}: kiloq reads {', '.join(ARCHITECTURES)}")
    own = Fields(file.path, {key: fields.values.get(f"kiloq.{key}") for key in OWN_KEYS})
    hidden, heads = fields.int(f"{arch}.embedding_length"), _one(fields, f"{arch}.attention.head_count")
    layers, width = fields.int(f"{arch}.block_count"), _one(fields, f"{arch}.feed_forward_length")
    if not 1 <= layers <= MAX_LAYERS or heads < 1:
        raise FormatError(f"{file.path}: has {layers} layers of {heads} heads: 1 to {MAX_LAYERS} layers are possible")
    head_dim = fields.int(f"{arch}.attention.key_length", 0)
    if not head_dim and hidden % heads:
        raise FormatError(f"{file.path}: embedding_length {hidden} is not a multiple of {heads} heads")
    head_dim = head_dim or hidden // heads
    _refuse(fields, arch, head_dim)
    names = set(file.names())
    length = fields.int(f"{arch}.context_length", 2048)
    rotary_dim = fields.int(f"{arch}.rope.dimension_count", head_dim)
    scaling = rope.read_gguf(file, arch, rotary_dim, length)
    return ModelConfig(
        vocab_size=_vocabulary_rows(file),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_one(fields, f"{arch}.attention.head_count_kv", heads),
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        ffn_size=width // 2 if arch == "qwen" else width,
        rope_base=shortest(fields.float(f"{arch}.rope.freq_base", 10000.0)),
        rope_scaling=scaling,
        norm_eps=shortest(fields.float(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6)),
        train_length=own.int("train_length", length),
        max_length=own.int("max_length", scaling.stretched(length) if scaling else length),
        tied_embeddings="output.weight" not in names,
        qkv_bias=any(f"blk.0.{name}.bias" in names for name in ("attn_q", "attn_qkv")),
        output_bias="blk.0.attn_output.bias" in names,
        mlp_bias="blk.0.ffn_up.bias" in names,
        qk_norm=arch == "qwen3",
        dynamic_ntk=own.bool("dynamic_ntk", False),
        logn=own.bool("logn", False),
    )


def _one(fields: Fields, key: str, *default: Any) -> Any:
    """A number that newer files may store once per layer; layers that differ are not supported."""
    value = fields.values.get(key)
    if isinstance(value, list):
        different = {item for item in value if type(item) is int}
        if len(different) != 1 or len(value) != fields.values.get(f"{key.partition('.')[0]}.block_count"):
            raise FormatError(f"{fields.path}: {shown(key)} differs between layers, which kiloq does not compute")
        return different.pop()
    return fields.int(key, *default)


def _refuse(fields: Fields, arch: str, head_dim: int) -> None:
    """Everything that would change the numbers and is not implemented."""
    if fields.int(f"{arch}.expert_count", 0):
        raise FormatError(f"{fields.path}: is a mixture of experts: only dense models are read")
    if fields.int(f"{arch}.attention.value_length", head_dim) != head_dim:
        raise FormatError(f"{fields.path}: has values of another size than keys, which kiloq does not compute")
    if f"{arch}.attention.sliding_window" in fields and fields.int(f"{arch}.attention.sliding_window"):
        raise FormatError(f"{fields.path}: has a sliding window, which is not read from GGUF: use the model's folder")
    if arch == "llama" and fields.int(f"{arch}.rope.dimension_count", head_dim) != head_dim:
        raise FormatError(f"{fields.path}: rotates a part of each head, which is not read from arch llama")


def _vocabulary_rows(file: GGUFFile) -> int:
    if "token_embd.weight" not in file.names():
        raise FormatError(f"{file.path}: lacks tensor 'token_embd.weight': it is not a whole model")
    return file.info("token_embd.weight")[1][0]


def stored_name(name: str) -> str:
    """The GGUF name of a canonical tensor (of arch llama, qwen2, qwen3)."""
    module, _, kind = name.rpartition(".")
    if not name.startswith("layers."):
        return f"{TOP[module]}.{kind}"
    _, layer, module = module.split(".", 2)
    return f"blk.{layer}.{IN_LAYER[module]}.{kind}"


def entries(config: ModelConfig, arch: str) -> dict[str, Entry]:
    """Canonical name -> place in a GGUF of `arch`."""
    return {name: _entry(name, shape, config, arch) for name, shape in tensor_shapes(config).items()}


def _entry(name: str, shape: tuple[int, ...], config: ModelConfig, arch: str) -> Entry:
    stored = stored_name(name)
    projection = next((third for third, part in enumerate(FUSED) if f".{part}." in name), None)
    if arch == "qwen" and projection is not None:
        rows = shape[0]
        fused = stored.replace(IN_LAYER[f"self_attn.{FUSED[projection]}"] + ".", "attn_qkv.")
        return Entry(fused, (3 * rows, *shape[1:]), (projection * rows, (projection + 1) * rows))
    return Entry(stored, shape, permuted_heads=permuted_heads(name, config, arch))


def permuted_heads(name: str, config: ModelConfig, arch: str) -> int:
    """How many heads of a tensor llama.cpp stores with their rows in pairs; 0: rows as they are."""
    if arch != "llama" or not (".q_proj." in name or ".k_proj." in name):
        return 0
    return config.num_heads if ".q_proj." in name else config.num_kv_heads


def arch_for(config: ModelConfig) -> str:
    """The llama.cpp architecture that computes a model. Raises FormatError where there is none."""
    arch = _arch_for(config)
    rope.check_gguf(config, arch)
    return arch


def _arch_for(config: ModelConfig) -> str:
    c = config
    if any(window is not None for window in c.windows):
        raise FormatError("GGUF export knows no attention windows: export this model with --to qwen2")
    if c.qk_norm:
        if c.qkv_bias or c.output_bias or c.mlp_bias:
            raise FormatError("llama.cpp's qwen3 has no biases, and this model does: export it with --to qwen2")
        return "qwen3"
    if c.qkv_bias and not (c.output_bias or c.mlp_bias):
        return "qwen2"
    if c.rotary_dim != c.head_dim:
        raise FormatError("llama.cpp's llama rotates whole heads, and this model a part: export it with --to qwen1")
    return "llama"


def write_metadata(config: ModelConfig, arch: str) -> Mapping[str, Any]:
    """The metadata of the network itself; the tokenizer's is added by write_gguf.py."""
    c = config
    values: dict[str, Any] = {
        "general.architecture": arch,
        "general.type": "model",
        f"{arch}.block_count": c.num_layers,
        f"{arch}.context_length": c.train_length if c.dynamic_ntk or c.logn else c.max_length,
        f"{arch}.embedding_length": c.hidden_size,
        f"{arch}.feed_forward_length": c.ffn_size,
        f"{arch}.attention.head_count": c.num_heads,
        f"{arch}.attention.head_count_kv": c.num_kv_heads,
        f"{arch}.attention.key_length": c.head_dim,
        f"{arch}.attention.value_length": c.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": float(c.norm_eps),
        f"{arch}.rope.dimension_count": c.rotary_dim,
        f"{arch}.rope.freq_base": float(c.rope_base),
        f"{arch}.vocab_size": c.vocab_size,
        **rope.gguf_keys(c.rope_scaling, arch),
    }
    own = {"dynamic_ntk": c.dynamic_ntk, "logn": c.logn, "train_length": c.train_length, "max_length": c.max_length}
    reach = c.rope_scaling.stretched(c.max_length) if c.rope_scaling else c.max_length  # what a reader works out
    if c.dynamic_ntk or c.logn or c.train_length != c.max_length or reach != c.max_length:
        values |= {f"kiloq.{key}": own[key] for key in OWN_KEYS}
    return values
