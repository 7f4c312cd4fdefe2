"""The chunked loss equals the whole one, in value and gradients, and never makes all logits."""

from __future__ import annotations

import pytest
import torch

from kiloq.model.network import IGNORE
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
