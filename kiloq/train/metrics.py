"""What a run writes about itself: metrics.jsonl, a line a step, and curves.svg, drawn from it."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kiloq.core.chart import curves
from kiloq.core.errors import MissingError
from kiloq.core.files import atomic_file

METRICS, CURVES = "metrics.jsonl", "curves.svg"


class Metrics:
    """The file of metrics of one run; lines of steps that are done again after a restart are cut off first."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        self._board = _board(folder) if tensorboard else None
        self._path, self._curves = folder / METRICS, folder / CURVES
        self.rows = [row for row in read_metrics(self._path) if row.get("step", 0) <= step]
        with atomic_file(self._path) as file:
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in self.rows))

    def add(self, row: Mapping[str, Any]) -> None:
        """One line, which reaches the file at once."""
        self.rows.append(dict(row))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """After the last row."""
        if self._board is not None:
            self._board.close()

    def draw(self) -> None:
        """Draw the losses anew."""
        lines = {
            "training": [(row["step"], row["loss"]) for row in self.rows if "loss" in row],
            "evaluation": [(row["step"], row["evaluation_loss"]) for row in self.rows if "evaluation_loss" in row],
        }
        with atomic_file(self._curves) as file:
            file.write(
                curves(
                    {name: points for name, points in lines.items() if points}, "step", "loss (nats a token)"
                ).encode()
            )


def _board(folder: Path) -> Any:
    """A writer of events for TensorBoard. Raises MissingError where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingError(
            "tensorboard = true needs another package: run `pip install tensorboard` to get it"
        ) from None
    return SummaryWriter(str(folder / "events"))


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU the most that was allocated, of a processor the most that was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics; a last line that was cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
