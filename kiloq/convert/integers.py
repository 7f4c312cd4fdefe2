"""The integers of a quantised matrix as they are stored, without decoding: what the native engine computes with.

Read from GGUF's Q4_0, Q4_1 and Q8_0 blocks here, and from GPTQ folders in `gptq.py`. A second rounding (decode to
float, quantise again) would cost accuracy for nothing, so engines and writers of other quantised formats start here.
Blocks are taken apart in words over whole columns of blocks, some thousand at a time, so that a piece stays in the
processor's cache. Source of the block layouts: ggml-org/llama.cpp, ggml/src/ggml-common.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 32  # elements in a block of Q4_0, Q4_1 and Q8_0
BLOCKS_AT_ONCE = 4096  # 80 KiB of Q4_1 in, 128 KiB of codes out
# ggml type -> (bits, float16 numbers before the codes: the scale, and Q4_1's minimum)
LAYOUTS = {"Q4_0": (4, 1), "Q4_1": (4, 2), "Q8_0": (8, 1)}


@dataclass(frozen=True)
class Integers:
    """A matrix [out, in] as unsigned codes, with one scale for each group of `group` columns of a row.

    value = scale * (code - 2^(bits-1)), or scale * (code - zero), or scale * code + minimum.
    """

    codes: npt.NDArray[np.uint8]  # [out, in]
    bits: int  # 4 or 8
    group: int  # columns that share a scale; the last group of a row may have fewer
    scale: npt.NDArray[Any]  # float16 or float32 [out, groups]
    zero: npt.NDArray[np.uint8] | None = None  # [out, groups]; None: 2^(bits-1) everywhere, or a minimum
    minimum: npt.NDArray[np.float16] | None = None  # [out, groups]
    g_idx: npt.NDArray[np.int32] | None = None  # [in], the group of each column; None: column // group

    @property
    def symmetric(self) -> bool:
        """Whether the code 2^(bits-1) stands for zero in every group."""
        return self.zero is None and self.minimum is None

    def rows(self, begin: int, end: int) -> Integers:
        """Rows [begin, end), as views."""
        part = slice(begin, end)
        zero = None if self.zero is None else self.zero[part]
        minimum = None if self.minimum is None else self.minimum[part]
        return Integers(self.codes[part], self.bits, self.group, self.scale[part], zero, minimum, self.g_idx)

    def decode(self) -> npt.NDArray[np.float32]:
        """The values, float32 [out, in]. A damaged scale may make them infinite or NaN."""
        rows, columns = self.codes.shape
        with np.errstate(all="ignore"):
            if self.g_idx is None and columns % self.group == 0:
                grouped = self.codes.reshape(rows, columns // self.group, self.group)
                return self._values(grouped, np.s_[:, :, None]).reshape(rows, columns)
            of_column = self.g_idx if self.g_idx is not None else np.arange(columns) // self.group
            return self._values(self.codes, np.s_[:, of_column])

    def _values(self, codes: npt.NDArray[np.uint8], spread: Any) -> npt.NDArray[np.float32]:
        """Values of `codes`, with `spread` as the index that brings a table [out, groups] to their shape."""
        scale = self.scale.astype(np.float32)[spread]
        values: npt.NDArray[np.float32] = codes.astype(np.float32)
        if self.minimum is not None:
            values *= scale
            values += self.minimum.astype(np.float32)[spread]
            return values
        values -= np.float32(1 << (self.bits - 1)) if self.zero is None else self.zero.astype(np.float32)[spread]
        values *= scale
        return values


def from_blocks(raw: npt.NDArray[np.uint8], type_name: str) -> Integers | None:
    """The integers in rows of GGUF blocks, uint8 [rows, bytes]; None for a type whose blocks are of another form."""
    if type_name not in LAYOUTS:
        return None
    bits, head = LAYOUTS[type_name]
    size = 2 * head + BLOCK * bits // 8
    rows, groups = raw.shape[0], raw.shape[1] // size
    blocks = np.ascontiguousarray(raw).reshape(-1, size)
    codes = np.empty((len(blocks), BLOCK), np.uint8)
    if bits == 8:  # signed bytes: turning the top bit over adds 128
        np.bitwise_xor(blocks[:, 2 * head :], 128, out=codes)
    else:
        _nibbles_apart(blocks, 2 * head, codes)

    def table(word: int) -> npt.NDArray[np.float16]:
        return blocks[:, 2 * word : 2 * word + 2].copy().view("<f2").reshape(rows, groups)

    return Integers(codes.reshape(rows, groups * BLOCK), bits, BLOCK, table(0), minimum=table(1) if head == 2 else None)


def _nibbles_apart(blocks: npt.NDArray[np.uint8], head: int, codes: npt.NDArray[np.uint8]) -> None:
    """Byte i behind the `head` bytes of a block has element i in its low and element i + 16 in its high half."""
    aligned = blocks.ctypes.data % 4 == 0 and blocks.shape[1] % 4 == 0 and head % 4 == 0
    word = np.dtype("<u4" if aligned else "<u2")
    low = word.type(0x0F0F0F0F & (1 << 8 * word.itemsize) - 1)
    packed, apart = blocks.view(word)[:, head // word.itemsize :], codes.view(word)
    half = packed.shape[1]
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        piece, out = packed[start : start + BLOCKS_AT_ONCE], apart[start : start + BLOCKS_AT_ONCE]
        for column in range(half):
            np.bitwise_and(piece[:, column], low, out=out[:, column])
            np.bitwise_and(piece[:, column] >> 4, low, out=out[:, half + column])


def to_blocks(found: Integers, type_name: str) -> npt.NDArray[np.uint8] | None:
    """The integers as rows of Q4_0 or Q8_0 blocks, uint8 [rows, bytes]; None where those cannot hold them exactly.

    They hold symmetric groups of a multiple of 32 neighbouring columns with float16 scales.
    """
    bits, head = LAYOUTS.get(type_name, (0, 0))
    rows, columns = found.codes.shape
    fits = found.symmetric and found.g_idx is None and columns % BLOCK == 0
    if head != 1 or found.bits != bits or not fits or (found.group % BLOCK and found.group < columns):
        return None
    with np.errstate(over="ignore"):
        half = found.scale.astype(np.float16)
    if not np.array_equal(half, found.scale, equal_nan=True):
        return None
    blocks = np.empty((rows, columns // BLOCK, 2 + BLOCK * bits // 8), np.uint8)
    of_block = np.arange(columns // BLOCK) * BLOCK // found.group
    blocks[..., :2] = half[:, of_block].astype("<f2")[..., None].view(np.uint8)
    codes = found.codes.reshape(rows, -1, BLOCK)
    if bits == 8:
        np.bitwise_xor(codes, 128, out=blocks[..., 2:])
    else:
        np.bitwise_or(codes[..., :16], codes[..., 16:] << 4, out=blocks[..., 2:])
    return blocks.reshape(rows, -1)
