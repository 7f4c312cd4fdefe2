"""The native sampler on every instruction set, against sampling.py, float64 oracles and its own statistics.

Whole vocabularies are weighed in float32 there and in float64 in sampling.py, so a token counts as the right one if the
uniform number lies within 1e-6 of its share of [0, 1). Vocabularies above 4,096 tokens take other code than smaller
ones: both kinds are here, and sizes that no vector divides.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles.naive_sampler import naive_distribution
from oracles.sorted_sampler import sorted_distribution
from sampling_rules import PARAMS

from kiloq.core.errors import KiloqError
from kiloq.generate import sampling
from kiloq.generate.params import SamplingParams

native = pytest.importorskip(
    "kiloq.native._native", reason="the native engine is not built: install kiloq where a C++ compiler is"
)

Floats = NDArray[np.float32]
RULES = (
    "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
)  # fmt: skip
STEP = 1e-6
EXAMPLES = 50 if "KILOQ_CPU" in os.environ else 200  # fewer in the processes that test_every_instruction_set starts


def make(params: SamplingParams, prompt: list[int] = [], answer: list[int] = []):  # noqa: B006
    sampler = native.Sampler(**{name: getattr(params, name) for name in RULES}, prompt=prompt)
    for token in answer:
        sampler.accept(token)
    return sampler


def assert_share(token: int, uniform: float, ids: NDArray[np.int64], shares: NDArray[np.float64], step: float) -> None:
    """The uniform number lies in the token's part of [0, 1), or within `step` of it."""
    place = int(np.searchsorted(ids, token))
    assert place < len(ids) and ids[place] == token, f"{token} cannot be drawn"
    after = float(shares[: place + 1].sum())
    assert after - shares[place] - step <= uniform <= after + step or (place == len(ids) - 1 and uniform > after)


def assert_same(
    logits: Floats,
    params: SamplingParams,
    uniforms: list[float],
    prompt: list[int] = [],  # noqa: B006
    answer: list[int] = [],  # noqa: B006
    banned: list[int] = [],  # noqa: B006
) -> None:
    """Each uniform number picks its token from the oracle's shares, and the very token that sampling.py picks.

    The latter only where both draw from the same tokens: among equal ones at top-p's border, ids decide here.
    """
    sampler = make(params, prompt, answer)
    before = logits.copy()
    got = [sampler.sample(logits, uniform, banned) for uniform in uniforms]
    np.testing.assert_array_equal(logits, before)
    steered = sampling.penalise(logits, params, prompt, Counter(answer), banned)
    want = [sampling.choose(steered, params, uniform) for uniform in uniforms]
    if params.temperature == 0:
        assert got == want
        return
    ids, shares = sorted_distribution(steered, params)
    alike = np.array_equal(ids, sampling.filtered(steered, params)[0])
    ends = np.cumsum(shares)
    for token, expected, uniform in zip(got, want, uniforms, strict=True):
        assert_share(token, uniform, ids, shares, STEP)
        near = np.abs(ends - uniform).min() < STEP
        assert token == expected or near or not alike


@st.composite
def rules(draw: st.DrawFn, size: int) -> SamplingParams:
    odd = st.sampled_from
    return SamplingParams(
        temperature=draw(odd([0, 1e-9, 0.7, 1, 1.0, 100]) | st.floats(0.05, 5)),
        top_k=draw(odd([0, 0, 1, size, size + 1, 1 << 31]) | st.integers(0, min(size, 3000))),
        top_p=draw(odd([0.0, 1.0, 1.0, 0.95, 0.9999999]) | st.floats(0, 1)),
        min_p=draw(odd([0.0, 0.0, 1.0, 1e-30]) | st.floats(0, 1)),
        repetition_penalty=draw(odd([1.0, 1.1, 0.01, 100])),
        presence_penalty=draw(odd([0.0, 0.5, -100])),
        frequency_penalty=draw(odd([0.0, 0.25, 100])),
        logit_bias=draw(st.dictionaries(st.integers(0, size + 3) | odd([1 << 31]), st.floats(-1000, 1000), max_size=4)),
    )


UNIFORMS = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5)
LOGITS = (
    st.floats(-30, 30, width=32)
    | st.sampled_from([-np.inf, 0.0, -0.0, 1.0, 1.0, 2.0, -1e30, 1e-30, -1e-40])
    | st.floats(-(2.0**100), 2.0**100, width=32)
)


@given(st.data(), st.lists(LOGITS, min_size=1, max_size=70), st.floats(-30, 30, width=32), UNIFORMS)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
def test_equals_sampling_py(data: st.DataObject, values: list[float], last: float, uniforms: list[float]) -> None:
    """Any few logits, with ties, -inf and huge ones; the last is a number that nothing bans, for something must be."""
    logits = np.array([*values, last], dtype=np.float32)
    params = data.draw(rules(len(logits)))
    tokens = st.lists(st.integers(0, len(logits) - 1), max_size=6)
    banned = data.draw(st.lists(st.integers(0, len(logits) - 2), max_size=3))
    assert_same(logits, params, uniforms, data.draw(tokens), data.draw(tokens), banned)


def row(kind: str, size: int, random: np.random.Generator) -> Floats:
    """Logits of many kinds: like a model's, flat, with many ties, mostly impossible, and so on."""
    normal = random.normal(0, 1, size)
    normal[random.integers(0, size, 20)] += 8
    values = {
        "normal": lambda: normal * 3,
        "flat": lambda: normal * 0.01,
        "constant": lambda: np.full(size, 2.5),
        "tiny": lambda: normal * 1e-38,
        "huge": lambda: normal * 1e30,
        "steep": lambda: normal * 40,
        "ties": lambda: np.round(normal * 2) / 2,
        "two": lambda: np.where(normal > 0, 1.0, -1.0),
        "far": lambda: normal * 2 + 1e4,
        "impossible": lambda: np.where(random.random(size) < 0.99, -np.inf, normal),
        "rising": lambda: np.linspace(-9, 9, size),
    }
    return values[kind]().astype(np.float32)


KINDS = ["normal", "flat", "constant", "tiny", "huge", "steep", "ties", "two", "far", "impossible", "rising"]


@given(st.data(), st.sampled_from(KINDS), st.integers(4000, 9000), st.integers(0, 1 << 31), UNIFORMS)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
def test_equals_sampling_py_where_all_can_be_drawn(
    data: st.DataObject, kind: str, size: int, seed: int, uniforms: list[float]
) -> None:
    random = np.random.default_rng(seed)
    logits = row(kind, size, random)
    logits[0] = 3.0
    params = data.draw(rules(size))
    prompt, answer = random.integers(0, size, 300).tolist(), random.integers(0, size, 30).tolist()
    assert_same(logits, params, uniforms, prompt, answer, random.integers(1, size, 2).tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 0.999999, 1 - 2**-53, 1.0])
def test_nucleus_of_a_whole_vocabulary(kind: str, top_p: float) -> None:
    """The support's border too: a number just below 1 picks the last token that may be drawn.

    1 - 2**-53 of the mass is more than float32 sums can tell from all of it.
    """
    random = np.random.default_rng(5)
    logits = row(kind, 9001, random)
    uniforms = [0.0, *random.random(5).tolist(), 0.9999995]
    for temperature in (0.9, 3.6):
        assert_same(logits, SamplingParams(top_p=top_p, temperature=temperature), uniforms)


@pytest.mark.parametrize("params", PARAMS, ids=lambda p: str(p)[15:60])
@pytest.mark.parametrize("size", [40, 3000, 5003])
def test_equals_the_oracle(params: SamplingParams, size: int) -> None:
    """The oracle divides in float64: shares differ by the rounding of float32 logits."""
    random = np.random.default_rng(size)
    logits = random.normal(0, 3, size).astype(np.float32)
    prompt, answer, banned = [1, 2, 3, 3], [3, 5, 5, 8], [11]
    want = naive_distribution(logits.tolist(), params, prompt, answer, banned)
    ids = np.array(sorted(want))
    sampler = make(params, prompt, answer)
    for uniform in (0.0, 0.123, 0.5, 0.87654, 0.999999):
        token = sampler.sample(logits, uniform, banned)
        assert_share(token, uniform, ids, np.array([want[t] for t in ids.tolist()]), 1e-5)


@pytest.mark.parametrize("params", PARAMS, ids=lambda p: str(p)[15:60])
def test_equals_sampling_py_at_qwens_size(params: SamplingParams) -> None:
    random = np.random.default_rng(7)
    logits = row("normal", 151_936, random)
    prompt, answer = random.integers(0, 151_936, 2000).tolist(), random.integers(0, 151_936, 100).tolist()
    assert_same(logits, params, random.random(3).tolist(), prompt, answer, [0, 151_935])


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0.8), SamplingParams(top_p=0.9, temperature=1.5)])
def test_draws_follow_the_distribution(size: int, params: SamplingParams) -> None:
    """Chi-square over 20,000 draws in ten classes; the bound is the 99.9 % point of 9 degrees of freedom."""
    logits = np.linspace(-1.5, 1.5, size, dtype=np.float32)
    want = naive_distribution(logits.tolist(), params, [], [])
    sampler, random = make(params), np.random.Generator(np.random.Philox(key=[7, 0]))
    ids = np.array(sorted(want))
    place = {token: 10 * i // len(ids) for i, token in enumerate(ids.tolist())}
    seen = np.bincount([place[sampler.sample(logits, random.random())] for _ in range(20_000)])
    expected = np.bincount([place[t] for t in ids.tolist()], [want[t] * 20_000 for t in ids.tolist()])
    expected, seen = expected[expected > 0], seen[expected > 0]
    assert ((seen - expected) ** 2 / expected).sum() < 27.88


@pytest.mark.parametrize("size", [1, 2, 7, 8, 15, 16, 17, 33, 255, 256, 257, 4097, 5003])
def test_greedy_takes_the_lowest_id_of_the_largest(size: int) -> None:
    for place in {0, size // 2, size - 1}:
        logits = np.full(size, -3.0, dtype=np.float32)
        logits[place:] = -1.0
        assert make(SamplingParams(temperature=0)).sample(logits, 0.5) == place
    assert make(SamplingParams(temperature=0)).sample(np.array([-0.0, 0.0], dtype=np.float32), 0.5) == 0


@pytest.mark.parametrize("size", [1, 5, 16, 19, 300, 5003])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_one_sentence(size: int, bad: float) -> None:
    with pytest.raises(KiloqError) as want:
        sampling.choose(np.array([bad], dtype=np.float32), SamplingParams(), 0.5)
    for place in {0, size // 2, size - 1}:
        logits = np.zeros(size, dtype=np.float32)
        logits[place] = bad
        for params in (SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_k=3, top_p=0.5)):
            with pytest.raises(KiloqError) as caught:
                make(params).sample(logits, 0.5)
            assert str(caught.value) == str(want.value)
        with pytest.raises(KiloqError):
            make(SamplingParams()).logprobs(logits, 0, 1)


def test_nothing_possible_is_the_same_sentence() -> None:
    for size in (1, 5000):
        with pytest.raises(KiloqError, match="not numbers"):
            make(SamplingParams()).sample(np.full(size, -np.inf, dtype=np.float32), 0.5)
    with pytest.raises(KiloqError, match="not numbers"):
        make(SamplingParams()).sample(np.zeros(2, dtype=np.float32), 0.5, [0, 1])
    with pytest.raises(KiloqError, match="not numbers"):
        make(SamplingParams()).sample(np.zeros(0, dtype=np.float32), 0.5)


def test_logits_too_large_for_the_temperature_are_greedy() -> None:
    logits = np.array([1e38, 3e38, -3e38], dtype=np.float32)
    assert make(SamplingParams(temperature=1e-5)).sample(logits, 0.9) == 1


@pytest.mark.parametrize("uniform", [1.0, 2.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("params", [{}, {"top_k": 5}, {"top_p": 0.5, "min_p": 7.0}, {"temperature": float("nan")}])
def test_wrong_numbers_still_pick_a_token(uniform: float, params: dict[str, float]) -> None:
    """Nobody checks them here (SamplingParams does), but nothing outside the row may be read."""
    for size in (1, 5000):
        assert 0 <= native.Sampler(**params).sample(np.zeros(size, dtype=np.float32), uniform) < size


def test_ids_outside_the_vocabulary() -> None:
    logits = np.arange(4, dtype=np.float32)
    assert native.Sampler(temperature=0, logit_bias={4: 9.0, 1 << 31: 9.0, -1: 9.0}).sample(logits, 0.5) == 3
    for wrong in (-1, 4, 2**31 - 1):
        with pytest.raises(IndexError, match=f"{wrong} is outside the model's 4 tokens"):
            native.Sampler().sample(logits, 0.5, [wrong])
        with pytest.raises(IndexError, match=str(wrong)):
            native.Sampler().logprobs(logits, wrong, 1)
    with pytest.raises(IndexError):
        native.Sampler(repetition_penalty=1.1, prompt=[4]).sample(logits, 0.5)
    with pytest.raises(IndexError):
        native.Sampler(repetition_penalty=1.1, prompt=[-1])
    with pytest.raises(IndexError):
        native.Sampler().accept(-1)


@pytest.mark.parametrize(
    "logits", [np.zeros(4), np.zeros(8, dtype=np.float32)[::2], np.zeros((2, 2), dtype=np.float32), [0.0, 1.0]]
)
def test_other_arrays_are_refused(logits: object) -> None:
    """A silent copy of 151,936 numbers a token would be a slow surprise."""
    with pytest.raises(TypeError):
        native.Sampler().sample(logits, 0.5)


def test_a_fork_goes_its_own_way() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=1.0, repetition_penalty=1.2)
    logits = np.array([5.0, 4.9, 1.0, 0.5], dtype=np.float32)
    first = make(params, [0], [1])
    second = first.fork()
    answers: list[list[int]] = [[1], [1]]
    for sampler, answer, forced in ((first, answers[0], 0), (second, answers[1], 1)):
        for token in (forced, forced, 2):
            sampler.accept(token)
            answer.append(token)
    for sampler, answer in ((first, answers[0]), (second, answers[1])):
        want = sampling.choose(sampling.penalise(logits, params, [0], Counter(answer), []), params, 0.5)
        assert sampler.sample(logits, 0.5) == want
    assert answers[0] != answers[1]


def test_threads_do_not_disturb_each_other() -> None:
    """The lock is released and the buffers are each thread's own, so even one sampler may serve several threads."""
    logits = row("normal", 20_000, np.random.default_rng(1))
    sampler = make(SamplingParams(top_p=0.9, repetition_penalty=1.1), [1, 2, 3])
    uniforms = np.random.default_rng(2).random(400).tolist()
    want = [sampler.sample(logits, uniform) for uniform in uniforms]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda uniform: sampler.sample(logits, uniform), uniforms)) == want


@pytest.mark.parametrize("size", [1, 3, 40, 300, 5003, 20_001])
@pytest.mark.parametrize("kind", ["normal", "constant", "ties", "steep", "impossible", "far"])
def test_logprobs_are_those_of_the_raw_logits(size: int, kind: str) -> None:
    """2e-7: the logarithm of a sum of float32 weights. Ties are in order of ids, at the end of the list too."""
    logits = row(kind, size, np.random.default_rng(size))
    logits[-1] = 1.0
    want = sampling.log_softmax(logits)
    sampler = make(SamplingParams(temperature=0.1, repetition_penalty=2.0, top_k=1), [0], [0])
    for count in (0, 1, 5, 20, size, size + 9):
        chosen, best = sampler.logprobs(logits, size // 2, count)
        assert chosen == pytest.approx(want[size // 2], abs=2e-7)
        order = np.lexsort((np.arange(size), -want))[:count]
        assert [token for token, _ in best] == order.tolist()
        np.testing.assert_allclose([logprob for _, logprob in best], want[order], rtol=0, atol=2e-7)


def test_the_path_is_the_one_asked_for() -> None:
    assert native.chosen_path() == (os.environ.get("KILOQ_CPU") or native.runnable_paths()[0])


@pytest.mark.skipif("KILOQ_CPU" in os.environ, reason="one instruction set is forced from outside")
@pytest.mark.parametrize("path", ["portable", "avx2", "avxvnni", "avx512", "avx512bf16", "neon"])
def test_every_instruction_set(path: str) -> None:
    """This file again in a process of its own, for the choice is made once."""
    if path not in native.runnable_paths():
        pytest.skip(f"this processor or this build has no {path} path")
    if path == native.chosen_path():
        pytest.skip(f"{path} is what the tests above ran on")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "KILOQ_CPU": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
