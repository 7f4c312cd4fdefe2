"""How a model wants to be sampled and stopped: generation_config.json of a folder, or a GGUF's metadata.

Only what a file says is filled in; None means that it says nothing. Source of the keys: transformers'
GenerationConfig and Qwen-1's additions (chat_format, max_window_size, stop_words_ids).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kiloq.convert.fields import Fields
from kiloq.convert.folder import inside
from kiloq.core.errors import FormatError
from kiloq.core.files import shown
from kiloq.core.gguf import GGUFFile
from kiloq.core.safe_json import load_object

NAME = "generation_config.json"
# Our field -> llama.cpp's key for the sampling that a model file recommends (gguf package, Keys.General.SAMPLING_*).
GGUF_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
MAX_IDS = 1000


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling and stopping defaults that come with a model."""

    eos_ids: tuple[int, ...] = ()  # any of these ends an answer
    bos_id: int | None = None
    pad_id: int | None = None
    chat_format: str | None = None  # "chatml", "raw" or None (unknown)
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    max_window_size: int | None = None  # Qwen-1: tokens of history that are kept
    stop_ids: tuple[tuple[int, ...], ...] = ()  # Qwen-1: sequences that end an answer


def read_folder(folder: Path, config: Fields) -> GenerationDefaults:
    """From generation_config.json, with eos, bos and pad falling back to config.json."""
    path = inside(folder, NAME)
    fields = Fields(path, load_object(path)) if path.exists() else Fields(path, {})
    ids = {key: _first(fields, config, key) for key in ("eos_token_id", "bos_token_id", "pad_token_id")}
    bos, pad = ids["bos_token_id"], ids["pad_token_id"]
    sequences = fields.get("stop_words_ids", list, [])
    return GenerationDefaults(
        eos_ids=_ids(path, "eos_token_id", ids["eos_token_id"]),
        bos_id=next(iter(_ids(path, "bos_token_id", bos)), None),
        pad_id=next(iter(_ids(path, "pad_token_id", pad)), None),
        chat_format=fields.text("chat_format", None),
        do_sample=fields.bool("do_sample", None),
        temperature=fields.float("temperature", None),
        top_p=fields.float("top_p", None),
        top_k=fields.int("top_k", None),
        repetition_penalty=fields.float("repetition_penalty", None),
        max_new_tokens=fields.int("max_new_tokens", None),
        max_window_size=fields.int("max_window_size", None),
        stop_ids=tuple(_ids(path, "stop_words_ids", sequence) for sequence in sequences[:MAX_IDS]),
    )


def read_gguf(file: GGUFFile) -> GenerationDefaults:
    """From tokenizer.ggml.* and general.sampling.*; a template with ChatML's markers means chat_format "chatml"."""
    fields = Fields(file.path, file.metadata)
    ends = (fields.int(f"tokenizer.ggml.{key}_token_id", None) for key in ("eos", "eot"))
    template = fields.text("tokenizer.chat_template", "")
    return GenerationDefaults(
        eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        bos_id=fields.int("tokenizer.ggml.bos_token_id", None),
        pad_id=fields.int("tokenizer.ggml.padding_token_id", None),
        chat_format="chatml" if "<|im_start|>" in template else None,
        temperature=fields.float(GGUF_SAMPLING["temperature"], None),
        top_p=fields.float(GGUF_SAMPLING["top_p"], None),
        top_k=fields.int(GGUF_SAMPLING["top_k"], None),
        repetition_penalty=fields.float(GGUF_SAMPLING["repetition_penalty"], None),
    )


def gguf_sampling(defaults: GenerationDefaults) -> dict[str, Any]:
    """The metadata that llama.cpp and `read_gguf` take sampling defaults from; greedy is temperature 0 there."""
    d = defaults if defaults.do_sample is not False else replace(defaults, temperature=0.0)
    values = {key: getattr(d, field) for field, key in GGUF_SAMPLING.items()}
    return {key: value for key, value in values.items() if value is not None}


def write_config(defaults: GenerationDefaults, eos_ids: tuple[int, ...]) -> dict[str, Any]:
    """generation_config.json with everything that is known; `eos_ids` are the ids that end an answer elsewhere too."""
    d = defaults
    values: dict[str, Any] = {
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
        "bos_token_id": d.bos_id,
        "pad_token_id": d.pad_id,
        "do_sample": d.do_sample,
        "temperature": d.temperature,
        "top_p": d.top_p,
        "top_k": d.top_k,
        "repetition_penalty": d.repetition_penalty,
        "max_new_tokens": d.max_new_tokens,
        "chat_format": d.chat_format,
        "max_window_size": d.max_window_size,
        "stop_words_ids": [list(sequence) for sequence in d.stop_ids] or None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _first(fields: Fields, config: Fields, key: str) -> Any:
    value = fields.values.get(key)
    return config.values.get(key) if value is None else value


def _ids(path: Path, key: str, value: Any) -> tuple[int, ...]:
    """One id, a list of ids, or nothing."""
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if len(listed) > MAX_IDS or any(type(item) is not int or not 0 <= item < 1 << 31 for item in listed):
        raise FormatError(f"{path}: {key} is {shown(value)}: token ids were expected")
    return tuple(listed)
