"""kiloq: the Qwen system of 2023, whole and open.

    import kiloq
    model = kiloq.load("smollm2")                                    # a name from `kiloq get`, a folder or a .gguf
    model.generate("1 + 1 =", max_new_tokens=16, temperature=0)      # -> Completion
    tokenizer = kiloq.Tokenizer.load("qwen")

Public names are imported when they are first used, so that `import kiloq` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiloq.core.errors import ContextError, FormatError, KiloqError, MissingError, UsageError
    from kiloq.generate.load import load
    from kiloq.generate.model import Model, Stream
    from kiloq.generate.params import SamplingParams
    from kiloq.generate.records import Completion
    from kiloq.model.config import ModelConfig
    from kiloq.tokenize.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "ContextError",
    "FormatError",
    "KiloqError",
    "MissingError",
    "Model",
    "ModelConfig",
    "SamplingParams",
    "Stream",
    "Tokenizer",
    "UsageError",
    "load",
]

_HOMES = {
    "Completion": "kiloq.generate.records",
    "ContextError": "kiloq.core.errors",
    "FormatError": "kiloq.core.errors",
    "KiloqError": "kiloq.core.errors",
    "MissingError": "kiloq.core.errors",
    "Model": "kiloq.generate.model",
    "ModelConfig": "kiloq.model.config",
    "SamplingParams": "kiloq.generate.params",
    "Stream": "kiloq.generate.model",
    "Tokenizer": "kiloq.tokenize.tokenizer",
    "UsageError": "kiloq.core.errors",
    "load": "kiloq.generate.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kiloq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
