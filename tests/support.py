"""Paths and readers that many tests share: the reference outputs and data that lie beside the repository."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
