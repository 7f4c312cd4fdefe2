"""Rope scaling against transformers' own rules, the float64 oracle and impossible values.

Logits: float32 with additions in another order, 1e-4 at logits of size 10. Frequencies: float32 on their side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from model.test_network import some_ids, tiny_network
from oracles.naive_network import naive_logits
from shapes import TINY
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kiloq.core.errors import FormatError
from kiloq.model.cache import KVCache
from kiloq.model.config import ModelConfig
from kiloq.model.rope_scaling import RopeScaling, yarn_magnitude

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
# transformers' rope parameters, ours. Original lengths are small enough that the tests go beyond them.
RULES: dict[str, tuple[dict[str, Any], RopeScaling]] = {
    "linear": ({"rope_type": "linear", "factor": 2.5}, RopeScaling(kind="linear", factor=2.5)),
    "llama3": ({"rope_type": "llama3", **LLAMA3}, RopeScaling(kind="llama3", factor=8.0, original_length=32)),
    "llama3 with other bands": (
        {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 0.5, "high_freq_factor": 2.0},
        RopeScaling(kind="llama3", factor=8.0, original_length=32, low_freq_factor=0.5, high_freq_factor=2.0),
    ),
    "yarn": (
        {"rope_type": "yarn", **YARN},
        RopeScaling(kind="yarn", factor=4.0, original_length=16, attention_factor=yarn_magnitude(4.0)),
    ),
    "yarn untruncated with other betas": (
        {"rope_type": "yarn", **YARN, "beta_fast": 2.0, "beta_slow": 0.25, "truncate": False, "attention_factor": 1.3},
        RopeScaling(
            kind="yarn", factor=4.0, original_length=16, beta_fast=2.0, beta_slow=0.25, truncate=False,
            attention_factor=1.3,
        ),
    ),
}  # fmt: skip


def twin_of(kind: str, rope: dict[str, Any], scaling: RopeScaling) -> tuple[Any, ModelConfig]:
    """An empty model of transformers and our configuration of the same shape."""
    common = dict(
        vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=80,
        max_position_embeddings=256, rms_norm_eps=1e-5, attn_implementation="eager", num_key_value_heads=2,
        tie_word_embeddings=False, rope_parameters={**rope, "rope_theta": 500.0},
    )  # fmt: skip
    ours = {**TINY, "norm_eps": 1e-5, "rope_base": 500.0, "num_kv_heads": 2, "rope_scaling": scaling}
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common)), ModelConfig(**ours, qkv_bias=False)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common)), ModelConfig(**ours)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("rule", RULES)
@torch.inference_mode()
def test_logits_equal_transformers(rule: str, kind: str) -> None:
    """12 tokens are below every original length and 200 beyond it; 200 again in chunks through the cache."""
    twin, config = twin_of(kind, *RULES[rule])
    network = tiny_network(config)
    state = {n if n.startswith("lm_head") else f"model.{n}": value for n, value in network.state_dict().items()}
    twin.load_state_dict(state)
    plain = tiny_network(config.replace(rope_scaling=None))
    for length in (12, 200):
        ids = some_ids(1, length)
        theirs, ours = twin.eval()(ids).logits, network(ids)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
        assert (plain(ids) - theirs).abs().max() > 0.1, "the scaling changes nothing here: a useless test"
    cache = KVCache(config, 1, dtype=torch.float32, device="cpu")
    chunks = torch.cat([network(part, cache=cache) for part in ids.split([30, 1, 100, 69], dim=1)], dim=1)
    torch.testing.assert_close(chunks, theirs, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@torch.inference_mode()
def test_logits_equal_the_float64_oracle(rule: str) -> None:
    table = RopeScaling(kind="factors", table=(1.0, 1.5, 2.0, 0.5))
    shape = {**TINY, "rope_base": 500.0, "rotary_dim": 8}
    for config in (ModelConfig(**shape, rope_scaling=RULES[rule][1]), ModelConfig(**shape, rope_scaling=table)):
        network = tiny_network(config)
        weights = {name: value.numpy() for name, value in network.state_dict().items()}
        ids = some_ids(1, 41)
        want = naive_logits(config, weights, ids[0].tolist())
        np.testing.assert_allclose(network(ids)[0].numpy(), want, atol=2e-4)


# Published settings: LLaMA 3.1 and 3.2, Qwen2.5's long context, DeepSeek-Coder, a YaRN with mscale (DeepSeek).
PUBLISHED: list[tuple[dict[str, Any], float, RopeScaling]] = [
    (
        {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8192},
        5e5,
        RopeScaling(kind="llama3", factor=8.0, original_length=8192),
    ),
    (
        {"rope_type": "llama3", **LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
        5e5,
        RopeScaling(kind="llama3", factor=32.0, original_length=8192),
    ),
    (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        1e6,
        RopeScaling(kind="yarn", factor=4.0, original_length=32768, attention_factor=yarn_magnitude(4.0)),
    ),
    ({"rope_type": "linear", "factor": 4.0}, 1e5, RopeScaling(kind="linear", factor=4.0)),
    (
        {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.7,
         "mscale_all_dim": 1.2},
        1e4,
        RopeScaling(kind="yarn", factor=40.0, original_length=4096,
                    attention_factor=yarn_magnitude(40.0, 0.7) / yarn_magnitude(40.0, 1.2)),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rope", "base", "scaling"), PUBLISHED)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequencies_of_published_models(
    rope: dict[str, Any], base: float, scaling: RopeScaling, head_dim: int
) -> None:
    """Relative 1e-6: float32 powers on their side."""
    config = transformers.LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim, max_position_embeddings=131072,
        rope_parameters={**rope, "rope_theta": base},
    )  # fmt: skip
    theirs, attention = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    plain = base ** -(np.arange(0, head_dim, 2) / head_dim)
    np.testing.assert_allclose(plain / scaling.factors(head_dim, base), theirs.double().numpy(), rtol=1e-6)
    assert scaling.attention_factor == pytest.approx(attention, rel=1e-12)


def test_lengths_by_convention() -> None:
    assert RopeScaling(kind="linear", factor=4.0).stretched(4096) == 16384
    yarn = RopeScaling(kind="yarn", factor=4.0, original_length=32768)
    assert yarn.stretched(32768) == yarn.stretched(131072) == 131072
    assert RopeScaling(kind="llama3", factor=8.0, original_length=8192).stretched(131072) == 131072


IMPOSSIBLE: list[dict[str, Any]] = [
    {"kind": "longrope"},
    {"kind": ["linear"]},
    {"kind": "linear", "factor": 0.5},
    {"kind": "linear", "factor": -4.0},
    {"kind": "linear", "factor": float("nan")},
    {"kind": "linear", "factor": float("inf")},
    {"kind": "linear", "factor": "4"},
    {"kind": "linear", "factor": True},
    {"kind": "llama3", "factor": 8.0},
    {"kind": "llama3", "factor": 8.0, "original_length": -1},
    {"kind": "llama3", "factor": 8.0, "original_length": 10**400},
    {"kind": "llama3", "factor": 8.0, "original_length": 32, "low_freq_factor": 4.0},
    {"kind": "llama3", "factor": 8.0, "original_length": 32, "low_freq_factor": 0.0},
    {"kind": "yarn", "factor": 4.0},
    {"kind": "yarn", "factor": 4.0, "original_length": 1, "beta_slow": 20.0},
    {"kind": "yarn", "factor": 4.0, "original_length": 1 << 30, "beta_fast": 1e-4, "beta_slow": 1e-5},
    {"kind": "yarn", "factor": 4.0, "original_length": 32, "beta_fast": 1.0},
    {"kind": "yarn", "factor": 4.0, "original_length": 32, "attention_factor": 0.0},
    {"kind": "yarn", "factor": 4.0, "original_length": 32, "attention_factor": float("nan")},
    {"kind": "factors", "table": (1.0, 2.0, 3.0)},
    {"kind": "factors", "table": (1.0, 2.0, 0.0, 1.0)},
    {"kind": "factors", "table": (1.0, 2.0, float("nan"), 1.0)},
    {"kind": "factors", "table": (1.0, 2.0, float("inf"), 1.0)},
]


@pytest.mark.parametrize("fields", IMPOSSIBLE)
def test_impossible_values_are_refused_in_one_sentence(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        ModelConfig(**TINY, rope_scaling=RopeScaling(**fields))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_one_stretch_at_a_time() -> None:
    with pytest.raises(FormatError, match="exclude each other"):
        ModelConfig(**TINY, dynamic_ntk=True, rope_scaling=RopeScaling(kind="linear", factor=2.0))
