"""GGUF files: a reader that believes nothing. The writer is in `gguf_write.py`.

Layout (ggml-org/ggml, docs/gguf.md): magic, version, counts, typed key/value metadata, tensor infos, padding to the
alignment, data. Every count and length is compared with the bytes that are left before anything of that size is
made, and the whole header may not exceed MAX_HEADER_BYTES, so a lying file costs a small multiple of that at most.
Lists of strings are passed over and made when they are first asked for: most readers need no vocabulary.
Versions 2 and 3, little endian. Quantised tensors are decoded by the `gguf` package (imported when first needed),
a few rows at a time.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from kiloq.core.errors import FormatError, MissingError
from kiloq.core.files import map_file, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 128 << 20  # ours; a vocabulary of 262k entries with merges takes about 15 MB
MAX_NUMBERS = 1 << 24  # ours; in one metadata array, as Python numbers 8 to 40 bytes each
MAX_ARRAY_DEPTH = 4  # ours; nothing in use nests arrays at all
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 1024  # ours; ggml itself allows 64 for tensors and 65,535 for keys
DEFAULT_ALIGNMENT = 32  # general.alignment when it is absent
CHUNK_ELEMENTS = 1 << 22  # decoded at a time: the gguf package needs several times this in temporaries

# Metadata value types: number in the file -> struct code (numpy understands the same codes).
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# Types whose elements numpy can hold; all others are blocks that `gguf.quants` decodes.
PLAIN: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64,
        "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    }.items()
}  # fmt: skip


# Type number -> name, elements of a block, bytes of a block, of the types that need no package to be read; ggml.h.
COMMON = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}  # fmt: skip


def _type(kind: int) -> tuple[str, int, int] | None:
    """What COMMON or the gguf package, which takes a tenth of a second to import, says of a type."""
    if kind in COMMON:
        return COMMON[kind]
    from gguf.constants import GGML_QUANT_SIZES

    return next(((known.name, *sizes) for known, sizes in GGML_QUANT_SIZES.items() if known == kind), None)


@dataclass(frozen=True)
class _Tensor:
    type_name: str
    shape: tuple[int, ...]  # numpy order: rows first
    row_bytes: int
    begin: int  # from the start of the file
    end: int


class _Metadata(Mapping[str, Any]):
    """Metadata by key. A list of strings that cannot be read raises FormatError when it is asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Strings):
            value = self._values[key] = value.read()
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class GGUFFile:
    """One checked and mapped file. Raises MissingError or FormatError when it cannot be trusted."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._map = map_file(self.path, least=24)
        cursor = _Cursor(self.path, self._map)
        if cursor.take(4) != MAGIC:
            raise FormatError(f"{self.path}: does not start with {MAGIC.decode()}: it is not a GGUF file")
        self.version = cursor.number("I")
        if self.version not in VERSIONS:
            raise FormatError(
                f"{self.path}: is GGUF version {self.version}: little-endian versions {VERSIONS} are read; "
                "convert it again with a current llama.cpp"
            )
        tensor_count = cursor.count(24, "tensors")
        pair_count = cursor.count(13, "metadata entries")
        self.metadata: Mapping[str, Any] = self._read_metadata(cursor, pair_count)
        self._tensors = self._read_tensors(cursor, tensor_count)

    def names(self) -> list[str]:
        """Tensor names in the order of the file."""
        return list(self._tensors)

    def release_pages(self) -> None:
        """Lets the system have the memory of what was read; arrays of before stay valid and are read again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(ggml type name, shape with rows first), e.g. ("Q4_K", (4096, 11008))."""
        tensor = self._tensor(name)
        return tensor.type_name, tensor.shape

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, a view of the map, [rows, bytes per row]."""
        tensor = self._tensor(name)
        flat = np.frombuffer(self._map, np.uint8, tensor.end - tensor.begin, tensor.begin)
        return flat.reshape(-1, tensor.row_bytes)

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor's values: a view in the stored type where numpy has it (F32, F16, BF16, ...), else float32."""
        return self._values(self._tensor(name), self.raw(name)).reshape(self._tensor(name).shape)

    def rows(self, name: str, which: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Some rows of a matrix as `array` gives them; no others are decoded."""
        return self._values(self._tensor(name), self.raw(name)[which])

    def _values(self, tensor: _Tensor, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        if tensor.type_name in PLAIN:
            view = raw.reshape(-1).view(PLAIN[tensor.type_name]).reshape(-1, tensor.shape[-1])
            return view if view.flags.aligned else view.copy()
        return self._decode(tensor, raw)

    def _decode(self, tensor: _Tensor, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[tensor.type_name]
        width = tensor.shape[-1]
        values = np.empty((raw.shape[0], width), np.float32)
        step = max(1, CHUNK_ELEMENTS // width)
        with np.errstate(all="ignore"):  # a damaged scale may be infinite: check_finite() reports such weights
            for row in range(0, raw.shape[0], step):
                try:
                    values[row : row + step] = dequantize(raw[row : row + step], kind)
                except NotImplementedError:
                    raise FormatError(
                        f"{self.path}: tensors of type {tensor.type_name} cannot be decoded by the gguf package "
                        "that is installed: convert the file to another type with llama.cpp"
                    ) from None
        return values

    def _tensor(self, name: str) -> _Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise MissingError(f"{self.path}: has no tensor {shown(name)}") from None

    def _read_metadata(self, cursor: _Cursor, count: int) -> _Metadata:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = cursor.string(MAX_NAME_BYTES)
            if key in metadata:
                raise FormatError(f"{self.path}: the metadata key {shown(key)} occurs twice: the file is damaged")
            metadata[key] = cursor.value(cursor.number("I"), MAX_ARRAY_DEPTH)
        return _Metadata(metadata)

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, _Tensor]:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise FormatError(f"{self.path}: general.alignment {shown(alignment)} must be a power of two up to 2^20")
        found: list[tuple[str, str, tuple[int, ...], int, int]] = []
        for _ in range(count):
            found.append(self._read_tensor(cursor, alignment))
        start = cursor.position + -cursor.position % alignment
        tensors: dict[str, _Tensor] = {}
        for name, type_name, shape, row_bytes, offset in found:
            if name in tensors:
                raise FormatError(f"{self.path}: the tensor {shown(name)} occurs twice: the file is damaged")
            begin = start + offset
            end = begin + row_bytes * math.prod(shape[:-1])
            if end > len(self._map):
                raise FormatError(
                    f"{self.path}: tensor {shown(name)} claims bytes {begin} to {end} of a file of {len(self._map)}: "
                    "the file is truncated or damaged"
                )
            tensors[name] = _Tensor(type_name, shape, row_bytes, begin, end)
        self._check_overlap(tensors)
        return tensors

    def _read_tensor(self, cursor: _Cursor, alignment: int) -> tuple[str, str, tuple[int, ...], int, int]:
        """(name, type name, shape, bytes per row, offset in the data section) of the next tensor info."""
        name = cursor.string(MAX_NAME_BYTES)
        who = f"{self.path}: tensor {shown(name)}"
        rank = cursor.number("I")
        if not 1 <= rank <= MAX_DIMENSIONS:
            raise FormatError(f"{who} has {rank} dimensions: 1 to {MAX_DIMENSIONS} are possible")
        shape = tuple(cursor.number("Q") for _ in range(rank))[::-1]
        kind, offset = cursor.number("I"), cursor.number("Q")
        known = _type(kind)
        if known is None:
            raise FormatError(f"{who} has type {kind}, which the gguf package that is installed does not know")
        type_name, block, block_bytes = known
        if min(shape) < 1 or math.prod(shape) >= 1 << 63 or shape[-1] % block:
            raise FormatError(f"{who} has the impossible shape {shown(shape)} for {type_name} in blocks of {block}")
        if offset % alignment:
            raise FormatError(f"{who} starts at offset {offset}, which is no multiple of the alignment {alignment}")
        return name, type_name, shape, shape[-1] // block * block_bytes, offset

    def _check_overlap(self, tensors: Mapping[str, _Tensor]) -> None:
        position = 0
        for begin, end, name in sorted((tensor.begin, tensor.end, name) for name, tensor in tensors.items()):
            if begin < position:
                raise FormatError(f"{self.path}: tensor {shown(name)} overlaps another: the file is damaged or hostile")
            position = end


class _Cursor:
    """Reads the header front to back and never past the end of the file or MAX_HEADER_BYTES."""

    def __init__(self, path: Path, data: Any, position: int = 0) -> None:
        self.path, self.data, self.position = path, data, position
        self.end = min(len(data), MAX_HEADER_BYTES)

    def claim(self, size: int, what: str) -> int:
        """Move over `size` bytes and return where they start."""
        start = self.position
        if size > self.end - start:
            raise FormatError(
                f"{self.path}: {what} at byte {start} needs {size:,} bytes and {self.end - start:,} are left: "
                "the file is truncated or damaged"
            )
        self.position = start + size
        return start

    def take(self, size: int, what: str = "a value") -> bytes:
        start = self.claim(size, what)
        return bytes(self.data[start : start + size])

    def number(self, code: str) -> Any:
        layout = "<" + code
        return struct.unpack_from(layout, self.data, self.claim(struct.calcsize(layout), "a number"))[0]

    def count(self, least_bytes: int, what: str) -> int:
        """A 64-bit count of things that take at least `least_bytes` each."""
        count: int = self.number("Q")
        if count * least_bytes > self.end - self.position:
            raise FormatError(f"{self.path}: claims {count:,} {what}, more than the file has room for: it is damaged")
        return count

    def string(self, limit: int | None = None) -> str:
        size: int = self.number("Q")
        if limit is not None and size > limit:
            raise FormatError(f"{self.path}: has a name of {size:,} bytes: at most {limit} are read")
        try:
            return self.take(size, "a string").decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{self.path}: the string before byte {self.position} is not UTF-8") from None

    def value(self, kind: int, depth: int) -> Any:
        """One metadata value: a Python number, str, or a list of them."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise FormatError(f"{self.path}: metadata type {kind} before byte {self.position} does not exist")
        if not depth:
            raise FormatError(f"{self.path}: metadata arrays are nested more than {MAX_ARRAY_DEPTH} deep")
        return self._array(self.number("I"), depth - 1)

    def _array(self, kind: int, depth: int) -> list[Any] | _Strings:
        if kind == STRING:
            count = self.count(8, "strings")
            return self._pass_strings(count) if depth == MAX_ARRAY_DEPTH - 1 else self.strings(count)
        if kind == ARRAY:
            return [self.value(ARRAY, depth) for _ in range(self.count(12, "arrays"))]
        if kind not in SCALARS:
            raise FormatError(f"{self.path}: metadata type {kind} before byte {self.position} does not exist")
        dtype = np.dtype(SCALARS[kind]).newbyteorder("<")
        count = self.count(dtype.itemsize, "numbers")
        if count > MAX_NUMBERS:
            raise FormatError(
                f"{self.path}: has a metadata array of {count:,} numbers: at most {MAX_NUMBERS:,} are read"
            )
        start = self.claim(count * dtype.itemsize, "an array")
        numbers: list[Any] = np.frombuffer(self.data, dtype, count, start).tolist()
        return numbers

    def _pass_strings(self, count: int) -> _Strings:
        """Move over `count` strings."""
        found = _Strings(self.path, self.data, self.position, count)
        position, end = self.position, self.end
        unpack = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                position += 8 + unpack(self.data, position)[0]
                if position > end:
                    break
        except struct.error:
            position = end + 1
        if position > end:
            raise FormatError(f"{self.path}: a string in a list runs past the end: the file is damaged")
        self.position = position
        return found

    def strings(self, count: int) -> list[str]:
        """`count` strings in one tight loop: a vocabulary with its merges has 300,000."""
        data, position, end = self.data, self.position, self.end
        unpack = struct.Struct("<Q").unpack_from
        result = []
        try:
            for _ in range(count):
                (size,) = unpack(data, position)
                begin, position = position + 8, position + 8 + size
                if position > end:
                    break
                result.append(data[begin:position].decode("utf-8"))
        except (struct.error, UnicodeDecodeError) as error:
            raise FormatError(f"{self.path}: a string near byte {position} is damaged ({error})") from None
        if len(result) != count:
            raise FormatError(f"{self.path}: a string at byte {position} runs past the end: the file is damaged")
        self.position = position
        return result


@dataclass(frozen=True)
class _Strings:
    """A list of strings that has not been made yet."""

    path: Path
    data: Any
    position: int
    count: int

    def read(self) -> list[str]:
        return _Cursor(self.path, self.data, self.position).strings(self.count)
