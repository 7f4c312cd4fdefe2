"""The network against transformers' classes, a float64 oracle, and itself: cached, chunked, ragged, windowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from oracles.naive_network import naive_logits
from shapes import SHAPES, TINY

from kiloq.model.cache import KVCache
from kiloq.model.config import ModelConfig
from kiloq.model.init import init_weights
from kiloq.model.network import Network
from kiloq.model.ntk import ntk_alpha


def tiny_network(config: ModelConfig, seed: int = 0) -> Network:
    """Random weights large enough that every part matters (the usual 0.02 would hide mistakes)."""
    network = Network(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            parameter.copy_(around + 0.2 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(params=SHAPES)
def network(request: pytest.FixtureRequest) -> Network:
    return tiny_network(SHAPES[request.param])


def some_ids(rows: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], (rows, width), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_equals_the_float64_oracle(network: Network) -> None:
    """41 tokens: past 2 x 16, so NTK, LogN and both windows act. float32 sums against float64: 2e-4 at logits of ~10."""
    ids = some_ids(1, 41)
    config = network.config
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    alpha = ntk_alpha(41, config.train_length) if config.dynamic_ntk else 1.0
    want = naive_logits(config, weights, ids[0].tolist(), alpha=alpha, logn=config.logn)
    np.testing.assert_allclose(network(ids)[0].numpy(), want, atol=2e-4)


def _transformers_twin(kind: str) -> tuple[transformers.PreTrainedModel, ModelConfig]:
    common = dict(
        vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=80,
        max_position_embeddings=256, rms_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}}
    ours = {**TINY, "norm_eps": 1e-5, "rope_base": 12345.0}
    if kind == "qwen2":
        theirs = transformers.Qwen2Config(**common, num_key_value_heads=2, tie_word_embeddings=True, **rope)
        return transformers.Qwen2ForCausalLM(theirs), ModelConfig(**ours, num_kv_heads=2, tied_embeddings=True)
    if kind == "qwen2-window":
        layers = ["full_attention", "sliding_attention", "sliding_attention"]
        theirs = transformers.Qwen2Config(
            **common, num_key_value_heads=6, use_sliding_window=True, sliding_window=5, layer_types=layers,
            tie_word_embeddings=False, **rope,
        )  # fmt: skip
        return transformers.Qwen2ForCausalLM(theirs), ModelConfig(**ours, windows=(None, 5, 5))
    if kind == "qwen3":
        theirs = transformers.Qwen3Config(
            **common, num_key_value_heads=3, head_dim=16, tie_word_embeddings=False, **rope
        )
        more = dict(num_kv_heads=3, head_dim=16, qk_norm=True, qkv_bias=False)
        return transformers.Qwen3ForCausalLM(theirs), ModelConfig(**ours, **more)
    biased = kind == "llama-biased"
    theirs = transformers.LlamaConfig(
        **common, num_key_value_heads=2, attention_bias=biased, mlp_bias=biased, tie_word_embeddings=False, **rope
    )
    more = dict(num_kv_heads=2, qkv_bias=biased, output_bias=biased, mlp_bias=biased)
    return transformers.LlamaForCausalLM(theirs), ModelConfig(**ours, **more)


@pytest.mark.parametrize("kind", ["qwen2", "qwen2-window", "qwen3", "llama", "llama-biased"])
def test_equals_transformers(kind: str) -> None:
    """Logits and gradients of the same random weights; float32 on both sides, sums in another order."""
    twin, config = _transformers_twin(kind)
    network = tiny_network(config)
    state = {
        name if name.startswith("lm_head") else f"model.{name}": value for name, value in network.state_dict().items()
    }
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    twin.tie_weights()
    ids = some_ids(2, 23)
    theirs, ours = twin.eval()(ids).logits, network(ids)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    theirs.square().mean().backward()
    ours.square().mean().backward()
    for name, parameter in network.named_parameters():
        other = twin.get_parameter(name if name.startswith("lm_head") else f"model.{name}")
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("chunks", [[41], [1] * 41, [7, 1, 1, 16, 1, 15], [40, 1], [16, 17, 8]])
@torch.inference_mode()
def test_cached_equals_uncached(network: Network, chunks: list[int]) -> None:
    """Given the alpha of the whole length, any cut into chunks gives the uncached logits at every position."""
    ids = some_ids(1, 41)
    alpha = [7.0] if network.config.dynamic_ntk else [1.0]
    want = network(ids)
    cache = KVCache(network.config, 1, dtype=torch.float32, device="cpu")
    got = torch.cat([network(part, cache=cache, alpha=alpha) for part in ids.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)


@torch.inference_mode()
def test_ragged_batch_equals_single_rows(network: Network) -> None:
    """Rows of different lengths, prefilled and then continued by different numbers of tokens, against each alone."""
    lengths, more = [33, 5, 17, 1], [3, 12, 1, 7]
    rows = [some_ids(1, a + b, seed=a) for a, b in zip(lengths, more, strict=True)]
    alpha = [ntk_alpha(row.shape[1], 16) if network.config.dynamic_ntk else 1.0 for row in rows]

    def padded(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([part[0] for part in parts], batch_first=True, padding_value=96)

    cache = KVCache(network.config, 4, dtype=torch.float32, device="cpu")
    first = network(
        padded([row[:, :n] for row, n in zip(rows, lengths, strict=True)]), cache=cache, lengths=lengths, alpha=alpha
    )
    second = network(
        padded([row[:, n:] for row, n in zip(rows, lengths, strict=True)]), cache=cache, lengths=more, alpha=alpha
    )
    assert cache.lengths == [a + b for a, b in zip(lengths, more, strict=True)]
    for index, row in enumerate(rows):
        want = network(row)[0]
        got = torch.cat((first[index, : lengths[index]], second[index, : more[index]]))
        torch.testing.assert_close(got, want, atol=2e-4, rtol=0)
    last = network(padded(rows), lengths=[row.shape[1] for row in rows], alpha=alpha, last_only=True)
    for index, row in enumerate(rows):
        torch.testing.assert_close(last[index, 0], network(row)[0, -1], atol=2e-4, rtol=0)


@torch.inference_mode()
def test_alpha_and_logn_are_arguments(network: Network) -> None:
    """Every row is stretched by its own alpha, whatever the config says; `logn` switches likewise."""
    ids = some_ids(2, 20)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    got = network(ids, alpha=[3.0, 15.0], logn=True)
    for row, alpha in enumerate((3.0, 15.0)):
        want = naive_logits(network.config, weights, ids[row].tolist(), alpha=alpha, logn=True)
        np.testing.assert_allclose(got[row].numpy(), want, atol=2e-4)
    network.train()
    plain = network(ids)
    network.eval()
    torch.testing.assert_close(plain, network(ids, alpha=[1.0, 1.0], logn=False), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "mean_error"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.inference_mode()
def test_half_precision_keeps_float32_logits(network: Network, dtype: torch.dtype, mean_error: float) -> None:
    """Error of half-precision weights and activations on logits of size ~8, seen here: about a third of the bound."""
    ids = some_ids(1, 30)
    want = network(ids)
    halved = network.to(dtype)
    cache = KVCache(network.config, 1, dtype=dtype, device="cpu")
    alpha = [3.0] if network.config.dynamic_ntk else [1.0]
    for got in (halved(ids), torch.cat([halved(p, cache=cache, alpha=alpha) for p in ids.split(9, dim=1)], dim=1)):
        assert got.dtype == torch.float32
        assert (got - want).abs().mean() < mean_error


def test_fork_and_clear_are_independent() -> None:
    network = tiny_network(SHAPES["qwen2"])
    ids = some_ids(1, 12)
    with torch.inference_mode():
        cache = KVCache(network.config, 1, dtype=torch.float32, device="cpu")
        network(ids, cache=cache)
        twin = cache.fork()
        a = network(some_ids(1, 3, seed=5), cache=cache)
        b = network(some_ids(1, 3, seed=5), cache=twin)
        torch.testing.assert_close(a, b, atol=0, rtol=0)
        cache.clear()
        assert cache.lengths == [0] and twin.lengths == [15]
        torch.testing.assert_close(network(ids, cache=cache), network(ids), atol=1e-5, rtol=0)


def test_initialisation_is_the_originals() -> None:
    """std 0.02, residual writers 0.02 / sqrt(2 * layers), biases zero, norms one; drawn from the seed alone."""
    config = ModelConfig(vocab_size=500, hidden_size=256, num_layers=8, num_heads=4, ffn_size=512)
    network, again = Network(config), Network(config)
    init_weights(network, seed=3)
    init_weights(again, seed=3)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if name.endswith("bias"):
            assert not value.any()
        elif "norm" in name:
            assert (value == 1).all()
        else:
            std = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert value.std().item() == pytest.approx(std, rel=0.02), name
            assert abs(value.mean().item()) < std / 50
    init_weights(again, seed=4)
    assert not torch.equal(network.embed_tokens.weight, again.embed_tokens.weight)
