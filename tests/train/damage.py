"""Random damage to a folder: what disks, copies and people do to files, one fault at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

PAGE = 4096
Files = Mapping[Path, bytes]
Change = dict[Path, bytes | None]  # None: the file is gone


def fault(files: Files, other: Files, order: random.Random) -> tuple[str, Change]:
    """A kind of fault and what it changes. `other`: the files of an older folder of the same kind."""
    while True:
        kind = order.choice(list(KINDS))
        path = order.choice(sorted(files))
        change = KINDS[kind](path, files, other, order)
        if any(files.get(name) != content for name, content in change.items()):
            return kind, change


def _flip(path: Path, files: Files, other: Files, order: random.Random) -> Change:
    data = bytearray(files[path])
    data[order.randrange(len(data))] ^= 1 << order.randrange(8)
    return {path: bytes(data)}


def _zero_page(path: Path, files: Files, other: Files, order: random.Random) -> Change:
    data = files[path]
    begin = PAGE * order.randrange(-(-len(data) // PAGE))
    return {path: data[:begin] + bytes(min(PAGE, len(data) - begin)) + data[begin + PAGE :]}


def _truncate(path: Path, files: Files, other: Files, order: random.Random) -> Change:
    return {path: files[path][: order.randrange(len(files[path]))]}


def _grow(path: Path, files: Files, other: Files, order: random.Random) -> Change:
    return {path: files[path] + order.randbytes(order.randrange(1, PAGE))}


def _swap(path: Path, files: Files, other: Files, order: random.Random) -> Change:
    second = order.choice(sorted(files))
    return {path: files[second], second: files[path]}


def _delete(path: Path, files: Files, other: Files, order: random.Random) -> Change:
    return {path: None}


def _stale(path: Path, files: Files, other: Files, order: random.Random) -> Change:
    """One file of the older folder, the manifest among them, in the place of its successor."""
    found = next((content for name, content in other.items() if name.name == path.name), files[path])
    return {path: found}


KINDS: dict[str, Callable[[Path, Files, Files, random.Random], Change]] = {
    "flip": _flip, "zero page": _zero_page, "truncate": _truncate, "grow": _grow, "swap": _swap, "delete": _delete,
    "stale": _stale,
}  # fmt: skip


def contents(folder: Path) -> dict[Path, bytes]:
    """All files of a folder."""
    return {path: path.read_bytes() for path in folder.iterdir()}


def put(change: Mapping[Path, bytes | None]) -> None:
    """Write or delete files."""
    for path, content in change.items():
        path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
