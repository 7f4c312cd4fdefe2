"""safetensors files: a reader that believes nothing, and a writer that streams one tensor at a time.

Layout (huggingface/safetensors, README "Format"): 8 bytes little-endian header length, a JSON header
{name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}, then the data; the offsets must cover the data
exactly, without overlap or hole. Everything is checked against the size of the file before a tensor is touched, in
Python integers, which cannot overflow. Tensors are views of a private copy-on-write map: reading costs no memory.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.core.dtypes import CODES, SAFETENSORS_DTYPES
from kiloq.core.errors import FormatError, MissingError
from kiloq.core.files import atomic_file, map_file, shown
from kiloq.core.safe_json import parse_object

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_RANK = 8  # ours; weights have one or two dimensions
ALIGNMENT = 8  # of the data section, as the reference implementation writes it


@dataclass(frozen=True)
class TensorSpec:
    """One tensor to write: `make` is called when its turn comes and must return `shape` in `dtype` (a code: "BF16")."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], npt.NDArray[Any]]


class SafetensorsFile:
    """One checked and mapped file. Raises MissingError or FormatError when it cannot be trusted."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._map = map_file(self.path, least=8 + 2)
        (length,) = struct.unpack_from("<Q", self._map)
        room = len(self._map) - 8
        if length > MAX_HEADER_BYTES or length > room:
            raise FormatError(
                f"{self.path}: claims a header of {length:,} bytes, but at most {min(room, MAX_HEADER_BYTES):,} "
                "are possible: the file is truncated or is not safetensors"
            )
        self._begin = 8 + length
        header = parse_object(self._map[8 : self._begin], self.path)
        self.metadata = self._checked_metadata(header.pop("__metadata__", None))
        self._entries = {name: self._checked_entry(name, entry) for name, entry in header.items()}
        self._check_cover()

    def names(self) -> list[str]:
        """Tensor names in the order of the header."""
        return list(self._entries)

    def release_pages(self) -> None:
        """Lets the system have the memory of what was read; arrays of before stay valid and are read again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(dtype code, shape) of a tensor, e.g. ("BF16", (151936, 4096))."""
        dtype, shape, _, _ = self._entry(name)
        return dtype, shape

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor as a view of the map (a copy only where the file does not align it)."""
        dtype, shape, begin, _ = self._entry(name)
        flat = np.frombuffer(self._map, SAFETENSORS_DTYPES[dtype], math.prod(shape), self._begin + begin)
        view = flat.reshape(shape)
        return view if view.flags.aligned else view.copy()

    def _entry(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        try:
            return self._entries[name]
        except KeyError:
            raise MissingError(f"{self.path}: has no tensor {shown(name)}") from None

    def _checked_metadata(self, metadata: Any) -> dict[str, str]:
        if metadata is None:
            return {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise FormatError(f"{self.path}: its __metadata__ must map strings to strings")
        return metadata

    def _checked_entry(self, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
        who = f"{self.path}: tensor {shown(name)}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FormatError(f"{who} must have exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
            raise FormatError(f"{who} has dtype {shown(dtype)}: known are {', '.join(SAFETENSORS_DTYPES)}")
        if not _sizes(shape) or len(shape) > MAX_RANK:
            raise FormatError(f"{who} has shape {shown(shape)}: at most {MAX_RANK} whole sizes were expected")
        if not _sizes(offsets) or len(offsets) != 2:
            raise FormatError(f"{who} has data_offsets {shown(offsets)}: [begin, end] was expected")
        begin, end = offsets
        size = math.prod(shape) * SAFETENSORS_DTYPES[dtype].itemsize
        if begin + size != end or self._begin + end > len(self._map):
            raise FormatError(
                f"{who} claims bytes {begin} to {end} for shape {shown(shape)} of {dtype} ({size} bytes), and the "
                f"file holds {len(self._map) - self._begin}: it is damaged or truncated"
            )
        return dtype, tuple(shape), begin, end

    def _check_cover(self) -> None:
        position = 0
        for begin, end, name in sorted((entry[2], entry[3], name) for name, entry in self._entries.items()):
            if begin != position:
                fault = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
                raise FormatError(f"{self.path}: tensor {shown(name)} {fault}: the file is damaged or hostile")
            position = end
        if self._begin + position != len(self._map):
            raise FormatError(
                f"{self.path}: has {len(self._map) - self._begin - position} bytes after its last tensor: "
                "the file is damaged or hostile"
            )


def _sizes(value: Any) -> bool:
    """True for a list of whole numbers from 0 to 2^63 - 1 (and no booleans, which Python counts as numbers)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def write_safetensors(
    path: Path | str,
    tensors: Mapping[str, npt.NDArray[Any]] | Iterable[TensorSpec],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays by name, or specs one at a time (peak memory: one tensor); the file appears complete or not at all.

    Wide types come first (stably), which keeps every tensor aligned to its elements; otherwise the order is the
    caller's, so equal input gives equal bytes.
    """
    specs = list(specs_of(tensors) if isinstance(tensors, Mapping) else tensors)
    specs.sort(key=lambda spec: -SAFETENSORS_DTYPES[spec.dtype].itemsize)
    with atomic_file(Path(path)) as file:
        file.write(_header(specs, metadata))
        for spec in specs:
            array = spec.make()
            if array.shape != spec.shape or CODES.get(array.dtype) != spec.dtype:
                raise ValueError(f"{spec.name}: made {array.dtype}{array.shape}, declared {spec.dtype}{spec.shape}")
            if array.size:
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def specs_of(arrays: Mapping[str, npt.NDArray[Any]]) -> list[TensorSpec]:
    """Specs of arrays that are already in memory."""
    return [TensorSpec(n, CODES[a.dtype], a.shape, lambda a=a: a) for n, a in arrays.items()]  # type: ignore[misc]


def _header(specs: list[TensorSpec], metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in specs:
        if spec.name in header or spec.name == "__metadata__":
            raise ValueError(f"two tensors are called {spec.name}")
        end = position + math.prod(spec.shape) * SAFETENSORS_DTYPES[spec.dtype].itemsize
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
