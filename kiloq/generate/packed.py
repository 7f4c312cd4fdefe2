"""Packed weights kept in a file: written at the first load, mapped at the next ones, shared by all that map it.

The file has a page of header (what it is and whose) and then the engine's weights as they lie in memory. It belongs to
one state of the model's files, one choice of precisions and one layout of the engine, and is written anew for any
other. It appears by the rename of a file that was synced, so its length says that it is whole. Mapped pages are small
ones: where huge pages matter, decoding from such a file is slower than from packed memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiloq.convert.source import ModelSource
from kiloq.core.errors import UsageError
from kiloq.core.files import atomic_file, check_target, regular_size, shown

MAGIC = b"kiloq packed weights\n"
HEADER_BYTES = 4096  # a page, so that what follows can be mapped


@dataclass(frozen=True)
class PackedFile:
    """Where a model's packed weights are kept, and what has to be in there."""

    path: Path
    key: str  # SHA-256 of all that decides about the bytes
    size: int  # of the weights, in bytes

    @property
    def current(self) -> bool:
        """Whether the file holds these weights. Raises UsageError where it is no file of this kind, or cannot be one."""
        check_target(self.path)
        if not self.path.exists():
            return False
        length = regular_size(self.path)
        try:
            with self.path.open("rb") as file:
                header = file.read(HEADER_BYTES)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be read ({error.strerror}): check its permissions") from None
        if not header.startswith(MAGIC):
            raise UsageError(f"{shown(self.path)} is not a file of packed weights: give the name of a new file")
        return header == self._header() and length == HEADER_BYTES + self.size

    def write(self, arena: Any) -> None:
        """Keeps the weights of a native Arena. Raises KiloqError when the disk is full."""
        with atomic_file(self.path) as file:
            file.write(self._header())
            file.write(arena.contents)

    def mapped(self, native: Any) -> Any:
        """A native Arena over the file."""
        return native.Arena.mapped(str(self.path), HEADER_BYTES, self.size)

    def _header(self) -> bytes:
        return (MAGIC + self.key.encode() + b"\n").ljust(HEADER_BYTES, b"\0")


def packed_file(path: Path, source: ModelSource, plan: dict[str, Any], size: int, layout: int) -> PackedFile:
    """The file for a model whose matrices are packed after `plan`, in the engine's layout of that number."""
    parts = [source.path] if source.path.is_file() else sorted(p for p in source.path.iterdir() if p.is_file())
    files = [(part.name, status.st_size, status.st_mtime_ns) for part in parts for status in [part.stat()]]
    forms = [(s.name, s.rows, s.columns, s.format, s.offset, s.group, s.stored) for s in plan.values()]
    digest = hashlib.sha256(repr((layout, files, forms)).encode())
    for slot in plan.values():
        digest.update(b"" if slot.order is None else slot.order.tobytes())
    return PackedFile(path, digest.hexdigest(), size)
