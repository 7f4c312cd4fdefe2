"""The chunked loss and the passes that keep little equal the plain code, in value and gradients; no test makes all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kiloq.model import fused
from kiloq.model.config import ModelConfig
from kiloq.model.init import init_weights
from kiloq.model.network import IGNORE, Network
from kiloq.train.loss import chunked_cross_entropy, cross_entropy


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_NC = torch.randn(37, 16, generator=generator, dtype=dtype).requires_grad_()
    matrix_VC = torch.randn(50, 16, generator=generator, dtype=dtype).requires_grad_()
    labels_N = torch.randint(0, 50, (37,), generator=generator)
    labels_N[[3, 36]] = IGNORE
    return x_NC, matrix_VC, labels_N


@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
def test_value_and_gradients_equal_those_of_whole_logits(chunk: int) -> None:
    """Softmax runs in float32 whatever the tensors' type: hence 1e-5."""
    x_NC, matrix_VC, labels_N = tensors()
    loss = 3 * chunked_cross_entropy(x_NC, matrix_VC, labels_N, chunk)
    found = torch.autograd.grad(loss, [x_NC, matrix_VC])
    whole = 3 * cross_entropy(x_NC, matrix_VC, labels_N)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    for mine, theirs in zip(found, torch.autograd.grad(whole, [x_NC, matrix_VC]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_z_loss_adds_the_square_of_log_z() -> None:
    x_NC, matrix_VC, labels_N = tensors()
    loss = chunked_cross_entropy(x_NC, matrix_VC, labels_N, 8, 0.1)
    kept = labels_N != IGNORE
    squares = torch.logsumexp(x_NC @ matrix_VC.T, -1)[kept].square().sum()
    whole = cross_entropy(x_NC, matrix_VC, labels_N) + 0.1 * squares
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(loss, [x_NC, matrix_VC]), torch.autograd.grad(whole, [x_NC, matrix_VC]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_no_tensor_is_as_large_as_all_logits() -> None:
    x_NC = torch.randn(512, 8).requires_grad_()
    matrix_VC = torch.randn(1000, 8).requires_grad_()
    labels_N = torch.zeros(512, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as watched:
        chunked_cross_entropy(x_NC, matrix_VC, labels_N, 16).backward()
    largest = max(event.cpu_memory_usage for event in watched.events())
    assert 0 < largest <= 4 * 1000 * 16 + 4 * 1000 * 8 * 2 < 4 * 1000 * 512 / 8


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in another order: rounding of float32."""
    x_NC, matrix_VC, labels_N = (value.float() if value.is_floating_point() else value for value in tensors())
    found = []
    for elements in (1, 120, 1 << 20):
        monkeypatch.setattr("kiloq.train.loss.BLOCK_ELEMENTS", elements)
        monkeypatch.setattr("kiloq.train.loss.PRODUCT_ELEMENTS", elements)
        loss = chunked_cross_entropy(x_NC, matrix_VC, labels_N, 16)
        found.append((loss, *torch.autograd.grad(loss, [x_NC, matrix_VC])))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


SHAPES: list[dict[str, Any]] = [
    {}, {"num_kv_heads": 2}, {"qk_norm": True, "qkv_bias": False}, {"rotary_dim": 8}, {"mlp_bias": True, "output_bias": True},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_that_keep_little_learn_what_the_plain_code_learns(
    shape: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients within the rounding of the type of products: 1e-5 for float32; in bf16 two per cent, as both round."""
    config = ModelConfig(
        vocab_size=80, hidden_size=64, num_layers=2, num_heads=4, ffn_size=96, train_length=32, **shape
    )
    network = Network(config)
    init_weights(network, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # so that biases and norms are no exception
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    ids_BT = torch.randint(0, 80, (3, 33), generator=generator)
    found = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(fused, "learns", lambda *_: False)
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = network.train()(ids_BT[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten()).backward()
        found.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    for name, mine in found[0].items():
        theirs = found[1][name]
        assert (mine - theirs).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * theirs.norm(), name


def test_a_module_that_does_more_than_its_class_is_called() -> None:
    class Adapter(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    x, plain, hooked = torch.ones(2, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    assert fused.learns(x, plain)
    assert not fused.learns(x, plain, Adapter(4, 4)) and not fused.learns(x, hooked)
    assert not fused.learns(x, torch.nn.Sequential(plain))
    with torch.no_grad():
        assert not fused.learns(x, plain)
