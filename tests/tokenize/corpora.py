"""Inputs of `kiloq tokenize corpus`, runs of it, and corpora read without kiloq: what its tests share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kiloq.core.manifest import write_manifest
from kiloq.tokenize.command import command
from kiloq.tokenize.tokenizer import Tokenizer

SENTENCES = (
    "The cat sat on the mat; the cats' 12 mats aren't   there.\n\n\tif x == 10:\n        return xx\n",
    "一只猫坐在垫子上，两只猫也坐在垫子上。\r\nเสรีภาพ e\u0301té été \U0001f431\U0001f431 aaaaaaa\n",
)
DOCUMENTS = (
    *SENTENCES,
    "",
    "<|endoftext|> is text, and so are <|im_start|>system\n<|im_end|> and <|extra_7|>",
    "cafe\u0301 \u1100\u1161\u11a8 q\u0323\u0307 \u212b \ufb01 \ud800 lone",  # as JSON, the surrogate is an escape
    "a" * 100_000,
    " " * 100_000 + "x",
    "中" * 5_000 + "\u0301" * 5_000 + "!" * 10_000 + "\r\n" * 5_000,
    " ",
    "\n",
    "",
)
PLAIN = {"story.en.txt": SENTENCES[0] * 3, "empty.txt": "", "control.md": "<|endoftext|>\n<|im_end|>\n"}
ROWS = [{"text": text, "language": ("en", "zh")[number % 2]} for number, text in enumerate(DOCUMENTS)]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, ["corpus", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_plain(folder: Path) -> Path:
    folder.mkdir()
    for name, text in PLAIN.items():
        (folder / name).write_bytes(text.encode())
    return folder


def write_prepared(folder: Path) -> Path:
    """A folder such as `kiloq prepare` writes: documents in Parquet files, and others that are none."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "documents").mkdir(parents=True)
    for number, source in enumerate(("books", "web")):
        rows = [text for text in DOCUMENTS if "\ud800" not in text][number::2]
        table = pa.table({"text": rows, "source": [source] * len(rows), "language": ["en"] * len(rows)})
        pq.write_table(table, folder / "documents" / f"{number:05}.parquet")
    (folder / "report.md").write_text("no document\n")
    write_manifest(folder, "documents")
    return folder


def many_files(folder: Path, count: int = 9) -> Path:
    """JSON lines whose sources come in another order in every file."""
    folder.mkdir()
    for number in range(count):
        rows = [{"text": f"{SENTENCES[at % 2]} {number} {at}", "site": f"s{(number + at) % 4}"} for at in range(5)]
        write_rows(folder / f"{number}.jsonl", rows)
    return folder


def wanted(tokenizer: Tokenizer, documents: Sequence[str]) -> list[list[int]]:
    return [[*tokenizer.encode(text), tokenizer.id_of("<|endoftext|>")] for text in documents]


def got(out: Path) -> list[list[int]]:
    """All documents, read without kiloq."""
    found = []
    for row in json.loads((out / "index.json").read_bytes())["shards"]:
        ids = np.fromfile(out / f"{row['name']}.tokens", "<u4")
        offsets = np.fromfile(out / f"{row['name']}.offsets", "<i8").tolist()
        assert offsets[0] == 0 and offsets[-1] == len(ids) == row["tokens"] and len(offsets) == row["documents"] + 1
        found += [ids[begin:end].tolist() for begin, end in pairwise(offsets)]
    return found


def sources_of(out: Path) -> list[str]:
    index = json.loads((out / "index.json").read_bytes())
    numbers = [n for row in index["shards"] for n in np.fromfile(out / f"{row['name']}.sources", "<u2").tolist()]
    return [index["sources"][number] for number in numbers]


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a corpus, hidden ones too; manifest.json has times."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}
