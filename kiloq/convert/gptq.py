"""GPTQ folders in AutoGPTQ's layout, read and written as integers.

Each quantised matrix [out, in] is four tensors: `qweight` int32 [in x bits / 32, out] (low bits first, along in),
`qzeros` int32 [groups, out x bits / 32] (low bits first, along out; each zero point less one, modulo 2^bits),
`scales` [groups, out], and `g_idx` int32 [in], the group of each column. What the folder holds is said by
`quantization_config` in config.json, or by an older folder's `quantize_config.json`. `GPTQTensors` shows each
matrix under the name of the weight that it stands for, so Qwen-1's and Hugging Face's names are read by their own
tables. Source: AutoGPTQ's QLinear classes (layout as measured on its output); gptq_v2 (no "less one") is GPTQModel's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.convert.fields import Fields
from kiloq.convert.folder import FolderTensors, inside
from kiloq.convert.integers import Integers
from kiloq.core.errors import FormatError
from kiloq.core.files import shown
from kiloq.core.safe_json import load_object

CONFIG_KEY, CONFIG_FILE = "quantization_config", "quantize_config.json"
FORMATS = {"gptq": 1, "gptq_v2": 0}  # checkpoint_format -> what is added to the stored zero points
PARTS = ("qweight", "qzeros", "scales", "g_idx")
TYPES = ("GPTQ4", "GPTQ8")  # what the type of a matrix is called
SCALE_TYPES = ("F16", "BF16", "F32")
MAX_GROUP = 1 << 20
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Stored:
    """How the matrices of a folder are stored."""

    path: Path  # of the configuration that says so
    bits: int
    group: int  # -1: the whole row
    zero_offset: int

    @property
    def type_name(self) -> str:
        """One of TYPES."""
        return f"GPTQ{self.bits}"


def read_settings(folder: Path, fields: Fields) -> Stored | None:
    """How a folder's matrices are quantised; None: not at all. FormatError for any other way than GPTQ's."""
    values = fields.get(CONFIG_KEY, dict, {})
    source, path = fields.path, inside(folder, CONFIG_FILE)
    if not values and path.exists():
        source, values = path, load_object(path, MAX_CONFIG_BYTES)
    if not values:
        return None
    given = Fields(source, values)
    method = given.text("quant_method", "gptq")
    if method != "gptq":
        raise FormatError(
            f"{source}: is quantised with {shown(method)}: of quantised models, GPTQ folders and GGUF files are read"
        )
    bits, group = given.int("bits"), given.int("group_size", -1)
    if bits not in (4, 8):
        raise FormatError(f"{source}: has GPTQ weights of {shown(bits)} bits: 4 and 8 are read")
    if group != -1 and not 1 <= group <= MAX_GROUP:
        raise FormatError(f"{source}: group_size is {shown(group)}: -1 or 1 to {MAX_GROUP} was expected")
    kind = given.text("checkpoint_format", "gptq")
    if kind not in FORMATS or given.bool("is_marlin_format", False):
        raise FormatError(f"{source}: has GPTQ weights packed for {shown(kind)} kernels: AutoGPTQ's layout is read")
    if values.get("dynamic"):
        raise FormatError(f"{source}: has other settings for some layers ('dynamic'), which kiloq does not read")
    return Stored(source, bits, group, FORMATS[kind])


class GPTQTensors:
    """The tensors of a GPTQ folder; each quantised matrix is one, called NAME.weight."""

    def __init__(self, tensors: FolderTensors, stored: Stored, wanted: Collection[str]) -> None:
        """`wanted`: names that the model needs; AutoGPTQ writes biases of zeros beside them, which are left out."""
        self.path, self.stored, self._tensors = tensors.path, stored, tensors
        present = tensors.names()
        self._modules = {name[: -len(".qweight")] for name in present if name.endswith(".qweight")}
        if not self._modules:
            raise FormatError(f"{stored.path}: says that its matrices are quantised, and the weights are not")
        self._shapes = {f"{module}.weight": self._checked(module, set(present)) for module in self._modules}
        inner = {f"{module}.{part}" for module in self._modules for part in PARTS}
        spare = {f"{module}.bias" for module in self._modules} - set(wanted)
        self._names = [name for name in present if name not in inner and not (name in spare and self._empty(name))]
        for name in self._shapes:
            if name in self._names:
                raise FormatError(f"{self.file_of(name)}: holds {shown(name)} both quantised and not")
        self._names += list(self._shapes)

    def names(self) -> list[str]:
        """Tensor names, of quantised matrices those of their weights."""
        return list(self._names)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(type code, shape); quantised matrices are of type GPTQ4 or GPTQ8."""
        return (self.stored.type_name, self._shapes[name]) if name in self._shapes else self._tensors.info(name)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Values: mapped, or decoded to float32."""
        found = self.integers(name, slice(None))
        return self._tensors.array(name) if found is None else found.decode()

    def release_pages(self) -> None:
        """Lets the system have the memory of what was read; see `SafetensorsFile`."""
        self._tensors.release_pages()

    def file_of(self, name: str) -> Path:
        """The shard that holds a tensor, for error sentences."""
        return self._tensors.file_of(f"{name[: -len('.weight')]}.qweight" if name in self._shapes else name)

    def integers(self, name: str, rows: slice | npt.NDArray[np.int64]) -> Integers | None:
        """The integers of some rows of a quantised matrix; None for another tensor."""
        if name not in self._shapes:
            return None
        module, bits = name[: -len(".weight")], self.stored.bits
        part = {kind: self._tensors.array(f"{module}.{kind}") for kind in PARTS[:3]}
        zero = (unpack_zeros(part["qzeros"], bits, self.stored.zero_offset).T)[rows]
        scale = np.ascontiguousarray(part["scales"].T[rows])
        return Integers(
            codes=unpack_codes(part["qweight"][:, rows], bits),
            bits=bits,
            group=self._group(self._shapes[name][1]),
            scale=scale if scale.dtype == np.float16 else scale.astype(np.float32),
            zero=None if bool((zero == 1 << (bits - 1)).all()) else np.ascontiguousarray(zero),
            g_idx=self._column_groups(module, self._shapes[name][1], scale.shape[1]),
        )

    def _group(self, columns: int) -> int:
        return columns if self.stored.group < 0 else min(self.stored.group, columns)

    def _column_groups(self, module: str, columns: int, groups: int) -> npt.NDArray[np.int32] | None:
        """g_idx where it says more than the order of the columns."""
        name = f"{module}.g_idx"
        if name not in self._tensors.names():
            return None
        found = self._tensors.array(name).astype(np.int32)
        if bool((found == np.arange(columns) // self._group(columns)).all()):
            return None
        if found.min() < 0 or found.max() >= groups:
            raise FormatError(
                f"{self._tensors.file_of(name)}: {shown(name)} names group {found.min()} to {found.max()}, and there "
                f"are {groups}: the file is damaged"
            )
        return found

    def _checked(self, module: str, present: set[str]) -> tuple[int, int]:
        """The shape [out, in] of a quantised matrix whose four tensors fit each other."""
        words = 32 // self.stored.bits
        file = self._tensors.file_of(f"{module}.qweight")
        packed = self._tensors.info(f"{module}.qweight")[1]
        if len(packed) != 2 or min(packed) < 1 or packed[1] % words:
            raise FormatError(f"{file}: {shown(module + '.qweight')} has the impossible shape {list(packed)}")
        columns, rows = packed[0] * words, packed[1]
        groups = -(-columns // self._group(columns))
        needed = {
            "qweight": (("I32", "U32"), packed),
            "qzeros": (("I32", "U32"), (groups, rows // words)),
            "scales": (SCALE_TYPES, (groups, rows)),
            "g_idx": (("I32", "I64"), (columns,)),
        }
        for part, (kinds, shape) in needed.items():
            name = f"{module}.{part}"
            if name not in present:
                if part == "g_idx":  # older programs than AutoGPTQ wrote none
                    continue
                raise FormatError(f"{file}: lacks tensor {shown(name)}, which a GPTQ matrix needs")
            found = self._tensors.info(name)
            if found[0] not in kinds or found[1] != shape:
                raise FormatError(
                    f"{self._tensors.file_of(name)}: tensor {shown(name)} is {found[0]} {list(found[1])}, and "
                    f"{self.stored.bits} bits in groups of {self.stored.group} need {kinds[0]} {list(shape)}"
                )
        return rows, columns

    def _empty(self, name: str) -> bool:
        return not self._tensors.array(name).any()


def unpack_codes(qweight: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """qweight, int32 [in x bits / 32, out] -> codes, uint8 [out, in]."""
    return _unpack_rows(np.ascontiguousarray(qweight.T), bits)


def pack_codes(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """The inverse of `unpack_codes`; in must be a multiple of 32 / bits."""
    return np.ascontiguousarray(_pack_rows(codes, bits).T)


def unpack_zeros(qzeros: npt.NDArray[np.int32], bits: int, offset: int = 1) -> npt.NDArray[np.uint8]:
    """qzeros, int32 [groups, out x bits / 32] -> zero points, uint8 [groups, out]."""
    return (_unpack_rows(np.ascontiguousarray(qzeros), bits) + np.uint8(offset)) & np.uint8((1 << bits) - 1)


def pack_zeros(zero: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """The inverse of `unpack_zeros`, less one; a zero point of 0 wraps to 2^bits - 1 and comes back as 0."""
    return _pack_rows((zero - np.uint8(1)) & np.uint8((1 << bits) - 1), bits)


def _unpack_rows(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """[rows, words] -> [rows, words x 32 / bits], low bits first."""
    packed = words.astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return packed
    apart = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=apart[..., 0])
    np.right_shift(packed, 4, out=apart[..., 1])
    return apart.reshape(packed.shape[0], -1)


def _pack_rows(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    packed = np.ascontiguousarray(codes) if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    return packed.view("<i4").astype(np.int32, copy=False)
