"""`kiloq show`: what any file or folder of ours, or of others, is - as a JSON-ready record and as lines for a person.

Nothing of a file reaches the terminal raw: control characters are escaped, long texts are cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kiloq.convert.card import licence_of
from kiloq.convert.source import TOKENIZER_FILES, ModelSource, open_model
from kiloq.core.errors import FormatError, KiloqError, MissingError
from kiloq.core.files import regular_size, shown
from kiloq.core.gguf import GGUFFile
from kiloq.core.manifest import NAME as MANIFEST
from kiloq.core.manifest import read_manifest
from kiloq.core.safetensors import SafetensorsFile
from kiloq.model.config import ModelConfig

TEXT_LIMIT = 600  # characters of a template or other text that a person is shown
LIST_LIMIT = 12


def describe(path: Path) -> dict[str, Any]:
    """What `path` is, as plain JSON values; the key "what" names the kind. Raises MissingError or FormatError."""
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise MissingError(f"{path}: there is no such file or folder: check the path")
    if path.name == MANIFEST:
        return _manifest(path.parent)
    kinds = {".gguf": _gguf, ".safetensors": _safetensors, ".tiktoken": _tokenizer, ".json": _tokenizer}
    if path.suffix not in kinds:
        raise FormatError(f"{path}: is not a file that kiloq can show: known are {', '.join(kinds)} and folders")
    return kinds[path.suffix](path)


def _folder(path: Path) -> dict[str, Any]:
    if (path / "config.json").exists():
        return _model(open_model(path))
    if any((path / name).exists() for name in TOKENIZER_FILES):
        return _tokenizer(path)
    if (path / MANIFEST).exists():
        return _manifest(path)
    raise FormatError(f"{path}: holds no model, tokenizer or manifest that kiloq knows")


def _model(source: ModelSource) -> dict[str, Any]:
    c = source.config
    architectures = source.metadata.get("architectures")
    record: dict[str, Any] = {
        "what": "model",
        "path": str(source.path),
        "format": {"qwen1": "Qwen-1 folder", "hf": "Hugging Face folder", "gguf": "GGUF file"}[source.kind],
        "architecture": (architectures or [source.metadata.get("general.architecture")])[0],
        "parameters": source.parameters(),
        "size_bytes": _size(source.path),
        "stored_types": source.stored_types(),
        "train_length": c.train_length,
        "max_length": c.max_length,
        "extensions": [name for name, on in _extensions(c).items() if on],
        "licence": licence_of(source),
        "config": asdict(c),
        "generation": asdict(source.generation),
        "tokenizer": _tokenizer_of(source),
        "warnings": source.warnings,
    }
    if source.path.is_dir() and (source.path / MANIFEST).exists():
        record["manifest"] = {key: value for key, value in _manifest(source.path).items() if key != "files"}
    return record


def _extensions(config: ModelConfig) -> dict[str, bool]:
    """What the model does beyond plain attention over rotary positions, and whether it does it."""
    c = config
    kind = c.rope_scaling.kind if c.rope_scaling else ""
    return {
        "dynamic NTK": c.dynamic_ntk,
        "LogN": c.logn,
        "windows": any(c.windows),
        f"{kind} rope scaling": c.rope_scaling is not None,
    }


def _tokenizer_of(source: ModelSource) -> dict[str, Any] | None:
    """The model's tokenizer; one that cannot be read is a problem to show, not a reason to show nothing."""
    if source.tokenizer_path is None:
        return None
    try:
        return _tokenizer(source.tokenizer_path)
    except KiloqError as error:
        return {"what": "tokenizer", "path": str(source.tokenizer_path), "problem": str(error)}


def _tokenizer(path: Path) -> dict[str, Any]:
    from kiloq.tokenize.tokenizer import Tokenizer

    source = path.parent if path.name in ("tokenizer.json", "tokenizer_config.json", "vocab.json") else path
    tokenizer = Tokenizer.load(source)
    vocabulary = tokenizer.export_vocabulary()
    return {
        "what": "tokenizer",
        "path": str(path),
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": len(tokenizer.special_tokens),
        "first_special_tokens": dict(list(tokenizer.special_tokens.items())[:LIST_LIMIT]),
        "split_pattern": vocabulary.pre,
        "normalised_to_nfc": vocabulary.nfc,
        "end_ids": list(tokenizer.eos_ids),
        "pad_id": tokenizer.pad_id,
        "bos_id": tokenizer.bos_id,
        "chat_template": vocabulary.chat_template,
    }


def _gguf(path: Path) -> dict[str, Any]:
    """A model; or, where the architecture is not one of ours, what the file says about itself."""
    file = GGUFFile(path)
    try:
        return _model(open_model(path))
    except FormatError as error:
        types: dict[str, int] = {}
        for name in file.names():
            kind = file.info(name)[0]
            types[kind] = types.get(kind, 0) + 1
        short = {key: value for key, value in file.metadata.items() if not isinstance(value, list)}
        return {
            "what": "gguf",
            "path": str(path),
            "size_bytes": _size(path),
            "tensors": len(file.names()),
            "stored_types": types,
            "problem": str(error),
            "metadata": short,
        }


def _safetensors(path: Path) -> dict[str, Any]:
    file = SafetensorsFile(path)
    tensors = {name: {"dtype": file.info(name)[0], "shape": list(file.info(name)[1])} for name in file.names()}
    return {
        "what": "safetensors",
        "path": str(path),
        "size_bytes": _size(path),
        "metadata": file.metadata,
        "tensors": tensors,
    }


def _manifest(folder: Path) -> dict[str, Any]:
    return {"what": "manifest", "path": str(folder / MANIFEST), **read_manifest(folder)}


def _size(path: Path) -> int:
    """Bytes of a file, or of the weights in a folder."""
    if path.is_file():
        return regular_size(path)
    return sum(
        file.stat().st_size for file in path.iterdir() if file.suffix in (".safetensors", ".bin") and file.is_file()
    )


def render(record: Mapping[str, Any], indent: str = "") -> str:
    """Lines for a person; nested objects are indented."""
    lines = []
    for key, value in record.items():
        label = f"{indent}{printable(key.replace('_', ' ')) if indent == '' else printable(key)}"
        if isinstance(value, Mapping) and value:
            lines += [f"{label}:", render(dict(list(value.items())[: 4 * LIST_LIMIT]), indent + "  ")]
            if len(value) > 4 * LIST_LIMIT:
                lines.append(f"{indent}  ... and {len(value) - 4 * LIST_LIMIT} more (--json shows all)")
        elif value is not None and value not in ([], (), {}):
            lines.append(f"{label}: {_readable(key, value)}")
    return "\n".join(lines)


def _readable(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (key.endswith("bytes") or key == "size"):
        return f"{value:,} bytes ({value / 1e6:,.1f} MB)"
    if isinstance(value, int) and key in ("parameters", "tensors"):  # a token id or a width is no amount
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        cut = [printable(str(item)) for item in value[:LIST_LIMIT]]
        return ", ".join(cut) + (f", ... ({len(value)} in all)" if len(value) > LIST_LIMIT else "")
    return printable(str(value))


def printable(text: str) -> str:
    """`text` for a terminal: control characters escaped, cut at TEXT_LIMIT."""
    return shown(text, TEXT_LIMIT)[1:-1]
