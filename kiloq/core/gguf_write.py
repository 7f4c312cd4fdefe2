"""Writing GGUF version 3, one tensor at a time, and the ggml types that we write: F32 F16 BF16 Q8_0 Q4_0 and stored bytes.

Source: ggml-org/ggml, docs/gguf.md. Rounding of the quantised types is that of the `gguf` package, which repeats
llama.cpp's reference quantisers. Metadata types follow the Python value: bool, int (uint32, or int64 where it does
not fit), float (float32, what llama.cpp expects), str, a list of strings, or a numpy array of numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.core.files import atomic_file
from kiloq.core.gguf import ARRAY, CHUNK_ELEMENTS, DEFAULT_ALIGNMENT, MAGIC, PLAIN, SCALARS, STRING

_SCALAR_OF = {np.dtype(code): kind for kind, code in SCALARS.items()}


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor to write. `make` gives values of `shape` (rows first), or its stored bytes as uint8."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    make: Callable[[], npt.NDArray[Any]]


def write_gguf(path: Path | str, metadata: Mapping[str, Any], tensors: Iterable[GGUFTensor]) -> None:
    """Write the file complete or not at all; peak memory is one tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    listed = list(tensors)
    with atomic_file(Path(path)) as file:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(listed), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _value(value))
        offset, sizes = 0, []
        for tensor in listed:
            kind = GGMLQuantizationType[tensor.type_name]
            block, block_bytes = GGML_QUANT_SIZES[kind]
            sizes.append(math.prod(tensor.shape) // block * block_bytes)
            dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
            file.write(_string(tensor.name) + dimensions + struct.pack("<IQ", kind, offset))
            offset += sizes[-1] + -sizes[-1] % DEFAULT_ALIGNMENT
        file.write(bytes(-file.tell() % DEFAULT_ALIGNMENT))
        for tensor, size in zip(listed, sizes, strict=True):
            written = 0
            for piece in _pieces(tensor):
                written += file.write(piece.data)
            if written != size:
                raise ValueError(f"{tensor.name}: made {written} bytes, {tensor.type_name}{tensor.shape} has {size}")
            file.write(bytes(-size % DEFAULT_ALIGNMENT))


def encode(values: npt.NDArray[Any], type_name: str) -> npt.NDArray[np.uint8]:
    """`values` [..., columns] as the bytes of a ggml type, flat."""
    if type_name in PLAIN:
        converted = np.ascontiguousarray(values.astype(PLAIN[type_name], copy=False))
        return converted.reshape(-1).view(np.uint8)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    floats = np.ascontiguousarray(values, np.float32)
    coded: npt.NDArray[np.uint8] = quantize(floats, GGMLQuantizationType[type_name])
    return coded.reshape(-1)


def _pieces(tensor: GGUFTensor) -> Iterable[npt.NDArray[np.uint8]]:
    """The stored bytes of a tensor, some rows at a time."""
    values = tensor.make()
    if values.dtype == np.uint8:
        yield np.ascontiguousarray(values).reshape(-1)
        return
    if values.shape != tensor.shape:
        raise ValueError(f"{tensor.name}: made shape {values.shape}, declared {tensor.shape}")
    rows = values.reshape(-1, values.shape[-1])
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    for row in range(0, rows.shape[0], step):
        yield encode(rows[row : row + step], tensor.type_name)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Type number and bytes of one metadata value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, _SCALAR_OF[value.dtype], value.size) + value.tobytes()
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if 0 <= value < 1 << 32 else struct.pack("<Iq", 11, value)
    raise TypeError(f"metadata of type {type(value).__name__} cannot be written to GGUF")
