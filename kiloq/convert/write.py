"""Standard door out: a complete Hugging Face folder in the Qwen2, Qwen-1 or native layout, one tensor in memory at a time.

Native is the class that computes the model as it is (LLaMA, Qwen2 or Qwen3 of transformers). Qwen2 is the same with
QKV biases, zeros where the model had none, because every engine loads it. Qwen-1 repeats grouped heads and writes a
tied head out, exactly. What a layout cannot say is returned as notes and written into the model card.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kiloq.convert import generation, hf, qwen1
from kiloq.convert.card import model_card
from kiloq.convert.generation import GenerationDefaults
from kiloq.convert.reshape import Reshaped
from kiloq.convert.source import ModelSource
from kiloq.core.dtypes import SAFETENSORS_DTYPES, WEIGHT_DTYPES
from kiloq.core.errors import UsageError
from kiloq.core.manifest import NAME as MANIFEST
from kiloq.core.manifest import atomic_folder, sha256_file, write_manifest
from kiloq.core.safe_json import write_json
from kiloq.core.safetensors import TensorSpec, write_safetensors
from kiloq.model.config import ModelConfig

if TYPE_CHECKING:
    from kiloq.tokenize.tokenizer import Tokenizer

LAYOUTS = ("qwen2", "qwen1", "native")
SHARD_BYTES = 5_000_000_000  # what Hugging Face writes; some file systems and mirrors stop at 5 GB
INDENT = 2  # spaces in JSON files, as in Hugging Face's
IM_END, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
Progress = Callable[[str, int, int], None]  # (what, tensors done, tensors in all)


@dataclass(frozen=True)
class Written:
    """What an export made."""

    path: Path
    notes: list[str]  # what other programs will not compute, one sentence each
    parameters: int
    size_bytes: int


def write_folder(
    source: ModelSource,
    out: Path | str,
    layout: str = "qwen2",
    dtype: str | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Written:
    """Write `source` to the folder `out`, complete or not at all. dtype None keeps the stored types."""
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is unknown: choose one of {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in WEIGHT_DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown: choose one of {', '.join(WEIGHT_DTYPES)}")
    started, out = time.monotonic(), Path(out)
    config = qwen1.expressible(source.config) if layout == "qwen1" else hf.expressible(source.config, layout)
    notes = [] if layout == "qwen1" else hf.unexpressed(config)
    tensors = Reshaped(source, config, dtype)
    inputs = source_hashes(source)
    with atomic_folder(out) as staging:
        size = write_weights(staging, list(_specs(tensors, layout)), shard_bytes, progress)
        tokenizer = load_tokenizer(source)
        if tokenizer is None:
            notes.append("the source has no tokenizer, so this folder has none: prompts are token ids")
        else:
            tokenizer.save(staging, max_length=config.max_length)
        write_configs(staging, source, tokenizer, config, layout, dtype or source.dtype)
        parameters = sum(math.prod(tensors.shape(name)) for name in tensors.names())
        card = model_card(out.name, source, config, parameters, layout, dtype or source.dtype, inputs, notes)
        (staging / "README.md").write_text(card, encoding="utf-8")
        write_manifest(
            staging,
            "model",
            inputs=inputs,
            config={"layout": layout, "dtype": dtype or source.dtype, "source_kind": source.kind},
            counts={"parameters": parameters, "tensors": len(tensors.names())},
            seconds=time.monotonic() - started,
            notes=notes,
        )
    return Written(out, notes, parameters, size)


def source_hashes(source: ModelSource) -> dict[str, Path | str]:
    """sha256 of the files that a model was read from: the GGUF, or a folder's configuration and weights."""
    if source.path.is_file():
        return {source.path.name: sha256_file(source.path)}
    if (source.path / MANIFEST).exists():
        return {MANIFEST: sha256_file(source.path / MANIFEST)}
    files = sorted(p for p in source.path.iterdir() if p.name == "config.json" or p.suffix in (".safetensors", ".bin"))
    return {path.name: sha256_file(path) for path in files}


def _specs(tensors: Reshaped, layout: str) -> Iterable[TensorSpec]:
    """What to write, in forward order, under the layout's names; Qwen-1 fuses query, key and value."""
    for name in tensors.names():
        code, shape = WEIGHT_DTYPES[tensors.dtype_of(name)][0], tensors.shape(name)
        if layout != "qwen1":
            yield TensorSpec(hf.stored_name(name), code, shape, partial(tensors.tensor, name))
        elif ".q_proj." in name:
            thirds = [name.replace("q_proj", which) for which in qwen1.FUSED]
            fused = (3 * shape[0], *shape[1:])
            yield TensorSpec(qwen1.stored_name(name), code, fused, partial(_joined, tensors, thirds))
        elif ".k_proj." not in name and ".v_proj." not in name:
            yield TensorSpec(qwen1.stored_name(name), code, shape, partial(tensors.tensor, name))


def _joined(tensors: Reshaped, names: list[str]) -> npt.NDArray[Any]:
    return np.concatenate([tensors.tensor(name) for name in names])


def write_weights(folder: Path, specs: list[TensorSpec], shard_bytes: int, progress: Progress | None) -> int:
    """One file, or shards of at most `shard_bytes` with an index; returns the bytes of all tensors."""
    shards: list[list[TensorSpec]] = [[]]
    filled = total = 0
    for spec in specs:
        size = math.prod(spec.shape) * SAFETENSORS_DTYPES[spec.dtype].itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled, total = filled + size, total + size
    done, weight_map = 0, dict[str, str]()
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        watched = [_watched(spec, progress, done + i, len(specs)) for i, spec in enumerate(shard)]
        write_safetensors(folder / name, watched, {"format": "pt"})
        done += len(shard)
        weight_map |= {spec.name: name for spec in shard}
    if len(shards) > 1:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
            INDENT,
        )
    return total


def _watched(spec: TensorSpec, progress: Progress | None, done: int, total: int) -> TensorSpec:
    """The spec, saying to `progress` when its turn comes."""
    if progress is None:
        return spec

    def make() -> npt.NDArray[Any]:
        progress(spec.name, done, total)
        return spec.make()

    return TensorSpec(spec.name, spec.dtype, spec.shape, make)


def load_tokenizer(source: ModelSource) -> Tokenizer | None:
    """The source's tokenizer, if it has one (imported here: opening and checking a model needs none)."""
    if source.tokenizer_path is None:
        return None
    from kiloq.tokenize.tokenizer import Tokenizer

    return Tokenizer.load(source.tokenizer_path)


def write_configs(
    folder: Path,
    source: ModelSource,
    tokenizer: Tokenizer | None,
    config: ModelConfig,
    layout: str,
    dtype: str,
    more: Mapping[str, Any] | None = None,
) -> None:
    """config.json, with the keys of `more` in it, and generation_config.json."""
    values = qwen1.write_config(config, dtype) if layout == "qwen1" else hf.write_config(config, dtype)
    defaults = source.generation
    eos = end_ids(defaults, tokenizer)
    if layout == "qwen1":  # its code takes one id, <|endoftext|>, and stops on <|im_end|> by itself
        eos = eos[-1:] if tokenizer is None else (tokenizer.special_tokens.get(END_OF_TEXT, eos[-1]),) if eos else ()
    if eos:
        values["eos_token_id"] = eos[0] if len(eos) == 1 else list(eos)
    for key, value in (("bos_token_id", defaults.bos_id), ("pad_token_id", defaults.pad_id)):
        if value is not None:
            values[key] = value
    write_json(folder / "config.json", values | dict(more or {}), INDENT)
    write_json(folder / generation.NAME, generation.write_config(defaults, eos), INDENT)


def end_ids(defaults: GenerationDefaults, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Ids that end an answer. Qwen-1's chat models name only <|endoftext|> and stop on <|im_end|> by code of their own."""
    if defaults.chat_format != "chatml" or tokenizer is None:
        return defaults.eos_ids
    special = tokenizer.special_tokens
    chat = (special[name] for name in (IM_END, END_OF_TEXT) if name in special)
    return tuple(dict.fromkeys((*chat, *defaults.eos_ids)))
