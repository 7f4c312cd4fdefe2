"""Hugging Face's config.json of Qwen1.5/2/2.5, dense Qwen3, LLaMA and Mistral, both directions.

Accepts `rope_theta` and `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5). Whatever would change
the numbers and is not implemented (mixture of experts, other activations) is refused with a sentence, never ignored.
What the layout has no key for (dynamic NTK, LogN, mixed windows) sits under one key of our own, "kiloq",
which other programs ignore. Source: the configuration classes' documentation in transformers 5.
"""

from __future__ import annotations

from typing import Any

from kiloq.convert import rope
from kiloq.convert.fields import Fields, rotary_size
from kiloq.convert.layout import Entry
from kiloq.convert.rope import PARTIAL_ROPE
from kiloq.core.dtypes import WEIGHT_DTYPES
from kiloq.core.errors import FormatError
from kiloq.core.files import shown
from kiloq.model.config import MAX_LAYERS, ModelConfig
from kiloq.model.shapes import tensor_shapes

OWN_KEY = "kiloq"
CLASSES = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
}
# Where a config.json leaves these out, the class's default holds: (max positions, norm eps, rope base).
DEFAULTS = {
    "qwen2": (32768, 1e-6, 10000.0),
    "qwen3": (32768, 1e-6, 10000.0),
    "llama": (2048, 1e-6, 10000.0),
    "mistral": (131072, 1e-6, 10000.0),
}
FULL, SLIDING = "full_attention", "sliding_attention"  # values of layer_types
REFUSED_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "vision_config")


def read_config(fields: Fields) -> ModelConfig:
    """ModelConfig of a Hugging Face config.json. Raises FormatError for what is not supported."""
    family = _family(fields)
    max_length, eps, base = DEFAULTS[family]
    hidden, heads = fields.int("hidden_size"), fields.int("num_attention_heads")
    layers = fields.int("num_hidden_layers")
    head_dim = fields.int("head_dim", None) or (128 if family == "qwen3" else 0)
    if heads < 1 or (not head_dim and hidden % heads):
        raise FormatError(f"{fields.path}: hidden_size {hidden} is not a multiple of {heads} heads: head_dim is needed")
    attention_bias = fields.bool("attention_bias", False) and family in ("llama", "qwen3")
    positions = fields.int("max_position_embeddings", max_length)
    scaling = rope.read_config_json(fields, positions)
    own = fields.fields(OWN_KEY)
    return ModelConfig(
        vocab_size=fields.int("vocab_size"),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.int("num_key_value_heads", 8 if family == "mistral" else heads),
        head_dim=head_dim or hidden // heads,
        rotary_dim=_rotary_dim(fields, head_dim or hidden // heads),
        ffn_size=fields.int("intermediate_size"),
        rope_base=_rope_base(fields, base),
        rope_scaling=scaling,
        norm_eps=fields.float("rms_norm_eps", eps),
        train_length=own.int("train_length", positions),
        max_length=own.int("max_length", scaling.stretched(positions) if scaling else positions),
        tied_embeddings=fields.bool("tie_word_embeddings", False),
        qkv_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias,
        mlp_bias=fields.bool("mlp_bias", False) and family == "llama",
        qk_norm=family == "qwen3",
        dynamic_ntk=own.bool("dynamic_ntk", False),
        logn=own.bool("logn", False),
        windows=_windows(fields, own, family, layers),
        init_std=fields.float("initializer_range", 0.02),
    )


def _family(fields: Fields) -> str:
    """The model type, after everything was refused that this class of network does not compute."""
    architectures = fields.get("architectures", list, [])
    model_type = fields.text("model_type", "")
    named = CLASSES.get(architectures[0]) if architectures and isinstance(architectures[0], str) else None
    family = named or (model_type if model_type in DEFAULTS and not architectures else None)
    if family is None:
        raise FormatError(
            f"{fields.path}: is a {shown(architectures[0] if architectures else model_type)}: kiloq reads "
            f"QWenLMHeadModel, {', '.join(CLASSES)}"
        )
    for key in REFUSED_KEYS:
        if fields.values.get(key):
            raise FormatError(f"{fields.path}: has {shown(key)}: only dense text models are read")
    fields.require("hidden_act", "silu", "silu", "SwiGLU is the only feed-forward layer here")
    return family


def _rope_base(fields: Fields, default: float) -> Any:
    for holder in (*rope.holders(fields), fields):
        if "rope_theta" in holder:
            return holder.float("rope_theta")
    return default


def _rotary_dim(fields: Fields, head_dim: int) -> int:
    """All of the head, unless the file is ours: transformers' classes ignore a partial_rotary_factor."""
    holders = rope.holders(fields)
    if holders and holders[0].values.get("rope_type") == PARTIAL_ROPE:
        return rotary_size(holders[0], "partial_rotary_factor", head_dim)
    for holder in (*holders, fields):
        holder.require("partial_rotary_factor", 1.0, 1.0, "this class of model rotates whole heads")
    return head_dim


def _windows(fields: Fields, own: Fields, family: str, layers: int) -> tuple[int | None, ...]:
    """Tokens that each layer sees; () where every layer sees all."""
    if "windows" in own:
        return tuple(own.get("windows", list))
    window = fields.int("sliding_window", None)
    if family == "llama" or (family != "mistral" and not fields.bool("use_sliding_window", False)):
        window = None
    first = fields.int("max_window_layers", 28) if family != "mistral" else 0
    kinds = fields.get("layer_types", list, None)
    if kinds is None:
        kinds = [FULL if layer < first else SLIDING for layer in range(min(layers, MAX_LAYERS))]
    if len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds):
        raise FormatError(
            f"{fields.path}: layer_types must name {FULL} or {SLIDING} for each of {shown(layers)} layers"
        )
    if window is None or SLIDING not in kinds:
        return ()
    return tuple(window if kind == SLIDING else None for kind in kinds)


def stored_name(name: str) -> str:
    """The Hugging Face name of a canonical tensor."""
    return name if name.startswith("lm_head.") else "model." + name


def entries(config: ModelConfig) -> dict[str, Entry]:
    """Canonical name -> place in a Hugging Face checkpoint."""
    return {name: Entry(stored_name(name), shape) for name, shape in tensor_shapes(config).items()}


def expressible(config: ModelConfig, layout: str) -> ModelConfig:
    """The shape that a model takes in layout "qwen2" (QKV bias always, zeros where it had none) or "native"."""
    c = rope.as_formula(config)
    if c.qk_norm and (c.mlp_bias or c.qkv_bias != c.output_bias):
        raise FormatError(
            "query/key norm with these biases has no class in transformers: only Qwen3's all-or-none attention bias"
        )
    if c.qk_norm:
        return c
    if c.output_bias or c.mlp_bias:  # LlamaForCausalLM: bias on all four attention projections or on none
        attention = c.qkv_bias or c.output_bias or layout == "qwen2"
        return c.replace(qkv_bias=attention, output_bias=attention)
    return c.replace(qkv_bias=True) if layout == "qwen2" else c


def class_of(config: ModelConfig) -> str:
    """The transformers class that computes an expressible model."""
    if config.qk_norm:
        return "Qwen3ForCausalLM"
    if config.qkv_bias and not (config.output_bias or config.mlp_bias):
        return "Qwen2ForCausalLM"
    biased = config.qkv_bias or config.output_bias or config.mlp_bias
    one_window = len(set(config.windows)) == 1 and config.windows[0] is not None
    return "MistralForCausalLM" if one_window and not biased else "LlamaForCausalLM"


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of an expressible model; `dtype` is the short name (fp32, bf16, fp16)."""
    c, name = config, class_of(config)
    # Others compute no NTK or LogN, so beyond the trained length they would be wrong: tell them the trained length.
    # The length that linear scaling and YaRN reach is by convention left to the reader to work out.
    worked_out = c.rope_scaling is not None and c.rope_scaling.stretched(c.train_length) == c.max_length
    positions = c.train_length if c.dynamic_ntk or c.logn or worked_out else c.max_length
    values: dict[str, Any] = {
        "architectures": [name],
        "model_type": CLASSES[name],
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.ffn_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rope_theta": c.rope_base,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied_embeddings,
        "initializer_range": c.init_std,
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": WEIGHT_DTYPES[dtype][1],
    }
    if name in ("Qwen3ForCausalLM", "LlamaForCausalLM"):
        values["attention_bias"] = c.qkv_bias
    if name == "LlamaForCausalLM":
        values["mlp_bias"] = c.mlp_bias
    if c.rotary_dim != c.head_dim:
        share = {"rope_type": PARTIAL_ROPE, "partial_rotary_factor": c.rotary_dim / c.head_dim}
        values["rope_parameters"] = {**share, "rope_theta": c.rope_base}
        values["rope_scaling"] = {**share, "type": PARTIAL_ROPE}
    if c.rope_scaling is not None:
        values["rope_scaling"] = rope.config_json(c.rope_scaling)
    values |= _window_keys(c, name)
    own = _own_keys(c, positions, name)
    return {**values, OWN_KEY: own} if own else values


def _window_keys(config: ModelConfig, name: str) -> dict[str, Any]:
    """Sliding window keys of Qwen2 and Qwen3; none where the layout cannot say it (then `unexpressed` has a note)."""
    if name == "LlamaForCausalLM":
        return {}
    if name == "MistralForCausalLM":
        return {"sliding_window": config.windows[0]}
    sizes = {window for window in config.windows if window is not None}
    if len(sizes) != 1:
        return {"use_sliding_window": False}
    kinds = [FULL if window is None else SLIDING for window in config.windows]
    return {"use_sliding_window": True, "sliding_window": sizes.pop(), "layer_types": kinds, "max_window_layers": 0}


def _own_keys(config: ModelConfig, positions: int, name: str) -> dict[str, Any]:
    """What the layout has no key for; empty for a model that needs nothing of it."""
    c, own = config, dict[str, Any]()
    if c.dynamic_ntk or c.logn:
        own |= {"dynamic_ntk": c.dynamic_ntk, "logn": c.logn}
    if c.train_length != positions:
        own["train_length"] = c.train_length
    if c.max_length != (c.rope_scaling.stretched(positions) if c.rope_scaling else positions):
        own["max_length"] = c.max_length
    if any(window is not None for window in c.windows) and "sliding_window" not in _window_keys(c, name):
        own["windows"] = list(c.windows)
    return own


def unexpressed(config: ModelConfig) -> list[str]:
    """One sentence for each thing that only kiloq will compute from an exported folder."""
    c, notes = config, []
    extensions = [name for name, on in (("dynamic NTK", c.dynamic_ntk), ("LogN", c.logn)) if on]
    if extensions:
        notes.append(
            f"{' and '.join(extensions)} cannot be expressed in the Qwen2 layout: other programs give equal logits up "
            f"to {c.train_length} tokens, and beyond that only kiloq (which reads its own key in config.json) does"
        )
    if "windows" in _own_keys(c, c.max_length, class_of(c)):
        notes.append(
            "these attention windows cannot be expressed in this layout: in other programs every token sees all before it"
        )
    if c.rotary_dim != c.head_dim:
        notes.append(
            f"rotary positions on {c.rotary_dim} of {c.head_dim} dimensions cannot be expressed in this layout: "
            "only kiloq opens the folder"
        )
    return notes
