"""To the last bit: a sequence's logits do not depend on its neighbours, on how its tokens are cut into calls, or on the
number of threads. No tolerance anywhere in this file: everything is compared with array_equal.

The environment variable KILOQ_CPU chooses the instruction set; test_threads.py runs this file on each.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.native_models import native_backend, open_many, random_source, run, some_ids

from kiloq.generate.native_backend import NativeBackend
from kiloq.model.config import ModelConfig

pytest.importorskip(
    "kiloq.native._native", reason="the native engine is not built: install kiloq where a C++ compiler is"
)

TINY = dict(
    vocab_size=50, hidden_size=40, num_layers=3, num_heads=6, num_kv_heads=2, ffn_size=48, head_dim=12, train_length=400
)
PLAIN = ModelConfig(**TINY, logn=True, output_bias=True)
WINDOWS = ModelConfig(**TINY, windows=(5, None, 530), qk_norm=True)
FORMATS = [(w, kv) for w in ("fp32", "bf16", "int8", "int4") for kv in ("fp32", "bf16", "int8")]
FEW = [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16")]
LENGTH = 1060  # past two chunks of 512 keys
BORDERS = [1, 31, 32, 33, 511, 512, 513, 543, 544, 1023, 1024, 1025]
ALONE: dict[tuple[ModelConfig, str, str], tuple[NativeBackend, list[int], np.ndarray]] = {}


def alone(config: ModelConfig, weights: str, kv: str) -> tuple[NativeBackend, list[int], np.ndarray]:
    """A backend, ids, and their logits in as few calls as can be, by one thread."""
    if (config, weights, kv) not in ALONE:
        source, ids = random_source(config), some_ids(config, LENGTH)
        single = native_backend(source, weights, kv, threads=1)
        ALONE[config, weights, kv] = native_backend(source, weights, kv), ids, run(single, (single.open(), ids))[0]
    return ALONE[config, weights, kv]


@pytest.mark.parametrize("config", [PLAIN, WINDOWS], ids=["plain", "windows"])
@pytest.mark.parametrize(("weights", "kv"), FORMATS)
def test_cuts_at_every_border(config: ModelConfig, weights: str, kv: str) -> None:
    backend, ids, want = alone(config, weights, kv)
    for cuts in (BORDERS, [512], [700, 701, 702], []):
        sequence = backend.open()
        pieces = [piece.tolist() for piece in np.split(ids, cuts)]
        got = np.concatenate([run(backend, (sequence, piece))[0] for piece in pieces])
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(backend.logits(ids), want)


@pytest.mark.parametrize("config", [PLAIN, WINDOWS], ids=["plain", "windows"])
@pytest.mark.parametrize(("weights", "kv"), FEW)
def test_one_token_at_a_time(config: ModelConfig, weights: str, kv: str) -> None:
    """Decode steps against the prompt in one piece; 600 tokens: past a chunk of keys."""
    backend, ids, want = alone(config, weights, kv)
    sequence = backend.open()
    got = [run(backend, (sequence, [token]))[0] for token in ids[:600]]
    np.testing.assert_array_equal(np.concatenate(got), want[:600])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("config", [PLAIN, WINDOWS], ids=["plain", "windows"])
@pytest.mark.parametrize(("weights", "kv"), FEW)
def test_any_number_of_threads(config: ModelConfig, weights: str, kv: str, threads: int) -> None:
    """In one call; and a late token alone, where the keys are shared out among the team."""
    _, ids, want = alone(config, weights, kv)
    backend = native_backend(random_source(config), weights, kv, threads=threads)
    sequence = backend.open()
    np.testing.assert_array_equal(run(backend, (sequence, ids[:1040]))[0], want[:1040])
    got = [run(backend, (sequence, [token]))[0] for token in ids[1040:]]
    np.testing.assert_array_equal(np.concatenate(got), want[1040:])


@settings(max_examples=6 if "KILOQ_CPU" in os.environ else 25, deadline=None)
@given(st.data(), st.sampled_from(FEW), st.booleans())
def test_random_ragged_batches(data: st.DataObject, formats: tuple[str, str], windowed: bool) -> None:
    """Up to six sequences, each cut at random, in calls that mix prompts' pieces and single tokens in any order.

    All follow the same ids, so that one reference serves; a neighbour's stretch differs, and so do want and order.
    """
    backend, ids, want = alone(WINDOWS if windowed else PLAIN, *formats)
    sequences = open_many(backend, data.draw(st.integers(1, 6)))
    sizes = st.sampled_from([1, 1, 1, 2, 7, 31, 32, 33, 100, 511, 512, 513])
    for _ in range(data.draw(st.integers(1, 8))):
        chosen = data.draw(st.lists(st.sampled_from(sequences), unique_by=id, min_size=1))
        stranger = data.draw(st.booleans())
        rows = [(s, ids[s.length : min(s.length + data.draw(sizes), LENGTH)]) for s in chosen if s.length < LENGTH]
        if not rows:
            continue
        begins = [sequence.length for sequence, _ in rows]
        given_rows, alphas = list(rows), [1.0] * len(rows)
        if stranger:
            given_rows.insert(0, (backend.open(), ids[:9]))
            alphas.insert(0, 7.0)
        got = run(backend, *given_rows, alpha=alphas)[stranger:]
        for begin, (_, piece), logits in zip(begins, rows, got, strict=True):
            np.testing.assert_array_equal(logits, want[begin : begin + len(piece)])


@pytest.mark.parametrize(("weights", "kv"), FEW)
def test_many_decode_rows(weights: str, kv: str) -> None:
    """40 single tokens in one call, at positions from 0 to 1,059: the kernels' tiles of rows do not show."""
    backend, ids, want = alone(PLAIN, weights, kv)
    longest, rows = backend.open(), []
    for at in range(0, LENGTH, 27):
        rows.append((longest.fork(), ids[at : at + 1]))
        run(backend, (longest, ids[at : at + 27]))
    got = run(backend, *rows)
    np.testing.assert_array_equal(np.concatenate(got), want[::27])
