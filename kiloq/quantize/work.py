"""What an unfinished quantisation keeps on disk, so that a killed one goes on where it was.

Beside the output lies `.NAME.quantising` with `job.json` (what is being done, to recognise it), one file of packed
tensors a finished layer, and the hidden states behind the last of them. A layer counts once the states behind it are
there; both files appear whole or not at all. Another job in the same place starts from the beginning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kiloq.core.errors import FormatError, MissingError
from kiloq.core.safetensors import SafetensorsFile, write_safetensors
from kiloq.core.work import WorkFolder

if TYPE_CHECKING:
    from torch import Tensor

STATES = "states.safetensors"


class Work:
    """The folder of one job. `job` is whatever tells it from another: settings, and hashes of what goes in."""

    def __init__(self, out: Path, job: Mapping[str, Any]) -> None:
        self._work = WorkFolder.beside(out, "quantising")
        self.folder, self._job = self._work.folder, job

    def layers_done(self) -> int:
        """Finished layers of this same job; 0 (and an empty folder) where there is none, or another."""
        if self._work.begin(self._job):
            try:
                return int(SafetensorsFile(self.folder / STATES).metadata["layers"])
            except (MissingError, FormatError, KeyError, ValueError):
                pass  # no layer was finished
        return 0

    def save(self, layer: int, tensors: Mapping[str, npt.NDArray[Any]], states: Mapping[str, list[Tensor]],
             figures: Mapping[str, Any]) -> None:  # fmt: skip
        """A finished layer: its tensors, the states behind it by kind, and its figures for the report."""
        write_safetensors(self._file(layer), tensors, {"figures": json.dumps(figures)})
        arrays = {f"{kind}.{at:05}": x_TC.numpy() for kind, rows in states.items() for at, x_TC in enumerate(rows)}
        arrays = arrays or {"none.0": np.zeros(1, np.float32)}
        write_safetensors(self.folder / STATES, arrays, {"layers": str(layer + 1)})

    def states(self, kind: str) -> list[Tensor]:
        """The states of one kind behind the last finished layer."""
        import torch

        file = SafetensorsFile(self.folder / STATES)
        names = sorted(name for name in file.names() if name.startswith(f"{kind}."))
        return [torch.from_numpy(file.array(name).copy()) for name in names]

    def tensors(self, layer: int) -> SafetensorsFile:
        """The packed tensors of a finished layer."""
        return SafetensorsFile(self._file(layer))

    def figures(self, layer: int) -> dict[str, Any]:
        """The figures of a finished layer."""
        found: dict[str, Any] = json.loads(self.tensors(layer).metadata["figures"])
        return found

    def remove(self) -> None:
        """After the result is in its place."""
        self._work.remove()

    def _file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:04}.safetensors"
