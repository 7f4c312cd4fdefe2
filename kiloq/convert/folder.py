"""The weight files of a model folder, behind one face: names, shapes and types first, values when asked.

A shard index may name only plain files inside the folder. A symlink is followed only if its target stays inside the
model folder, or inside `blobs` of the same repository of Hugging Face's hub cache
(`models--X/snapshots/REV/file -> ../../blobs/HASH` is how that cache stores every file). `.bin` shards are read only
by torch's restricted unpickler, uncompressed and memory-mapped; nothing in a folder is ever imported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from kiloq.core.errors import FormatError, MissingError
from kiloq.core.files import regular_size, shown
from kiloq.core.safe_json import load_object
from kiloq.core.safetensors import SafetensorsFile

if TYPE_CHECKING:
    import torch

MAX_SHARDS = 10_000
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
GPTQ = re.compile(r"gptq_model-\d+bit-(-1|\d+)g\.safetensors")  # AutoGPTQ's own name for what it quantised


class TensorFile(Protocol):
    """What a weight file offers, whatever its format."""

    path: Path

    def names(self) -> list[str]:
        """Tensor names."""

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(type code, shape)."""

    def release_pages(self) -> None:
        """Lets the system have the memory of what was read, where it is mapped."""

    def array(self, name: str) -> npt.NDArray[Any]:
        """Values, mapped where possible."""


class FolderTensors:
    """All tensors of a folder, over its shards."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files: dict[str, TensorFile] = {}
        weight_map = _weight_map(folder)
        for shard in sorted(set(weight_map.values())) if weight_map else [_single(folder)]:
            file = _open(inside(folder, shard))
            for name in file.names():
                if name in self._files:
                    raise FormatError(
                        f"{file.path}: tensor {shown(name)} is also in {self._files[name].path.name}: "
                        "one of the shards is not of this model"
                    )
                self._files[name] = file
        for name, shard in weight_map.items():
            if name not in self._files or self._files[name].path.name != shard:
                raise FormatError(f"{folder / shard}: lacks tensor {shown(name)}, which the index places in it")

    def names(self) -> list[str]:
        """Tensor names of all shards."""
        return list(self._files)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(type code, shape)."""
        return self._file(name).info(name)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Values, mapped."""
        return self._file(name).array(name)

    def release_pages(self) -> None:
        """Lets the system have the memory of what was read; see `SafetensorsFile`."""
        for file in set(self._files.values()):
            file.release_pages()

    def file_of(self, name: str) -> Path:
        """The shard that holds a tensor, for error sentences."""
        return self._files[name].path if name in self._files else self.path

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            raise MissingError(f"{self.path}: has no tensor {shown(name)}")
        return self._files[name]


def inside(folder: Path, name: str) -> Path:
    """The path of a plain file name in `folder`; refuses names and symlinks that lead out of it."""
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise FormatError(f"{folder}: names the file {shown(name)}: only plain names inside the folder are followed")
    path = folder / name
    try:
        target, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise FormatError(f"{path}: cannot be resolved ({error}): check its symlinks") from None
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise FormatError(f"{path}: is a symlink that leaves the model's folder: copy the file there if you trust it")
    return path


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> shard from the index, or {} where the folder has no index."""
    for base in _bases(folder):
        index = folder / f"{base}.index.json"
        if (folder / base).exists():
            return {}
        if not index.is_symlink() and not index.exists():
            continue
        weight_map = load_object(inside(folder, index.name)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FormatError(f"{index}: lacks weight_map, the names of its shards")
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise FormatError(f"{index}: weight_map must map tensor names to file names")
        if len(set(weight_map.values())) > MAX_SHARDS:
            raise FormatError(f"{index}: names more than {MAX_SHARDS} shards")
        return weight_map
    return {}


def _bases(folder: Path) -> list[str]:
    """Names that the weights, or their index without its `.index.json`, may have."""
    found = {path.name.removesuffix(".index.json") for path in folder.glob("gptq_model-*")}
    quantised = sorted(name for name in found if GPTQ.fullmatch(name))
    if len(quantised) > 1:
        raise FormatError(f"{folder}: holds {quantised[0]} and {quantised[1]}: keep one of them in a folder")
    return [SAFE, PICKLED, *quantised]


def _single(folder: Path) -> str:
    for name in _bases(folder):
        if (folder / name).exists() or (folder / name).is_symlink():
            return name
    raise MissingError(
        f"{folder}: has no {SAFE}, {PICKLED} or index of shards: download the weights, or name another folder"
    )


def _open(path: Path) -> TensorFile:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix == ".bin":
        return PickledFile(path)
    raise FormatError(f"{path}: weights are read from .safetensors or .bin files only")


class PickledFile:
    """A `.bin` of PyTorch, read with `weights_only`; anything but tensors in a zip archive is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_archive(path)
        try:
            import torch
        except ImportError:
            raise MissingError(
                f"{path}: reading .bin weights needs torch: pip install 'kiloq[train]', or get the safetensors files"
            ) from None
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a hostile pickle may raise anything; whatever it is, the file is not weights
            reason = str(error).partition("\n")[0][:160]
            raise FormatError(f"{path}: is refused by torch's restricted loader ({reason})") from None
        if not isinstance(loaded, dict):
            raise FormatError(f"{path}: holds a {type(loaded).__name__}: a table of tensors was expected")
        self._tensors: dict[str, torch.Tensor] = {}
        for name, tensor in loaded.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise FormatError(f"{path}: holds {shown(name)}, which is not a tensor with a name")
            self._check_tensor(name, tensor)
            self._tensors[name] = tensor

    def _check_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Strides may make a huge tensor out of few bytes: only what its storage really holds is taken."""
        if tensor.layout.__str__() != "torch.strided" or tensor.is_quantized or tensor.device.type != "cpu":
            raise FormatError(f"{self.path}: tensor {shown(name)} is not a plain dense tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise FormatError(f"{self.path}: tensor {shown(name)} claims more elements than its storage holds")

    def release_pages(self) -> None:
        """Nothing: a pickled file is read as a whole."""

    def names(self) -> list[str]:
        """Tensor names."""
        return list(self._tensors)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(type code as safetensors writes it, shape)."""
        tensor = self._tensors[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        codes = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
        return codes.get(kind, kind), tuple(tensor.shape)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Values; numpy has no bfloat16, so its bits travel as 16-bit numbers."""
        import torch

        tensor = self._tensors[name].detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return np.asarray(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.asarray(tensor.numpy())


def _check_archive(path: Path) -> None:
    """A .bin must be a zip archive without compression, so that it cannot grow beyond its own size."""
    import zipfile

    size = regular_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FormatError(f"{path}: is not a zip archive of torch.save ({error}): it is damaged or too old") from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or (
        sum(member.file_size for member in members) > size
    ):
        raise FormatError(f"{path}: is compressed or overlapping, which torch.save never writes: it is refused")
