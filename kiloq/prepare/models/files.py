"""What the trained filters share: model files, and the choice of a column and of rows.

A model is one safetensors file, its kind and settings in the metadata, believed only when checked.
It is loaded once per process and again when it changes; its arrays are a map of the file, which processes share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kiloq.core.dtypes import CODES
from kiloq.core.errors import FormatError, UsageError
from kiloq.core.files import regular_size, shown
from kiloq.core.safetensors import SafetensorsFile
from kiloq.prepare.documents import strings_of

Model = TypeVar("Model")

HELD_MODELS = 8  # of a kind, per process. Ours: a recipe names one or two


class ModelFile:
    """A file of one kind; every fault in it is a FormatError that starts with its path."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        found = self._file.metadata.get("kind")
        if found != kind:
            raise FormatError(f"{path}: is {shown(found or 'of no kind', 40)}: {shown(kind)} was expected")

    def number(self, name: str, least: int, most: int) -> int:
        """A whole number of the metadata."""
        text = self._file.metadata.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
            raise FormatError(f"{self.path}: its {name} is {shown(text, 40)}: {least} to {most} was expected")
        return int(text)

    def text(self, name: str) -> str:
        """A text of the metadata; empty where there is none."""
        return self._file.metadata.get(name, "")

    def array(self, name: str, kind: type[np.generic], length: int | None = None, most: float = 0) -> npt.NDArray[Any]:
        """A tensor of one dimension; numbers that are not whole lie between -most and most."""
        if name not in self._file.names():
            raise FormatError(f"{self.path}: has no tensor {name}: it is damaged")
        code, shape = self._file.info(name)
        if code != CODES[np.dtype(kind)] or len(shape) != 1 or (length is not None and shape[0] != length):
            wanted = f"{CODES[np.dtype(kind)]}[{'any' if length is None else length}]"
            raise FormatError(f"{self.path}: its {name} is {code}{list(shape)}: {wanted} was expected")
        array = self._file.array(name)
        if np.issubdtype(kind, np.floating) and not (np.abs(array) <= most).all():  # nor does NaN pass
            raise FormatError(f"{self.path}: its {name} has numbers beyond {most:g}: it is damaged")
        return array


def cached(load: Callable[[Path], Model]) -> Callable[[str], Model]:
    """`load` by path, once per process and state of the file."""

    @lru_cache(maxsize=HELD_MODELS)
    def of_state(path: str, size: int, changed_ns: int) -> Model:
        return load(Path(path))

    def by_path(path: str) -> Model:
        size = regular_size(Path(path))
        return of_state(path, size, Path(path).stat().st_mtime_ns)

    return by_path


def check_column(step: Any, *taken: str) -> None:
    """A field `column` that names a new column. Raises UsageError for one that documents have for something else."""
    if not step.column or step.column in taken:
        raise UsageError(f"{step.name}: column is {step.column!r:.40}: give a name that no column of documents has")


def chosen_rows(batch: Any, languages: Collection[str] | None) -> list[int]:
    """The rows of a batch whose `language` is one of these; all rows for None."""
    if languages is None:
        return list(range(batch.num_rows))
    return [row for row, code in enumerate(strings_of(batch, "language")) if code in languages]
