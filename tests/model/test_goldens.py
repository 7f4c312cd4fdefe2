"""The network against the outputs of the original code: logits, hidden states, caches, losses, gradients.

Tolerance 2e-5 absolute on float32 logits of size about 5: both sides sum in float32, in another order.
"""

from __future__ import annotations

import pytest
import torch
from oracles.qwen1_golden import CASES, golden, golden_config, golden_network, kiloq_names
from safetensors.torch import load_file
from support import shared

from kiloq.model.cache import KVCache
from kiloq.model.network import Network, RMSNorm, next_token_loss
from kiloq.model.ntk import ntk_alpha
from kiloq.model.rope import inverse_frequencies, logn_scale, rotary_tables, rotate

TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Network, dict, dict]:
    info, tensors = golden(request.param)
    return request.param, golden_network(request.param), info, tensors


def assert_logits(logits: torch.Tensor, tensors: dict, key: str, tolerance: float = TOLERANCE) -> None:
    """Compares with full logits, or with the columns, top values and log-sum that the large case keeps."""
    if f"{key}.logits" in tensors:
        torch.testing.assert_close(logits, tensors[f"{key}.logits"], atol=tolerance, rtol=0)
        return
    torch.testing.assert_close(
        logits[..., tensors["vocab_cols"].long()], tensors[f"{key}.logits.cols"], atol=tolerance, rtol=0
    )
    torch.testing.assert_close(
        logits.gather(-1, tensors[f"{key}.logits.top_i"].long()), tensors[f"{key}.logits.top_v"], atol=tolerance, rtol=0
    )
    torch.testing.assert_close(logits.logsumexp(-1), tensors[f"{key}.logits.lse"], atol=tolerance, rtol=0)


@torch.inference_mode()
def test_short_prompt(case) -> None:
    _, network, _, tensors = case
    assert_logits(network(tensors["short.input_ids"]), tensors, "short")


@torch.inference_mode()
def test_beyond_the_trained_length(case) -> None:
    _, network, info, tensors = case
    lengths = [entry["T"] for key, entry in info.items() if key.startswith("long.")]
    assert lengths
    for length in lengths:
        logits = network(tensors["long.input_ids"][:, :length])
        assert_logits(logits[:, tensors[f"long.{length}.positions"].long()], tensors, f"long.{length}")


@torch.inference_mode()
def test_training_mode_has_neither_ntk_nor_logn(case) -> None:
    _, network, info, tensors = case
    for key in [key for key in info if key.startswith("train_mode.")]:
        network.train()
        logits = network(tensors["long.input_ids"][:, : info[key]["T"]])
        network.eval()
        assert_logits(logits[:, tensors[f"{key}.positions"].long()], tensors, key)


@torch.inference_mode()
def test_hidden_states_and_keys(case) -> None:
    _, network, _, tensors = case
    if "short.hidden.wte" not in tensors:
        pytest.skip("this case stores no hidden states")
    seen: dict[str, torch.Tensor] = {}
    watched = {"wte": network.embed_tokens}
    for index, block in enumerate(network.layers):
        watched |= {f"layer_{index}": block, f"attn_out_{index}": block.self_attn}
    hooks = [m.register_forward_hook(lambda m, i, out, n=n: seen.update({n: out})) for n, m in watched.items()]
    cache = KVCache(network.config, 1, dtype=torch.float32, device="cpu")
    seen["ln_f"] = network.hidden(tensors["short.input_ids"], cache=cache)
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        torch.testing.assert_close(value, tensors[f"short.hidden.{name}"], atol=TOLERANCE, rtol=0)
    stored = [index for index in range(network.config.num_layers) if f"short.kv.{index}.key" in tensors]
    assert stored
    for index in stored:
        for got, kind in zip(cache.layer(index), ("key", "value"), strict=True):
            torch.testing.assert_close(got, tensors[f"short.kv.{index}.{kind}"], atol=TOLERANCE, rtol=0)


def _right_padded(ids_BT: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The reference pads on the left; ours is told lengths and pads on the right."""
    return torch.stack([row.roll(length) for row, length in zip(ids_BT, lengths, strict=True)])


@pytest.mark.parametrize("kind", ["batch_short", "batch_long"])
@torch.inference_mode()
def test_ragged_batch_and_its_steps(case, kind: str) -> None:
    _, network, info, tensors = case
    lengths, padded = info[kind]["lengths"], info[kind]["padded"]
    alpha = [float(a) for a in info[kind]["ntk_alpha"]]
    alpha = alpha * len(lengths) if len(alpha) == 1 else alpha
    start = [padded - length for length in lengths]  # the original counts left padding as positions (LogN sees it)
    cache = KVCache(network.config, len(lengths), dtype=torch.float32, device="cpu")
    ids_BT = _right_padded(tensors[f"{kind}.input_ids"], lengths)
    ours = network(ids_BT, cache=cache, lengths=lengths, start=start, alpha=alpha)
    at = tensors[f"{kind}.positions"].long()
    shifted = torch.stack([row.roll(pad, dims=0) for row, pad in zip(ours, start, strict=True)])[:, at]
    shifted[at[None, :] < torch.tensor(start)[:, None]] = 0  # stored as zeros
    if f"{kind}.logits" in tensors:
        assert_logits(shifted, tensors, kind)
    else:
        real = at[None, :] >= torch.tensor(start)[:, None]
        for stored, got in (("cols", shifted[..., tensors["vocab_cols"].long()]), ("lse", shifted.logsumexp(-1))):
            want = tensors[f"{kind}.logits.{stored}"]
            torch.testing.assert_close(got[real], want[real], atol=TOLERANCE, rtol=0)
    steps = tensors[f"{kind}.decode_ids"]
    decoded = [network(steps[:, i : i + 1], cache=cache, start=start, alpha=alpha) for i in range(steps.shape[1])]
    key = f"{kind}.decode_logits"
    got = torch.cat(decoded, dim=1)
    if key in tensors:
        torch.testing.assert_close(got, tensors[key], atol=TOLERANCE, rtol=0)
    else:
        torch.testing.assert_close(
            got[..., tensors["vocab_cols"].long()], tensors[f"{key}.cols"], atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("kind", ["cached_a", "cached_b", "cached_1"])
@torch.inference_mode()
def test_steps_with_the_frozen_alpha_of_the_original(case, kind: str) -> None:
    _, network, info, tensors = case
    prefill, end = info[kind]["prefill"], info[kind]["end"]
    alpha = [float(info[kind]["ntk_alpha_frozen"][0])]
    ids = tensors["long.input_ids"]
    cache = KVCache(network.config, 1, dtype=torch.float32, device="cpu")
    rows = [network(ids[:, :prefill], cache=cache, alpha=alpha)[:, -1]]
    rows += [network(ids[:, i : i + 1], cache=cache, alpha=alpha)[:, -1] for i in range(prefill, end)]
    steps = tensors.get(f"{kind}.steps", torch.arange(len(rows)))
    got = torch.stack(rows, dim=1)[:, steps.long()]
    want = f"{kind}.logits"
    got = got if want in tensors else got[..., tensors["vocab_cols"].long()]
    expected = tensors.get(want, tensors.get(f"{want}.cols"))
    torch.testing.assert_close(got[:, : expected.shape[1]], expected, atol=TOLERANCE, rtol=0)
    uncached = network(ids[:, :end])[:, -1]
    full = f"{kind}.full_forward_last"
    uncached = uncached if full in tensors else uncached[..., tensors["vocab_cols"].long()]
    torch.testing.assert_close(uncached, tensors.get(full, tensors.get(f"{full}.cols")), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["loss_short", "loss_long"])
def test_loss_and_gradients(case, kind: str) -> None:
    name, network, info, tensors = case
    if kind not in info:
        pytest.skip("this case stores no loss of this kind")
    network.train()
    network.zero_grad()
    loss = next_token_loss(network(tensors[f"{kind}.input_ids"]), tensors[f"{kind}.labels"])
    loss.backward()
    network.eval()
    assert loss.item() == pytest.approx(info[kind]["loss_train_mode"], abs=1e-5)
    with torch.no_grad():
        evaluated = next_token_loss(network(tensors[f"{kind}.input_ids"]), tensors[f"{kind}.labels"])
    assert evaluated.item() == pytest.approx(info[kind]["loss_eval_mode_no_mask"], abs=1e-5)
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    for qwen1, norm in info[kind]["grad_norms_train_mode"].items():
        shape = _fused_shape(network, qwen1)
        ours = torch.cat([gradients[part].flatten() for part, _ in kiloq_names(qwen1, torch.empty(shape))])
        assert ours.norm().item() == pytest.approx(norm, rel=1e-4), qwen1
    for key in [key for key in tensors if key.startswith(f"{kind}.grad.")]:
        for part, want in kiloq_names(key.removeprefix(f"{kind}.grad."), tensors[key]):
            difference = (gradients[part] - want).norm() / want.norm()
            assert difference < 1e-4, (name, part)


def _fused_shape(network: Network, qwen1: str) -> tuple[int, ...]:
    return (3, 1) if "c_attn" in qwen1 else (1, 1)


def test_rotary_tables_and_logn_factors() -> None:
    for name in ("m18b", "m72b", "odd"):
        config = golden_config(name)
        info, tensors = golden(name)
        for alpha in (1, 3, 7, 15):
            if f"rotary.{alpha}.inv_freq" not in tensors:
                continue
            inverse = inverse_frequencies(config.rotary_dim, config.rope_base, torch.tensor([float(alpha)]))
            torch.testing.assert_close(inverse[0], tensors[f"rotary.{alpha}.inv_freq"], rtol=1e-6, atol=0)
            cos, sin = rotary_tables(tensors[f"rotary.{alpha}.positions"][None], inverse)
            torch.testing.assert_close(cos[0, :, 0], tensors[f"rotary.{alpha}.cos"], atol=1e-4, rtol=0)
            torch.testing.assert_close(sin[0, :, 0], tensors[f"rotary.{alpha}.sin"], atol=1e-4, rtol=0)
        for length, alpha in info["ntk_alpha_table"].items():
            assert ntk_alpha(int(length), config.train_length) == alpha
        if "logn.factor" in tensors:
            got = logn_scale(tensors["logn.index0"][None].long(), config.train_length)[0]
            torch.testing.assert_close(got, tensors["logn.factor"], rtol=1e-6, atol=0)


def test_units() -> None:
    units = load_file(shared("goldens", "model", "units.safetensors"))
    for index in range(3):
        x, weight, want = (units[f"rmsnorm.{index}.{part}"] for part in ("x", "weight", "y"))
        norm = RMSNorm(x.shape[-1], 1e-6).to(x.dtype)
        norm.weight.data = weight
        torch.testing.assert_close(norm(x), want, atol=1e-6, rtol=1e-6)
        x, cos, sin, want = (units[f"apply_rotary.{index}.{part}"] for part in ("x", "cos", "sin", "y"))
        torch.testing.assert_close(rotate(x, cos, sin), want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@torch.inference_mode()
def test_bfloat16(case, dtype: torch.dtype) -> None:
    """Mean error, since single logits of bf16 passes differ by their last bit (about 0.03 at logits of size 5)."""
    name, _, _, tensors = case
    if "bf16.short.logits" not in tensors:
        pytest.skip("this case stores no bf16 run")
    network = golden_network(name).to(dtype)
    got, want = network(tensors["short.input_ids"]), tensors["bf16.short.logits"]
    assert got.dtype == torch.float32
    assert (got - want).abs().mean() < 0.02
    assert (got.argmax(-1) == want.argmax(-1)).float().mean() > 0.9
