"""What the tests of whole runs share: a corpus that takes a few parts, runs in processes of their own, and their bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .samples import CHINESE, ENGLISH

STEPS = '[[step]]\nkind = "gopher"\nleast_words = 20\n[[step]]\nkind = "exact"\n[[step]]\nkind = "fuzzy"\nbands = 4\n'


def varied(number: int) -> str:
    """English prose of which no line is another's."""
    return "\n".join(
        f"{line[:-1]}, as chapter {number} of volume {number * 7919 % 1009} tells us." for line in ENGLISH.split("\n")
    )


def write_corpus(folder: Path, files: int, documents: int, steps: str = STEPS) -> Path:
    """Files of JSON lines, about 0.7 kB a document, with copies, bad lines and short texts; returns the recipe."""
    (folder / "raw").mkdir(parents=True)
    for file in range(files):
        texts = [varied(file * documents // 2 + at) for at in range(documents)]  # half of it is in the next file too
        rows = [json.dumps({"text": text}) for text in (*texts, CHINESE, f"{file} is short")]
        (folder / "raw" / f"{file}.jsonl").write_text("\n".join((*rows, "{broken")) + "\n", encoding="utf-8")
    recipe = folder / "r.toml"
    recipe.write_text(f'name = "runs"\npiece_mb = 1\n[[source]]\nname = "raw"\npath = "raw"\n{steps}')
    return recipe


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    """The command line of a run on two workers."""
    return [sys.executable, "-m", "kiloq", "prepare", str(recipe), "--out", str(out), "--workers", "2", *more]


def done(recipe: Path, out: Path, *more: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A run that has ended, in a process of its own, for Daft leaves pipes open in the one that it is in."""
    return subprocess.run(
        command(recipe, out, *more),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        errors="replace",
        **options,
    )


@contextmanager
def started(recipe: Path, out: Path, *more: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A run in a group of processes of its own, all of which are gone when the block ends."""
    process = subprocess.Popen(
        command(recipe, out, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None or members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(what: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it came true within so many seconds."""
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.005)
    return what()


def members(group: int) -> dict[int, str]:
    """The living processes of a group and their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _parent, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it has ended
            continue
        if int(its_group) == group and state not in "ZX":
            found[int(folder.name)] = line
    return found


def workers(group: int) -> list[int]:
    """Daft's processes in a group."""
    return [process for process, line in members(group).items() if "udf_worker" in line]


def marks(out: Path, name: str) -> list[Path]:
    """The marks of finished tasks of a kind, such as stage-0-part."""
    return list((out.with_name(f".{out.name}.preparing") / "done" / name).glob("*.json"))


def contents(out: Path) -> dict[str, str]:
    """Every file but the manifest, which has a clock, by its hash."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of all tables in a folder."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in read_rows(path)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        found: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return found
