"""Stored integers against the `gguf` package's decoder: scale, code and offset give its float32 values bit for bit.

Exact, because the same float32 operations run in the same order: products of an 11-bit scale and a code are exact,
and Q4_1's one addition is rounded once on both sides.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from oracles.tiny_models import save, tiny
from support import smollm2_gguf

from kiloq.convert.integers import LAYOUTS, from_blocks
from kiloq.convert.layout import Entry, llama_rows
from kiloq.convert.source import open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import UsageError


def blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random stored bytes with finite scales of both signs, zeros among them."""
    random = np.random.default_rng(seed)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    raw = random.integers(0, 256, (rows * columns // 32, size), np.uint8)
    heads = LAYOUTS[kind][1]
    scales = random.normal(0, 1, (len(raw), heads)).astype(np.float16)
    scales[random.random(scales.shape) < 0.1] = 0
    raw[:, : 2 * heads] = scales.view(np.uint8).reshape(len(raw), -1)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (3, 96), (257, 1024)])
def test_values_equal_the_gguf_package(kind: str, rows: int, columns: int) -> None:
    raw = blocks(kind, rows, columns)
    found = from_blocks(raw, kind)
    assert found is not None
    assert found.codes.shape == (rows, columns)
    assert found.scale.shape == (rows, columns // 32)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(found.decode(), expected)
    assert int(found.codes.max()) < 1 << found.bits


@pytest.mark.parametrize("kind", LAYOUTS)
def test_bytes_at_any_address_are_read(kind: str) -> None:
    raw = blocks(kind, 5, 64)
    for shift in range(4):
        buffer = np.empty(raw.size + shift, np.uint8)
        moved = buffer[shift:].reshape(raw.shape)
        moved[:] = raw
        here, there = from_blocks(moved, kind), from_blocks(raw, kind)
        assert here is not None
        assert there is not None
        np.testing.assert_array_equal(here.codes, there.codes)


def test_other_types_are_none() -> None:
    assert from_blocks(np.zeros((2, 144), np.uint8), "Q4_K") is None
    assert from_blocks(np.zeros((2, 64), np.uint8), "F16") is None


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_a_file_gives_its_integers_in_canonical_rows(dtype: str, tmp_path: Path) -> None:
    """Arch llama permutes the rows of Q and K; whatever is asked for equals the decoded tensor."""
    source = open_model(save(tiny("llama"), tmp_path / "in", tokenizer=True))
    write_gguf_file(source, tmp_path / "out.gguf", dtype)
    read = open_model(tmp_path / "out.gguf")
    found = 0
    for name in read.names():
        whole = read.integers(name)
        assert (whole is None) == (len(read.shape(name)) == 1), name
        if whole is None:
            continue
        found += 1
        expected = read.tensor(name)
        np.testing.assert_array_equal(whole.decode(), expected)
        rows = expected.shape[0]
        for begin, end in [(0, rows), (0, 1), (rows // 3, rows // 2), (rows - 1, rows), (5, 5)]:
            part = read.integers(name, (begin, end))
            assert part is not None
            np.testing.assert_array_equal(part.decode(), expected[begin:end])
    assert found == 16
    with pytest.raises(UsageError, match="not all there"):
        read.integers("embed_tokens.weight", (0, 321))
    assert source.integers("embed_tokens.weight") is None


def test_rows_of_a_fused_or_permuted_matrix() -> None:
    values = np.arange(24).reshape(12, 2)
    fused = Entry("x", (12, 2), rows=(4, 8))
    np.testing.assert_array_equal(values[fused.stored_rows(1, 3)], fused.read(values)[1:3])
    permuted = Entry("x", (12, 2), permuted_heads=2)
    np.testing.assert_array_equal(llama_rows(values, 2)[permuted.stored_rows(2, 9)], values[2:9])


@pytest.mark.default_model
def test_the_default_model_gives_its_integers() -> None:
    source = open_model(smollm2_gguf())
    kinds = {name: source.integers(name) for name in source.names()[:12]}
    assert {name: None if part is None else part.bits for name, part in kinds.items()} == {
        name: 8 if name.startswith("embed") else 4 if len(source.shape(name)) == 2 else None for name in kinds
    }
    for name, part in kinds.items():
        if part is not None:
            np.testing.assert_array_equal(part.decode(), source.tensor(name))
