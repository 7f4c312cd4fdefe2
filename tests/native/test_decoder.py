"""The native decoder against the PyTorch network on random tiny models of every shape, precision and long-context rule.

float32: 5e-5 on logits with a standard deviation of 1 to 3, as between any two orders of sums. In other precisions the
twin (oracles/native_models.py) rounds where the engine rounds, but a sum in another order now and then rounds to the
neighbour, and later layers pass that on: the mean error is bounded, as a share of the logits' standard deviation.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.naive_network import naive_logits
from oracles.native_models import MemorySource, Twin, native_backend, random_source, run, some_ids
from shapes import SHAPES as FAMILIES
from shapes import TINY

from kiloq.core.errors import KiloqError
from kiloq.generate.backend import Draw, Row
from kiloq.generate.engine import Engine
from kiloq.generate.params import SamplingParams
from kiloq.generate.samplers import make_sampler
from kiloq.generate.torch_backend import TorchBackend
from kiloq.model.config import ModelConfig
from kiloq.model.ntk import ntk_alpha
from kiloq.model.rope_scaling import RopeScaling

pytest.importorskip(
    "kiloq.native._native", reason="the native engine is not built: install kiloq where a C++ compiler is"
)

TOLERANCE = 5e-5
TWIN_ERRORS = {"fp32": 0.003, "bf16": 0.01, "int8": 0.03, "int4": 0.03}  # a third of it was seen at most
SHAPES = FAMILIES | {
    "odd": ModelConfig(**(TINY | dict(vocab_size=33, hidden_size=37, num_heads=3, ffn_size=61)), head_dim=7, rotary_dim=6, output_bias=True, mlp_bias=True),
    "one": ModelConfig(vocab_size=1, hidden_size=1, num_layers=1, num_heads=2, num_kv_heads=1, ffn_size=1, head_dim=2),
    "wide": ModelConfig(**(TINY | dict(vocab_size=300, hidden_size=200, num_layers=2, num_heads=40, ffn_size=515)), num_kv_heads=1, head_dim=66),
    "linear": ModelConfig(**TINY, rope_scaling=RopeScaling(kind="linear", factor=3.0)),
    "llama3": ModelConfig(**TINY, rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_length=32)),
    "yarn": ModelConfig(**TINY, rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_length=64, attention_factor=1.14)),
    "factors": ModelConfig(**TINY, rope_scaling=RopeScaling(kind="factors", table=(1.0, 2.0, 3.5, 8.0))),
}  # fmt: skip


def assert_near(got: np.ndarray, want: np.ndarray, weights: str, kv: str) -> None:
    if (weights, kv) == ("fp32", "fp32"):
        np.testing.assert_allclose(got, want, atol=TOLERANCE * max(1.0, want.std()), rtol=0)
    else:
        assert np.abs(got - want).mean() <= TWIN_ERRORS[weights] * max(want.std(), 1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("weights", "kv"), [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16")])
def test_every_shape_equals_the_twin(shape: str, weights: str, kv: str) -> None:
    """50 tokens: past 2 x 16 and a block of the cache, so NTK, LogN and windows act."""
    source = random_source(SHAPES[shape])
    ids = some_ids(source.config, 50)
    assert_near(native_backend(source, weights, kv).logits(ids), Twin(source, weights, kv).logits(ids), weights, kv)


@pytest.mark.parametrize("shape", ["qwen1", "qwen3", "windows", "odd", "yarn"])
def test_equals_the_float64_oracle(shape: str) -> None:
    """Independent of PyTorch; float32 sums against float64: 2e-4 at logits of up to 10."""
    source = random_source(SHAPES[shape])
    config, ids = source.config, some_ids(source.config, 41)
    weights = {name: source.tensor(name) for name in source.names()}
    alpha = ntk_alpha(41, config.train_length) if config.dynamic_ntk else 1.0
    want = naive_logits(config, weights, ids, alpha=alpha, logn=config.logn)
    np.testing.assert_allclose(native_backend(source).logits(ids), want, atol=2e-4)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    head_dim = draw(st.integers(1, 80))
    kv_heads, group = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 5, 33]))
    layers = draw(st.integers(1, 2))
    rotary = draw(st.integers(0, head_dim // 2)) * 2
    ntk, pairs = draw(st.booleans()), (rotary or head_dim) // 2
    table = (
        draw(st.lists(st.floats(0.5, 9.0), min_size=pairs, max_size=pairs)) if not ntk and draw(st.booleans()) else []
    )
    whole = head_dim % 2 == 1 and not rotary
    return ModelConfig(
        vocab_size=draw(st.integers(1, 70)), hidden_size=draw(st.integers(1, 70)), num_layers=layers,
        num_heads=kv_heads * group, num_kv_heads=kv_heads, ffn_size=draw(st.integers(1, 70)),
        head_dim=head_dim + whole, rotary_dim=rotary, train_length=draw(st.integers(2, 30)), max_length=200,
        dynamic_ntk=ntk, logn=draw(st.booleans()), tied_embeddings=draw(st.booleans()), qkv_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()), mlp_bias=draw(st.booleans()), qk_norm=draw(st.booleans()),
        norm_eps=draw(st.sampled_from([1e-6, 1e-5])), rope_base=draw(st.sampled_from([10_000.0, 1e6])),
        rope_scaling=RopeScaling(kind="factors", table=tuple(table)) if table and not whole else None,
        windows=tuple(draw(st.one_of(st.none(), st.integers(1, 60))) for _ in range(layers)),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(configs(), st.sampled_from(["fp32", "bf16", "int8", "int4"]), st.integers(1, 40))
def test_random_shapes_equal_pytorch(config: ModelConfig, weights: str, tokens: int) -> None:
    """Weights as the engine holds them, float32 cache. Tiny widths make int8 flips loud: there only finiteness and float32
    are exact, and the mean error is bounded for the rest."""
    source = random_source(config, seed=tokens)
    ids = some_ids(config, tokens)
    got, want = native_backend(source, weights).logits(ids), Twin(source, weights).logits(ids)
    if weights == "fp32":
        np.testing.assert_allclose(got, want, atol=2e-4 * max(1.0, np.abs(want).max()), rtol=0)
    else:
        assert np.abs(got - want).mean() <= 0.05 * max(np.abs(want).mean(), 1e-3)


LONG = ModelConfig(
    **(TINY | dict(train_length=300, max_length=4096)),
    num_kv_heads=2,
    dynamic_ntk=True,
    logn=True,
    windows=(None, 70, 600),
)


@pytest.mark.parametrize(("weights", "kv"), [("fp32", "fp32"), ("fp32", "bf16"), ("fp32", "int8"), ("int8", "int8")])
def test_long_prompts_equal_the_twin(weights: str, kv: str) -> None:
    """1,300 tokens: three chunks of 512 keys, which are merged; windows within a chunk and across one; NTK and LogN."""
    source = random_source(LONG, size=0.15)
    ids = some_ids(LONG, 1300)
    assert_near(native_backend(source, weights, kv).logits(ids), Twin(source, weights, kv).logits(ids), weights, kv)


@pytest.mark.parametrize("kv", ["fp32", "int8"])
def test_ntk_is_exact_at_every_length(kv: str) -> None:
    """An answer that crosses boundaries twice: each token's log-probability is the uncached pass's, to the last bit."""
    backend = native_backend(random_source(SHAPES["qwen1"]), kv=kv)
    prompt = some_ids(backend.config, 13)
    engine = Engine(backend, None, ())
    params = SamplingParams(seed=1, max_new_tokens=40, logprobs=1, ignore_eos=True)
    requests = [engine.submit(prompt, params), engine.submit(prompt[:5], params)]
    while engine.step():
        pass
    for start, request in zip((prompt, prompt[:5]), requests, strict=True):
        completion = request.answers[0].completion
        ids = list(start)
        for token, entry in zip(completion.ids, completion.logprobs, strict=True):
            own, _ = make_sampler(params, []).logprobs(np.ascontiguousarray(backend.logits(ids)[-1]), token, 0)
            assert entry.logprob == own
            ids.append(token)


def test_both_engines_give_the_same_answers() -> None:
    """Greedy, exact and frozen, mixed in one batch, across boundaries: 2 engines, the same text."""
    source = random_source(SHAPES["windows"], size=0.3)
    prompts = [some_ids(source.config, n, seed=n) for n in (3, 15, 16, 33)]
    answers = []
    for backend in (native_backend(source), TorchBackend(Twin(source).network)):
        engine = Engine(backend, None, ())
        requests = [engine.submit(prompt, SamplingParams(temperature=0, max_new_tokens=30, ntk=ntk, ignore_eos=True))
                    for prompt in prompts for ntk in ("exact", "frozen")]  # fmt: skip
        while engine.step():
            pass
        answers.append([request.answers[0].completion.ids for request in requests])
    assert answers[0] == answers[1]
    assert answers[0][2] != answers[0][3]


PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=1.3, top_k=20),
    SamplingParams(top_p=0.8, repetition_penalty=1.2),
    SamplingParams(min_p=0.05, logit_bias={3: 4.0}, frequency_penalty=0.5),
]


def test_drawing_in_the_step_is_drawing_from_its_logits() -> None:
    """With logits and without, several rows and rules in one call, banned tokens included."""
    backend = native_backend(random_source(SHAPES["qwen2"], size=0.5), "int8")
    random = np.random.default_rng(0)
    for trial in range(10):
        rows, twins = [], []
        for params in PARAMS:
            ids, uniform = some_ids(backend.config, 4 + trial, seed=trial), float(random.random())
            sampler = make_sampler(params, ids)
            sampler.accept(ids[0])
            banned = [int(token) for token in random.integers(0, 97, 5)]
            twins.append((sampler.fork(), uniform, banned))
            for wanted in (0, 1):
                rows.append(Row(backend.open(), ids, 1.0, wanted, Draw(sampler.fork(), [uniform], banned)))
        outcomes = backend.step(rows)
        for without, with_logits, (sampler, uniform, banned) in zip(outcomes[::2], outcomes[1::2], twins, strict=True):
            logits_V = np.ascontiguousarray(with_logits.logits_NV[-1])
            assert without.logits_NV is None
            assert without.tokens == with_logits.tokens == (sampler.sample(logits_V, uniform, banned),)


@pytest.mark.parametrize("right", [0, 1, 4, 6])
def test_guesses_are_steps(right: int) -> None:
    """Six guesses of which the first `right` are so: the tokens, the sampler and the cache are those of single steps.

    The sequence is at 28 tokens, so that guesses begin a block of the cache; a fork of it afterwards goes its own way.
    """
    backend = native_backend(random_source(SHAPES["windows"], size=0.5), kv="int8")
    prompt = some_ids(backend.config, 28)
    uniforms = np.random.default_rng(right).random(7).tolist()
    sampler = make_sampler(PARAMS[2], prompt)
    single, guessed, wanted = backend.open(), backend.open(), sampler.fork()
    run(backend, (single, prompt[:-1]), (guessed, prompt[:-1]))
    tokens, fed = [], prompt[-1]
    for uniform in uniforms:
        (outcome,) = backend.step([Row(single, [fed], 1.0, draw=Draw(wanted, [uniform]))])
        tokens += outcome.tokens
        fed = tokens[-1]
    guesses = [token if at < right else (token + 1) % 97 for at, token in enumerate(tokens[:6])]
    (outcome,) = backend.step([Row(guessed, [prompt[-1], *guesses], 1.0, draw=Draw(sampler, uniforms))])
    assert outcome.tokens == tuple(tokens[: right + 1])
    assert guessed.length == 28 + right
    forked = guessed.fork()
    rest = [some_ids(backend.config, 20, seed=seed) for seed in (1, 2)]
    for sequence, ids in zip((guessed, forked), rest, strict=True):
        run(backend, (sequence, ids))
    for sequence, ids in zip((guessed, forked), rest, strict=True):
        last = run(backend, (sequence, [5]))[0]
        twin = backend.open()
        want = run(backend, (twin, [*prompt, *tokens[:right], *ids, 5]))[0][-1:]
        np.testing.assert_array_equal(last, want)


@pytest.mark.parametrize("kv", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_weights_fail_the_request_that_meets_them(kv: str, bad: float) -> None:
    """A token whose embedding is not a number: its request fails, its neighbours and those who get its memory do not."""
    source = random_source(SHAPES["windows"])
    clean = native_backend(source, kv=kv)
    state = {name: source.tensor(name).copy() for name in source.names()}
    state["embed_tokens.weight"][13] = bad
    backend = native_backend(MemorySource(source.config, state), kv=kv)
    good = [token for token in some_ids(source.config, 60) if token != 13]
    want = clean.logits(good)
    params = SamplingParams(temperature=0, max_new_tokens=3)
    for _ in range(3):
        engine = Engine(backend, None, ())
        requests = [engine.submit(ids, params) for ids in (good[:20], [*good[:40], 13], [13], good[:20])]
        while engine.step():
            pass
        assert [request.error is None for request in requests] == [True, False, False, True]
        assert isinstance(requests[1].error, KiloqError) and "not numbers" in str(requests[1].error)
        assert requests[0].answers[0].completion.ids == requests[3].answers[0].completion.ids
        del requests, engine
        np.testing.assert_array_equal(backend.logits(good), want)


def test_ids_and_rows_that_cannot_be_are_refused() -> None:
    backend = native_backend(random_source(SHAPES["qwen2"]))
    sequence = backend.open()
    for ids in ([97], [-1], []):
        with pytest.raises(ValueError, match=r"token|row"):
            run(backend, (sequence, ids))
    with pytest.raises(ValueError, match="two rows"):
        run(backend, (sequence, [1]), (sequence, [2]))
    assert sequence.length == 0
    np.testing.assert_array_equal(run(backend, (sequence, [1, 2]))[0], backend.logits([1, 2]))
