"""GGUF's blocks go into a matrix in one pass: the same numbers as the gguf package decodes, for any bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from kiloq import native

engine = native.engine()
if engine is None:
    pytest.skip(native.MISSING, allow_module_level=True)

FORMS = {"Q4_0": ("int4", "none", 18), "Q4_1": ("int4", "minimum", 20), "Q8_0": ("int8", "none", 34)}
COLUMNS = 96


def matrix(kind: str, rows: int):
    form, offset, _ = FORMS[kind]
    arena = engine.Arena(engine.Matrix.bytes(rows, COLUMNS, form, offset, 32))
    return engine.Matrix(arena, rows, COLUMNS, form, offset, 32)


def blocks(kind: str, rows: int) -> np.ndarray:
    """Rows of three blocks of random bytes with finite scales."""
    size = FORMS[kind][2]
    raw = np.random.default_rng(0).integers(0, 256, (rows, 3, size), dtype=np.uint8)
    raw[..., 1] &= 0xBF  # the top bit of a half's exponent
    raw[..., 3] &= 0xBF
    return raw.reshape(rows, 3 * size)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", FORMS)
def test_blocks_are_held_as_they_are(kind: str, threads: int) -> None:
    """Bit for bit, in two calls that do not end at a block of 16 rows."""
    raw = blocks(kind, 37)
    held = matrix(kind, 37)
    assert held.put_blocks(0, raw[:32], kind, threads)
    assert held.put_blocks(32, raw[32:], kind, threads)
    want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(np.array([held.row(row) for row in range(37)], np.float32), want)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("half", [0x7C00, 0xFC00, 0x7E01])
def test_scales_that_are_not_finite_are_reported(kind: str, half: int) -> None:
    for at in (0, 2) if kind == "Q4_1" else (0,):
        raw = blocks(kind, 20)
        raw[17, FORMS[kind][2] + at :][:2] = np.frombuffer(half.to_bytes(2, "little"), np.uint8)
        assert not matrix(kind, 20).put_blocks(0, raw, kind, 1)


def test_blocks_that_do_not_fit_are_refused() -> None:
    held, raw = matrix("Q4_1", 16), blocks("Q4_1", 16)
    for first, given, kind in [
        (1, raw, "Q4_1"), (-1, raw, "Q4_1"), (0, raw[:, :40].copy(), "Q4_1"), (0, raw[:, :59].copy(), "Q4_1"),
        (0, blocks("Q4_0", 16), "Q4_0"), (0, blocks("Q8_0", 16), "Q8_0"), (0, raw, "Q5_0"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"fit|unknown"):
            held.put_blocks(first, given, kind, 1)
