"""Any door in: `open_model` reads a Qwen-1 or Hugging Face folder, GPTQ or not, or a GGUF into one interface.

Everything is checked before a tensor is touched: the configuration, then names, shapes and types of all tensors
against what that configuration needs. Values are read one tensor at a time, mapped where the file stores them as
they are, so opening costs no memory. Code that a folder offers (`auto_map`) is never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.convert import generation, gguf_names, gptq, hf, qwen1, rope
from kiloq.convert.fields import Fields
from kiloq.convert.folder import FolderTensors, inside
from kiloq.convert.generation import GenerationDefaults
from kiloq.convert.gptq import GPTQTensors
from kiloq.convert.integers import LAYOUTS, Integers, from_blocks
from kiloq.convert.layout import IGNORED, Entry
from kiloq.core.dtypes import WEIGHT_NAMES
from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.files import shown
from kiloq.core.gguf import GGUFFile
from kiloq.core.safe_json import load_object
from kiloq.model.config import ModelConfig

MAX_CONFIG_BYTES = 4 << 20
FINITE_ELEMENTS = 1 << 22  # checked at a time
# A folder with one of these has a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "qwen.tiktoken", "vocab.json")


AnyTensors = FolderTensors | GPTQTensors | GGUFFile


@dataclass
class ModelSource:
    """An opened model: its shape, its tensors under canonical names, and what its files say about using it."""

    path: Path
    kind: str  # "qwen1", "hf" or "gguf"
    config: ModelConfig
    dtype: str  # main type of the values that `tensor` gives: "fp32", "bf16" or "fp16"
    quantised: bool  # True: stored in blocks of fewer bits, and decoded to float32 when read
    generation: GenerationDefaults
    tokenizer_path: Path | None  # what Tokenizer.load takes; None: the model comes without
    warnings: list[str]
    metadata: Mapping[str, Any]  # config.json or GGUF metadata as it is
    _tensors: AnyTensors = field(repr=False)
    _entries: dict[str, Entry] = field(repr=False)

    def names(self) -> list[str]:
        """Canonical tensor names in forward order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; weights are [out, in]."""
        return self._entry(name).shape

    def dtype_of(self, name: str) -> str:
        """Type of the array that `tensor` gives: "fp32", "bf16" or "fp16"."""
        return WEIGHT_NAMES.get(self._tensors.info(self._entry(name).stored)[0], "fp32")

    def stored_in_floats(self, name: str) -> bool:
        """Whether a tensor's values are in the file as they are, and not as codes that have to be decoded."""
        return self._tensors.info(self._entry(name).stored)[0] in WEIGHT_NAMES

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Values in the stored type, a view of the file; float32 and decoded where it is quantised."""
        entry = self._entry(name)
        if isinstance(self._tensors, GPTQTensors) and (found := self.integers(name)):
            return found.decode()  # of a fused matrix only the rows that are asked for
        return entry.read(self._tensors.array(entry.stored))

    def rows(self, name: str, begin: int, end: int) -> npt.NDArray[Any]:
        """Rows [begin, end) of a matrix as `tensor` gives them; no others are decoded."""
        entry = self._entry(name)
        if isinstance(self._tensors, GGUFFile):
            return self._tensors.rows(entry.stored, entry.stored_rows(begin, end))
        found = self.integers(name, (begin, end))
        return found.decode() if found is not None else self.tensor(name)[begin:end]

    def integers(self, name: str, rows: tuple[int, int] | None = None) -> Integers | None:
        """The stored integers of a quantised matrix, or of its rows [begin, end), not decoded; None: not stored so.

        GPTQ's 4 and 8 bits and GGUF's Q4_0, Q4_1 and Q8_0 are given. Raises FormatError for damaged integers.
        """
        entry = self._entry(name)
        begin, end = rows or (0, entry.shape[0])
        if not 0 <= begin <= end <= entry.shape[0]:
            raise UsageError(f"rows {begin} to {end} of {name}, which has {entry.shape[0]}: they are not all there")
        if isinstance(self._tensors, GPTQTensors):
            return self._tensors.integers(entry.stored, entry.stored_rows(begin, end))
        kind = self.block_type(name)
        return from_blocks(self.blocks(name, begin, end), kind) if kind is not None else None

    def block_type(self, name: str) -> str | None:
        """ggml's type of a matrix in blocks of integers, "Q4_0", "Q4_1" or "Q8_0"; None: not stored so."""
        entry = self._entry(name)
        if len(entry.shape) != 2 or not isinstance(self._tensors, GGUFFile):
            return None
        kind = self._tensors.info(entry.stored)[0]
        return kind if kind in LAYOUTS else None

    def blocks(self, name: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Rows [begin, end) of a matrix that has a `block_type`, as they are in the file: [rows, bytes of a row]."""
        assert isinstance(self._tensors, GGUFFile)
        entry = self._entry(name)
        return self._tensors.raw(entry.stored)[entry.stored_rows(begin, end)]

    def release_pages(self) -> None:
        """Lets the system have the memory of what was read of the files; for who converts tensor by tensor."""
        self._tensors.release_pages()

    def stored_types(self) -> dict[str, int]:
        """How many tensors are stored in each type, e.g. {"Q4_1": 210, "F32": 61}."""
        counts: dict[str, int] = {}
        for stored in dict.fromkeys(entry.stored for entry in self._entries.values()):
            kind = self._tensors.info(stored)[0]
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        return sum(int(np.prod(entry.shape)) for entry in self._entries.values())

    def check_finite(self) -> list[str]:
        """Names of tensors with NaN or infinity, also noted in `warnings`; reads every weight once."""
        bad = [name for name in self._entries if not _all_finite(self.tensor(name))]
        self.warn_of_broken(bad)
        return bad

    def warn_of_broken(self, names: list[str]) -> None:
        """Notes in `warnings` that these tensors hold NaN or infinity; nothing where there are none."""
        if names:
            self.warnings.append(
                f"{self.path}: {len(names)} tensors hold NaN or infinity (first: {shown(names[0])}): "
                "the answers will be garbage, so get the file again"
            )

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise MissingError(f"{self.path}: has no tensor {shown(name)}")
        return self._entries[name]


def open_model(path: Path | str) -> ModelSource:
    """Open a model folder or GGUF file. Raises MissingError or FormatError with one sentence that names the file."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise MissingError(f"{path}: there is no such model folder or file: check the path")
    if path.suffix.lower() != ".gguf":
        raise FormatError(f"{path}: is neither a model folder nor a .gguf file")
    return _open_gguf(path)


def _open_folder(folder: Path) -> ModelSource:
    config_path = inside(folder, "config.json")
    if not config_path.exists():
        return _open_gguf_in(folder)
    fields = Fields(config_path, load_object(config_path, MAX_CONFIG_BYTES))
    architectures = fields.get("architectures", list, [])
    old = qwen1.ARCHITECTURE in architectures or (not architectures and fields.values.get("model_type") == "qwen")
    reader = qwen1 if old else hf
    stored = gptq.read_settings(folder, fields)
    try:
        config = reader.read_config(fields)
    except FormatError as error:
        raise _named(error, config_path) from None
    files, entries = FolderTensors(folder), reader.entries(config)
    wanted = {entry.stored for entry in entries.values()}
    tensors = files if stored is None else GPTQTensors(files, stored, wanted)
    _check(tensors, entries, spare={"lm_head.weight"} if config.tied_embeddings else set())
    warnings = []
    if "auto_map" in fields.values:
        warnings.append(f"{config_path}: names code of its own (auto_map), which kiloq never runs")
    return ModelSource(
        path=folder,
        kind="qwen1" if old else "hf",
        config=config,
        dtype="fp32" if stored else WEIGHT_NAMES[tensors.info(entries["embed_tokens.weight"].stored)[0]],
        quantised=stored is not None,
        generation=generation.read_folder(folder, fields),
        tokenizer_path=folder if _has_tokenizer_files(folder) else None,
        warnings=warnings,
        metadata=dict(fields.values),
        _tensors=tensors,
        _entries=entries,
    )


def _open_gguf_in(folder: Path) -> ModelSource:
    """A folder around one GGUF: what its tokenizer and generation files say comes before the GGUF's own."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise MissingError(f"{folder}: has no config.json, and {len(found)} .gguf files: it is not a model folder")
    source = _open_gguf(inside(folder, found[0].name))
    if (folder / generation.NAME).exists():
        source.generation = generation.read_folder(folder, Fields(folder / generation.NAME, {}))
    if _has_tokenizer_files(folder):
        source.tokenizer_path = folder
    return source


def _has_tokenizer_files(folder: Path) -> bool:
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def _open_gguf(path: Path) -> ModelSource:
    file = GGUFFile(path)
    try:
        config = gguf_names.read_config(file)
    except FormatError as error:
        raise _named(error, path) from None
    entries = gguf_names.entries(config, file.metadata["general.architecture"])
    _check(file, entries, spare={rope.FREQS})
    main = file.info("blk.0.ffn_down.weight")[0]
    return ModelSource(
        path=path,
        kind="gguf",
        config=config,
        dtype=WEIGHT_NAMES.get(main, "fp32"),
        quantised=main not in WEIGHT_NAMES,
        generation=generation.read_gguf(file),
        tokenizer_path=path if _has_tokenizer(file) else None,
        warnings=[],
        metadata=file.metadata,
        _tensors=file,
        _entries=entries,
    )


def _has_tokenizer(file: GGUFFile) -> bool:
    """Whether there is a vocabulary to read; llama.cpp writes "none" or "no_vocab" where a file comes without."""
    kind = file.metadata.get("tokenizer.ggml.model")
    return "tokenizer.ggml.tokens" in file.metadata and kind not in ("none", "no_vocab")


def _check(tensors: AnyTensors, entries: dict[str, Entry], spare: set[str]) -> None:
    """All tensors that the configuration needs are there in its shapes and in a type of weights, and no others."""
    needed = {entry.stored: entry.stored_shape for entry in entries.values()}
    present = dict.fromkeys(tensors.names())
    missing = [name for name in needed if name not in present]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(f"{tensors.path}: lacks tensor {shown(missing[0])}{more}, which its configuration needs")
    for name in present:
        if name not in needed:
            if name in spare or IGNORED.search(name):
                continue
            raise FormatError(f"{_file_of(tensors, name)}: holds tensor {shown(name)}, which its configuration lacks")
        kind, shape = tensors.info(name)
        if shape != needed[name]:
            raise FormatError(
                f"{_file_of(tensors, name)}: tensor {shown(name)} has shape {list(shape)}, and its configuration "
                f"needs {list(needed[name])}"
            )
        if not isinstance(tensors, GGUFFile) and kind not in (*WEIGHT_NAMES, *gptq.TYPES):
            raise FormatError(
                f"{_file_of(tensors, name)}: tensor {shown(name)} has type {shown(kind)}: weights are read as "
                f"{', '.join(WEIGHT_NAMES)}"
            )


def _file_of(tensors: AnyTensors, name: str) -> Path:
    return tensors.path if isinstance(tensors, GGUFFile) else tensors.file_of(name)


def _named(error: FormatError, path: Path) -> FormatError:
    """The error with the file in front, for sentences of ModelConfig, which does not know it."""
    text = str(error)
    return error if text.startswith(str(path)) else FormatError(f"{path}: {text}")


def _all_finite(array: npt.NDArray[Any]) -> bool:
    flat = array.reshape(-1)
    pieces = range(0, flat.size, FINITE_ELEMENTS)
    return all(bool(np.isfinite(flat[start : start + FINITE_ELEMENTS]).all()) for start in pieces)
