"""Name and shape of every tensor of a decoder: the one list that the network, the readers, writers and planners share.

Names are those of the network's state dict, Hugging Face's Qwen2 names without the leading "model."; weights are
[out, in]. No torch.
"""

from __future__ import annotations

from kiloq.model.config import ModelConfig

Shape = tuple[int, ...]


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor in the order of the forward pass; `lm_head.weight` only where it is not tied."""
    c = config
    shapes: dict[str, Shape] = {"embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    for layer in range(c.num_layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in layer_shapes(c).items()}
    shapes["norm.weight"] = (c.hidden_size,)
    if not c.tied_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return shapes


def layer_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The tensors of one layer."""
    c = config
    query, key = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes: dict[str, Shape] = {"input_layernorm.weight": (c.hidden_size,)}
    shapes |= _linear("self_attn.q_proj", query, c.hidden_size, c.qkv_bias)
    shapes |= _linear("self_attn.k_proj", key, c.hidden_size, c.qkv_bias)
    shapes |= _linear("self_attn.v_proj", key, c.hidden_size, c.qkv_bias)
    shapes |= _linear("self_attn.o_proj", c.hidden_size, query, c.output_bias)
    if c.qk_norm:
        shapes |= {f"self_attn.{which}_norm.weight": (c.head_dim,) for which in "qk"}
    shapes["post_attention_layernorm.weight"] = (c.hidden_size,)
    shapes |= _linear("mlp.gate_proj", c.ffn_size, c.hidden_size, c.mlp_bias)
    shapes |= _linear("mlp.up_proj", c.ffn_size, c.hidden_size, c.mlp_bias)
    shapes |= _linear("mlp.down_proj", c.hidden_size, c.ffn_size, c.mlp_bias)
    return shapes


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (rows, columns)}
    return weight | ({f"{name}.bias": (rows,)} if bias else {})
