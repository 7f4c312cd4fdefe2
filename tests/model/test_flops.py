"""The cost formulas against counted values: PyTorch's own counters and the published sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kiloq.core.errors import FormatError
from kiloq.model import flops
from kiloq.model.config import SERIES, ModelConfig
from kiloq.model.network import Network
from kiloq.model.shapes import tensor_shapes

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, ffn_size=96, qk_norm=True, mlp_bias=True
)
# Computed from the published config files; they equal the checkpoints' own totals (72B: half of 144,575,840,256 bytes).
PUBLISHED = {
    "qwen-1.8b": 1_836_828_672,
    "qwen-7b": 7_721_324_544,
    "qwen-14b": 14_167_290_880,
    "qwen-72b": 72_287_920_128,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_series_builds_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        network = Network(SERIES[name])
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[name]
    assert flops.parameter_count(SERIES[name]) == PUBLISHED[name]


@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(tied_embeddings=True, output_bias=True, qkv_bias=False)])
def test_names_and_shapes_are_the_networks(config: ModelConfig) -> None:
    state = {name: tuple(value.shape) for name, value in Network(config).state_dict().items()}
    assert list(tensor_shapes(config).items()) == list(state.items())


def test_forward_flops_are_what_pytorch_counts() -> None:
    """The plain kernel computes, and PyTorch counts, the full attention square; the formula counts the visible half."""
    network, tokens = Network(CONFIG), 24
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(1, tokens, dtype=torch.long))
    width = CONFIG.num_heads * CONFIG.head_dim
    square = 2 * 2 * width * tokens * tokens * CONFIG.num_layers
    visible = 2 * 2 * width * (tokens * (tokens + 1) // 2) * CONFIG.num_layers
    assert flops.forward_flops(CONFIG, tokens) == counter.get_total_flops() - square + visible


def test_decode_steps_add_up_to_the_prefill() -> None:
    for config in (CONFIG, CONFIG.replace(windows=(4, None, 7))):
        steps = sum(flops.forward_flops(config, 1, cached) for cached in range(20))
        assert steps == flops.forward_flops(config, 20)
    assert flops.forward_flops(CONFIG, 20, logits=1) == flops.forward_flops(CONFIG, 20) - 19 * 2 * 64 * 300
    assert flops.training_flops(CONFIG, 20) == 3 * flops.forward_flops(CONFIG, 20)


def test_bytes_are_those_of_the_tensors() -> None:
    network = Network(CONFIG).to(torch.bfloat16)
    assert flops.weight_bytes(CONFIG, "bf16") == sum(p.numel() * p.element_size() for p in network.parameters())
    assert flops.cache_bytes(CONFIG, 10, "fp32") == 3 * 2 * 10 * 2 * 16 * 4
    assert flops.adamw_bytes(CONFIG) == 4 * 4 * flops.parameter_count(CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 5},
        {"num_kv_heads": 3},
        {"rotary_dim": 3},
        {"rotary_dim": 18},
        {"num_layers": 0},
        {"num_layers": 10**9},
        {"vocab_size": 2**63},
        {"hidden_size": -64},
        {"hidden_size": 64.0},
        {"windows": (1, 2)},
        {"windows": (1, 2, 0)},
        {"norm_eps": float("nan")},
        {"rope_base": float("inf")},
        {"train_length": 0},
    ],
)
def test_impossible_shapes_are_refused(change: dict) -> None:
    field = next(iter(change))
    whole = {"vocab_size": 300, "hidden_size": 64, "num_layers": 3, "num_heads": 4, "ffn_size": 96}
    with pytest.raises(FormatError, match=field):
        ModelConfig(**(whole | change))
