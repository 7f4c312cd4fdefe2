"""Corpora of made-up ids, as `kiloq tokenize corpus` writes them: for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kiloq.core.manifest import write_manifest
from kiloq.tokenize.corpus.shards import DTYPES, OFFSETS, SOURCES, TOKENS, write_index

Documents = Sequence[tuple[int, Sequence[int]]]  # (place of the source, ids with the end token)


def write_shards(folder: Path, shards: Sequence[Documents], names: Sequence[str], vocab_size: int, end_id: int) -> Path:
    """The folder of a corpus."""
    folder.mkdir()
    rows = []
    for number, documents in enumerate(shards):
        values: dict[str, Any] = {
            TOKENS: np.concatenate([ids for _, ids in documents]),
            OFFSETS: np.cumsum([0, *(len(ids) for _, ids in documents)]),
            SOURCES: [source for source, _ in documents],
        }
        for kind, array in values.items():
            np.array(array).astype(DTYPES[kind]).tofile(folder / f"{number:05}{kind}")
        rows.append({"name": f"{number:05}", "documents": len(documents), "tokens": len(values[TOKENS])})
    index = {"vocab_size": vocab_size, "end_id": end_id, "tokenizer_sha256": "0", "sources": list(names)}
    write_index(folder, {**index, "shards": rows})
    write_manifest(folder, "corpus")
    return folder
