"""The native engine's paged cache: shared blocks, windows that free them, limits, the 8-bit form, and nothing left over.

A block holds 32 tokens of one layer. Sequences are compared with array_equal, because sharing must not show.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from oracles.native_models import MemorySource, Twin, native_backend, random_source, run, some_ids

from kiloq.generate.backend import Row
from kiloq.generate.engine import Engine
from kiloq.generate.native_backend import NativeBackend
from kiloq.generate.params import SamplingParams
from kiloq.model.config import ModelConfig

pytest.importorskip(
    "kiloq.native._native", reason="the native engine is not built: install kiloq where a C++ compiler is"
)

BLOCK = 32
TINY = dict(
    vocab_size=60,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_size=48,
    head_dim=16,
    train_length=8192,
)
CONFIG = ModelConfig(**TINY)
WINDOWS = ModelConfig(**TINY, windows=(10, 100))


@pytest.fixture(params=["fp32", "bf16", "int8"])
def backend(request: pytest.FixtureRequest) -> NativeBackend:
    return native_backend(random_source(CONFIG), kv=request.param)


def used(backend: NativeBackend) -> int:
    return backend._decoder.cache_blocks[0]


def blocks(tokens: int, layers: int = 2) -> int:
    return -(-tokens // BLOCK) * layers


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 70])
def test_forks_share_until_they_write(backend: NativeBackend, length: int) -> None:
    ids = some_ids(CONFIG, length)
    first = backend.open()
    run(backend, (first, ids))
    twins = [backend.fork(first) for _ in range(3)]
    assert used(backend) == blocks(length)
    rests = [some_ids(CONFIG, 40, seed=seed) for seed in range(4)]
    got = run(backend, *zip([first, *twins], rests, strict=True))
    for logits, rest in zip(got, rests, strict=True):
        np.testing.assert_array_equal(logits, backend.logits([*ids, *rest])[length:])
    shared = length // BLOCK * 2  # whole blocks of both layers stay common
    assert used(backend) == shared + 4 * (blocks(length + 40) - shared)
    del twins, first, got
    gc.collect()
    assert used(backend) == 0


def test_forks_of_forks_in_any_order(backend: NativeBackend) -> None:
    """A tree of sequences that grow, fork and end at random: each always has the logits of its own path."""
    random = np.random.default_rng(3)
    alive = [(backend.open(), [])]
    for _ in range(40):
        at = int(random.integers(len(alive)))
        sequence, path = alive[at]
        if path and random.random() < 0.4:
            alive.append((backend.fork(sequence), list(path)))
        elif len(alive) > 3 and random.random() < 0.3:
            del alive[at], sequence
        else:
            new = random.integers(0, 60, int(random.integers(1, 40))).tolist()
            (logits,) = run(backend, (sequence, new))
            path += new
            np.testing.assert_array_equal(logits, backend.logits(path)[-len(new) :])
    sequence = None
    alive.clear()
    gc.collect()
    assert used(backend) == 0


def test_clear_gives_everything_back(backend: NativeBackend) -> None:
    sequence, twin = backend.open(), None
    run(backend, (sequence, some_ids(CONFIG, 100)))
    twin = backend.fork(sequence)
    sequence.clear()
    assert (sequence.length, twin.length, used(backend)) == (0, 100, blocks(100))
    ids = some_ids(CONFIG, 40, seed=5)
    np.testing.assert_array_equal(run(backend, (sequence, ids))[0], backend.logits(ids))
    twin.clear()
    twin.clear()
    assert used(backend) == blocks(40)


def test_sequences_outlive_their_decoder() -> None:
    """Blocks belong to the pool, which lives as long as a sequence does."""
    backend = native_backend(random_source(CONFIG))
    sequence = backend.open()
    run(backend, (sequence, [1, 2, 3]))
    del backend
    gc.collect()
    twin = sequence.fork()
    sequence.clear()
    assert twin.length == 3


@pytest.mark.parametrize("kv", ["fp32", "int8"])
def test_windows_free_what_nobody_sees(kv: str) -> None:
    """Memory is flat over 1,500 tokens, the answers are those of a pass over everything, and a fork is not harmed."""
    backend = native_backend(random_source(WINDOWS), kv=kv)
    ids = some_ids(WINDOWS, 1500)
    want = backend.logits(ids)
    sequence, most = backend.open(), 0
    for begin in range(0, 1500, 25):
        (got,) = run(backend, (sequence, ids[begin : begin + 25]))
        np.testing.assert_array_equal(got, want[begin : begin + 25])
        most = max(most, used(backend))
    assert most <= (25 + 10) // BLOCK + 2 + (25 + 100) // BLOCK + 2
    twin = backend.fork(sequence)
    run(backend, (sequence, some_ids(WINDOWS, 200, seed=7)))
    rest = some_ids(WINDOWS, 50, seed=8)
    np.testing.assert_array_equal(run(backend, (twin, rest))[0], backend.logits([*ids, *rest])[1500:])


def test_a_full_cache_is_one_error_that_harms_nobody() -> None:
    """One slab of 4 MiB is all that there may be. Every row of a call that does not fit stays as it was."""
    limit = 4 << 20
    backend = native_backend(random_source(CONFIG), cache_bytes=limit)
    most = limit // backend._decoder.cache_block_bytes // 2 * BLOCK  # tokens
    small, large = backend.open(), backend.open()
    ids = some_ids(CONFIG, 100)
    run(backend, (small, ids[:50]))
    before = used(backend)
    with pytest.raises(ValueError, match=r"cache is full: its limit is 4 MiB") as caught:
        run(backend, (small, ids[50:]), (large, some_ids(CONFIG, most)))
    assert "\n" not in str(caught.value)
    assert (small.length, large.length, used(backend)) == (50, 0, before)
    np.testing.assert_array_equal(run(backend, (small, ids[50:]))[0], backend.logits(ids)[50:])
    twin = backend.fork(small)
    run(backend, (large, some_ids(CONFIG, most - 128)))
    assert backend._decoder.cache_blocks == (blocks(most), blocks(most))
    large.clear()
    np.testing.assert_array_equal(run(backend, (twin, [7]))[0], backend.logits([*ids, 7])[100:])


def test_forks_after_a_failed_call_do_not_share_room() -> None:
    """Room that a call reserved and never filled would be written by both."""
    backend = native_backend(random_source(CONFIG), cache_bytes=4 << 20)
    ids = some_ids(CONFIG, 64)
    first = backend.open()
    run(backend, (first, ids))
    with pytest.raises(ValueError, match="full"):
        run(backend, (first, [1] * 40), (backend.open(), [1] * 100_000))
    twin = backend.fork(first)
    rests = [some_ids(CONFIG, 40, seed=seed) for seed in (1, 2)]
    run(backend, (first, rests[0][:-1]), (twin, rests[1][:-1]))
    got = run(backend, (first, rests[0][-1:]), (twin, rests[1][-1:]))
    for logits, rest in zip(got, rests, strict=True):
        np.testing.assert_array_equal(logits, backend.logits([*ids, *rest])[-1:])


def test_pages_begin_other_sequences() -> None:
    """The same bits as without, and the blocks live as long as somebody has them."""
    backend = native_backend(random_source(CONFIG))
    ids = some_ids(CONFIG, 3 * BLOCK + 5)
    first = backend.open()
    run(backend, (first, ids))
    pages = [backend.page(first, index) for index in range(3)]
    with pytest.raises(IndexError):
        backend.page(first, 3)
    del first
    assert used(backend) == blocks(3 * BLOCK)
    second, third = backend.open(pages), backend.open(pages[:1])
    assert (second.length, third.length) == (3 * BLOCK, BLOCK)
    del pages
    got = run(backend, (second, ids[3 * BLOCK :]), (third, ids[BLOCK:]))
    want = backend.logits(ids)
    np.testing.assert_array_equal(got[0], want[3 * BLOCK :])
    np.testing.assert_array_equal(got[1], want[BLOCK:])
    other = native_backend(random_source(CONFIG))
    with pytest.raises(ValueError, match="another decoder"):
        other.open([backend.page(second, 0)])
    del second, third
    assert used(backend) == 0


def test_pages_of_windows_begin_only_what_they_hold_enough_for() -> None:
    backend = native_backend(random_source(WINDOWS))
    ids = some_ids(WINDOWS, 300)
    first = backend.open()
    run(backend, (first, ids[: 9 * BLOCK]))
    pages = [backend.page(first, index) for index in range(9)]
    assert backend.open(pages[:2]) is None
    whole = backend.open(pages)
    assert whole is not None
    (got,) = run(backend, (whole, ids[whole.length :]))
    np.testing.assert_array_equal(got, backend.logits(ids)[len(pages) * BLOCK :])


@pytest.mark.parametrize(("heads", "size"), [(1, 128), (4, 64), (2, 80), (8, 128)])
def test_the_8_bit_cache_takes_little_more_than_half_of_bf16(heads: int, size: int) -> None:
    config = ModelConfig(**(TINY | dict(num_heads=heads, num_kv_heads=heads, head_dim=size, num_layers=1)))
    source = random_source(config)
    of = {kv: native_backend(source, kv=kv)._decoder.cache_block_bytes for kv in ("fp32", "bf16", "int8")}
    assert of["int8"] <= 0.55 * of["bf16"]
    assert of["bf16"] == heads * size * 2 * 2 * BLOCK
    assert of["fp32"] == 2 * of["bf16"]


@pytest.mark.parametrize("kind", ["zero", "constant", "tiny", "huge", "one large"])
def test_the_8_bit_cache_holds_any_range(kind: str) -> None:
    """Keys and values that are all zero or all equal (the original divided by zero), near the ends of float32, or with one
    number that dwarfs the rest: finite, and as near to the float32 cache as the twin's rounding is."""
    source = random_source(CONFIG)
    state = {name: source.tensor(name).copy() for name in source.names()}
    random = np.random.default_rng(0)
    for layer in range(CONFIG.num_layers):
        for part in "kv":
            weight, bias = (state[f"layers.{layer}.self_attn.{part}_proj.{end}"] for end in ("weight", "bias"))
            if kind in ("zero", "constant"):
                weight[:], bias[:] = 0.0, 0.7 if kind == "constant" else 0.0
            elif part == "v":
                continue
            elif kind == "one large":
                bias[3::16] = 60.0
            else:
                weight *= np.float32(1e-38 if kind == "tiny" else 1e18)
                bias[:] = random.standard_normal(len(bias)) * (1e-38 if kind == "tiny" else 1e18)
            if kind == "huge":
                for end in ("weight", "bias"):
                    state[f"layers.{layer}.self_attn.q_proj.{end}"] *= np.float32(1e-18)
    source = MemorySource(CONFIG, state)
    ids = some_ids(CONFIG, 70)
    got, exact = (native_backend(source, kv=kv).logits(ids) for kv in ("int8", "fp32"))
    want = Twin(source, kv="int8").logits(ids)
    assert np.isfinite(got).all()
    assert np.abs(got - want).mean() < 0.003 * exact.std()
    if kind in ("zero", "constant"):
        np.testing.assert_allclose(got, exact, atol=1e-4)


def test_300_requests_leave_nothing() -> None:
    """Answers of all kinds, some cancelled on the way: no block stays in use, and memory stops growing."""
    backend = native_backend(random_source(WINDOWS), "int8", "int8")
    engine = Engine(backend, None, ())
    total, resident = [], []
    for round_ in range(15):
        requests = [
            engine.submit(
                some_ids(WINDOWS, 1 + 7 * at, seed=at),
                SamplingParams(seed=at, n=1 + at % 3, max_new_tokens=6 + at, ignore_eos=True, logprobs=at % 2 or None),
            )
            for at in range(20)
        ]
        for step in range(100):
            if step == 4:
                engine.cancel(requests[5])
            if not engine.step():
                break
        assert all(request.done for request in requests)
        del requests
        gc.collect()
        engine.forget()
        assert used(backend) == 0
        total.append(backend._decoder.cache_blocks[1])
        resident.append(_resident_kib())
        assert round_ < 3 or total[-1] == total[2]
    assert resident[-1] - resident[4] < 2048  # KiB; 200 requests, of which one kilobyte each would be seen


def _resident_kib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def test_a_row_may_ask_for_nothing() -> None:
    """Prompt pieces without logits or draws: the cache is what counts."""
    backend = native_backend(random_source(CONFIG))
    sequence = backend.open()
    (outcome,) = backend.step([Row(sequence, [1, 2, 3], 1.0)])
    assert (outcome.logits_NV, outcome.tokens, outcome.error) == (None, (), None)
    np.testing.assert_array_equal(run(backend, (sequence, [4]))[0], backend.logits([1, 2, 3, 4])[3:])
