"""Samplers against a float64 oracle, the original's logits processors, and their own statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.naive_sampler import naive_choice, naive_distribution
from safetensors.torch import load_file
from sampling_rules import PARAMS
from support import shared

from kiloq.core.errors import KiloqError, UsageError
from kiloq.generate import sampling
from kiloq.generate.params import SamplingParams


def sampling_units() -> dict[str, np.ndarray]:
    units = load_file(shared("goldens", "model", "units.safetensors"))
    return {name: value.numpy() for name, value in units.items() if name.startswith("sampling.")}


@pytest.mark.parametrize("params", PARAMS, ids=lambda p: str(p)[15:60])
@pytest.mark.parametrize("size", [40, 3000])
def test_equals_the_oracle(params: SamplingParams, size: int) -> None:
    """Same support, probabilities within float32 rounding of the logits, same token for the same uniform number."""
    random = np.random.default_rng(size)
    for _ in range(5):
        logits = random.normal(0, 3, size).astype(np.float32)
        prompt, answer, banned = [1, 2, 3, 3], [3, 5, 5, 8], [11]
        want = naive_distribution(logits.tolist(), params, prompt, answer, banned)
        counts = {token: answer.count(token) for token in answer}
        steered = sampling.penalise(logits, params, prompt, counts, banned)
        if params.temperature > 0:
            ids, shares = sampling.filtered(steered, params)
            assert ids.tolist() == sorted(want)
            np.testing.assert_allclose(shares, [want[token] for token in ids.tolist()], rtol=2e-5)
        for uniform in (0.0, 0.123, 0.5, 0.87654, 0.999999):
            assert sampling.choose(steered, params, uniform) == naive_choice(want, uniform)


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=60),
    st.floats(0.05, 5),
    st.integers(0, 70),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=200, deadline=None)
def test_always_draws_something_allowed(logits, temperature, top_k, top_p, min_p, uniform) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    array = np.array(logits, dtype=np.float32)
    ids, shares = sampling.filtered(array, params)
    assert len(ids) >= 1 and shares.sum() == pytest.approx(1)
    assert array[ids].max() >= array.max() - 1e-6  # exp cannot tell apart what is closer
    assert sampling.choose(array, params, uniform) in ids


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20,000 draws; the bound is the 99.9 % point of 9 degrees of freedom."""
    logits = np.linspace(-1.5, 1.5, 10, dtype=np.float32)
    params = SamplingParams(temperature=0.8)
    want = naive_distribution(logits.tolist(), params, [], [])
    random = np.random.Generator(np.random.Philox(key=[7, 0]))
    seen = np.bincount([sampling.choose(logits, params, random.random()) for _ in range(20_000)], minlength=10)
    expected = np.array([want[token] * 20_000 for token in range(10)])
    assert ((seen - expected) ** 2 / expected).sum() < 27.88


@pytest.mark.parametrize(
    "name",
    ["chain_t0.7_k0_p0.5", "chain_t0.9_k50_p0.8", "chain_t1.0_k0_p0.8", "chain_t1.3_k20_p1.0", "chain_t1.0_k1_p1.0"],
)
def test_equals_the_originals_processors(name: str) -> None:
    """A chain of repetition penalty 1.1, temperature, top-k, top-p; removed tokens are -inf in the reference outputs."""
    units = sampling_units()
    temperature, top_k, top_p = (float(part[1:]) for part in name.removeprefix("chain_").split("_"))
    params = SamplingParams(temperature=temperature, top_k=int(top_k), top_p=top_p, repetition_penalty=1.1)
    for row, want in enumerate(units[f"sampling.{name}"]):
        kept = np.flatnonzero(np.isfinite(want))
        prompt = units["sampling.input_ids"][row].tolist()
        steered = sampling.penalise(units["sampling.logits"][row], params, prompt, {}, [])
        ids, shares = sampling.filtered(steered, params)
        assert ids.tolist() == kept.tolist()
        expected = np.exp(want[kept].astype(np.float64) - want[kept].max())
        np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-5)


def test_repetition_penalty_equals_the_originals() -> None:
    units = sampling_units()
    params = SamplingParams(repetition_penalty=1.1)
    for row, want in enumerate(units["sampling.rep_1.1"]):
        got = sampling.penalise(
            units["sampling.logits"][row], params, units["sampling.input_ids"][row].tolist(), {}, []
        )
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_logprobs_are_those_of_the_model() -> None:
    logits = np.array([1.0, 3.0, 3.0, -2.0], dtype=np.float32)
    logprobs = sampling.log_softmax(logits)
    total = math.log(math.exp(1) + 2 * math.exp(3) + math.exp(-2))
    np.testing.assert_allclose(logprobs, logits.astype(np.float64) - total, rtol=1e-12)
    assert [token for token, _ in sampling.top_logprobs(logprobs, 3)] == [1, 2, 0]
    assert len(sampling.top_logprobs(logprobs, 20)) == 4
    assert sampling.top_logprobs(logprobs, 0) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_one_sentence(bad: float) -> None:
    with pytest.raises(KiloqError, match="not numbers"):
        sampling.choose(np.array([1.0, bad, 0.0], dtype=np.float32), SamplingParams(), 0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": True}, {"temperature": "1"}, {"temperature": 1e9},
        {"top_k": -1}, {"top_k": 1.5}, {"top_p": 1.1}, {"top_p": -1}, {"min_p": 2}, {"repetition_penalty": 0}, {"presence_penalty": 1e9},
        {"frequency_penalty": float("inf")}, {"logit_bias": {-1: 1.0}}, {"logit_bias": {1: float("nan")}}, {"logit_bias": {"a": 1.0}},
        {"seed": -1}, {"seed": 1 << 64}, {"stop": ("",)}, {"stop": (1,)}, {"stop": ("x" * 1001,)}, {"stop": ("x",) * 65}, {"stop_ids": (-1,)},
        {"max_new_tokens": 0}, {"min_new_tokens": 600}, {"n": 0}, {"n": 129}, {"logprobs": 21}, {"logprobs": -1}, {"ntk": "wrong"},
    ],
)  # fmt: skip
def test_wrong_parameters_name_themselves(wrong: dict) -> None:
    name = next(iter(wrong))
    with pytest.raises(UsageError, match=name) as caught:
        SamplingParams(**wrong)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean temperature"):
        SamplingParams().override(temprature=1)
    assert SamplingParams(stop="a").stop == ("a",)
