"""Qwen (2023), class QWenLMHeadModel: its config.json and tensor names, both directions.

Two traps: `intermediate_size` is twice the real width, and the gate of SwiGLU is `w2` while `w1` is "up". Query, key
and value are one matrix `c_attn` (rows q, k, v); reading gives views of its thirds. Source: config.json files of the
released models, and the checkpoint's tensor names.
"""

from __future__ import annotations

from typing import Any

from kiloq.convert.fields import Fields, rotary_size
from kiloq.convert.layout import Entry
from kiloq.core.errors import FormatError
from kiloq.model.config import ModelConfig
from kiloq.model.shapes import tensor_shapes

ARCHITECTURE = "QWenLMHeadModel"
RENAMED = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.w1",
    "mlp.gate_proj": "mlp.w2",
    "mlp.down_proj": "mlp.c_proj",
}
FUSED = ("q_proj", "k_proj", "v_proj")  # in the order of c_attn's rows


def read_config(fields: Fields) -> ModelConfig:
    """ModelConfig of a Qwen-1 config.json. Raises FormatError for what the class cannot express."""
    fields.require("scale_attn_weights", True, True, "attention is always scaled by 1/sqrt(head size)")
    hidden, heads, width = fields.int("hidden_size"), fields.int("num_attention_heads"), fields.int("intermediate_size")
    head_dim = fields.int("kv_channels", 128)
    if heads * head_dim != hidden:
        raise FormatError(
            f"{fields.path}: {heads} heads of kv_channels {head_dim} do not make hidden_size {hidden}, "
            "which QWenLMHeadModel needs"
        )
    if width % 2:
        raise FormatError(f"{fields.path}: intermediate_size {width} must be even: it is twice the real width")
    rotary_dim = rotary_size(fields, "rotary_pct", head_dim)
    train_length = fields.int("seq_length", 8192)
    biased = not fields.bool("no_bias", True)
    return ModelConfig(
        vocab_size=fields.int("padded_vocab_size", None) or fields.int("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.int("num_hidden_layers"),
        num_heads=heads,
        ffn_size=width // 2,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        rope_base=fields.float("rotary_emb_base", 10000.0),
        norm_eps=fields.float("layer_norm_epsilon", 1e-6),
        train_length=train_length,
        max_length=max(train_length, fields.int("max_position_embeddings", 0)),
        tied_embeddings=fields.bool("tie_word_embeddings", False),
        output_bias=biased,
        mlp_bias=biased,
        dynamic_ntk=fields.bool("use_dynamic_ntk", True),
        logn=fields.bool("use_logn_attn", True),
        init_std=fields.float("initializer_range", 0.02),
    )


def entries(config: ModelConfig) -> dict[str, Entry]:
    """Canonical name -> place in a Qwen-1 checkpoint."""
    return {name: _entry(name, shape, config) for name, shape in tensor_shapes(config).items()}


def stored_name(name: str) -> str:
    """The Qwen-1 name that holds a canonical tensor (c_attn for query, key and value)."""
    if not name.startswith("layers."):
        top = {"embed_tokens.weight": "transformer.wte.weight", "norm.weight": "transformer.ln_f.weight"}
        return top.get(name, name)
    _, layer, rest = name.split(".", 2)
    module, _, kind = rest.rpartition(".")
    new = "attn.c_attn" if module.rpartition(".")[2] in FUSED else RENAMED[module]
    return f"transformer.h.{layer}.{new}.{kind}"


def _entry(name: str, shape: tuple[int, ...], config: ModelConfig) -> Entry:
    for third, projection in enumerate(FUSED):
        if f".{projection}." in name:
            rows = shape[0]
            return Entry(stored_name(name), (3 * rows, *shape[1:]), (third * rows, (third + 1) * rows))
    return Entry(stored_name(name), shape)


def expressible(config: ModelConfig) -> ModelConfig:
    """The shape that a model takes as QWenLMHeadModel: full heads, untied, QKV bias, all other biases or none.

    Raises FormatError where the original has no place for what the model does.
    """
    c = config
    if c.qk_norm:
        raise FormatError("the Qwen-1 layout has no query/key norm: export this model with --to qwen2")
    if c.num_heads * c.head_dim != c.hidden_size:
        raise FormatError(
            f"the Qwen-1 layout needs heads x head size = hidden size, and {c.num_heads} x {c.head_dim} is not "
            f"{c.hidden_size}: export this model with --to qwen2"
        )
    if c.rope_scaling is not None:
        raise FormatError(
            f"the Qwen-1 layout has no {c.rope_scaling.kind} rope scaling: export this model with --to qwen2"
        )
    if any(window is not None for window in c.windows):
        raise FormatError("the Qwen-1 layout has no attention windows: export this model with --to qwen2")
    biased = c.output_bias or c.mlp_bias
    return c.replace(
        num_kv_heads=c.num_heads, tied_embeddings=False, qkv_bias=True, output_bias=biased, mlp_bias=biased, windows=()
    )


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of an expressible model; `dtype` is the short name (fp32, bf16, fp16). No code files are named."""
    c = config
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "kv_channels": c.head_dim,
        "intermediate_size": 2 * c.ffn_size,
        "rotary_pct": c.rotary_dim / c.head_dim,
        "rotary_emb_base": int(c.rope_base) if c.rope_base.is_integer() else c.rope_base,
        "layer_norm_epsilon": c.norm_eps,
        "seq_length": c.train_length,
        "max_position_embeddings": c.max_length,
        "use_dynamic_ntk": c.dynamic_ntk,
        "use_logn_attn": c.logn,
        "no_bias": not c.output_bias,
        "tie_word_embeddings": False,
        "scale_attn_weights": True,
        "initializer_range": c.init_std,
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "softmax_in_fp32": False,
        "use_cache": True,
        "use_cache_kernel": False,
        "use_cache_quantization": False,
        "use_flash_attn": "auto",
        **{flag: flag == dtype for flag in ("bf16", "fp16", "fp32")},
        "tokenizer_class": "QWenTokenizer",
    }
