"""Checkpoints: everything that the next step depends on, on disk as one folder that is whole or not there.

`checkpoints/step-0000200` holds the weights and both moments of AdamW (float32 safetensors, each process its own part,
as PyTorch's distributed checkpoints cut them, so that any other number of processes can read them) and `state.json`.
It is written by a thread while training goes on: a copy first, then a staging folder, every file and the folder synced,
one rename. The manifest, written last, has the sha256 of every file, and all of them are checked before a weight is
used; a damaged checkpoint is passed over for the newest good one, which is found by its name: there is no pointer that
could be wrong. No pickle: PyTorch's own metadata file would be one. The order of the data needs no state
(kiloq.train.batches), and the network draws no lots, so a run that goes on has the bits of one that never stopped.
Source: PyTorch's distributed checkpoint (torch.distributed.checkpoint) with its safetensors storage.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from kiloq.core.errors import FormatError, KiloqError, file_sentence
from kiloq.core.manifest import atomic_folder, verify_manifest, write_manifest
from kiloq.core.safe_json import load_object, parse_object, write_json
from kiloq.core.safetensors import SafetensorsFile
from kiloq.train.parallel.world import World

STATE = "state.json"
SHARDING = "DCP_SHARDING_INFO"  # PyTorch's key in a file's metadata: where in the whole tensor a part begins
MAX_STATE_BYTES = 16 << 20
MOMENTS = ("exp_avg", "exp_avg_sq")  # PyTorch's names


@dataclass
class Progress:
    """Where a run is, besides its tensors."""

    step: int = 0  # steps done
    passed: int = 0  # batches that were stepped over: step s learns from batch s + passed
    updates: int = 0  # of the weights
    tokens: int = 0  # that have been learned from
    skipped: list[int] = field(default_factory=list)  # batches that were not learned from
    bad_in_a_row: int = 0
    returns: int = 0  # times that the run has gone back to a checkpoint
    recent: list[tuple[float, float]] = field(default_factory=list)  # loss and norm of the last good steps


class Saver:
    """Writes checkpoints of a run, one at a time, beside the training."""

    def __init__(self, folder: Path, world: World, keep: int, config: Mapping[str, Any]) -> None:
        self.folder, self._world, self._keep, self._config = folder, world, keep, config
        self._group = dist.new_group(backend="gloo") if world.mesh is not None else None
        self._thread: threading.Thread | None = None
        self._said: str | None = None

    def begin(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Start to write; waits for the checkpoint before. Raises KiloqError if that one could not be written."""
        self.finish()
        copies = {name: _copied(tensor) for name, tensor in tensors.items()}
        record = asdict(progress)
        self._thread = threading.Thread(target=self._write, args=(copies, record))
        self._thread.start()

    def finish(self) -> None:
        """Wait for what is being written. Raises KiloqError in all processes if any of them could not write it."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        (failed,) = self._world.sum([float(self._said is not None)])
        if failed:
            said = self._said or "another process could not write its part"
            raise KiloqError(
                f"the checkpoint was not written: {said}; the one before it is whole: run the same command again to go on"
            )

    def _write(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        try:
            target = self.folder / f"step-{record['step']:07}"
            staging = self.folder / f".{target.name}.parts"
            if self._world.main:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
            if self._group is not None:
                dist.barrier(group=self._group)
            _write_parts(staging, tensors, self._group)
            if self._world.main:
                if target.exists() and damage(target) is not None:  # damaged, and passed over when this run began
                    shutil.rmtree(target)
                with atomic_folder(target) as place:
                    for path in staging.iterdir():
                        path.rename(place / path.name)
                    write_json(place / STATE, {"progress": record})
                    counts = {"step": record["step"], "tokens": record["tokens"]}
                    write_manifest(place, "checkpoint", config=self._config, counts=counts)
                staging.rmdir()
                forget_old(self.folder, self._keep)
        except OSError as error:
            self._said = file_sentence(error)
        except Exception as error:  # PyTorch wraps what happened in any process into its own kinds
            self._said = " ".join(str(error).split())[:300]


def _copied(tensor: Any) -> Any:
    """A copy on the CPU that training does not change; of a spread tensor, of the part that is here."""
    if not hasattr(tensor, "to_local"):
        return tensor.detach().to("cpu", copy=True)
    from torch.distributed.tensor import DTensor

    part = tensor.to_local().detach().to("cpu", copy=True)
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _write_parts(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    _be_quiet()
    storage = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save(dict(tensors), storage_writer=storage, process_group=group, no_dist=group is None)


def progress_of(folder: Path) -> Progress:
    """Where the run of a checkpoint was."""
    progress = Progress(**load_object(folder / STATE, MAX_STATE_BYTES)["progress"])
    progress.recent = [(loss, norm) for loss, norm in progress.recent]
    return progress


def load(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Put a checkpoint, which must have been checked, into `tensors`. Raises FormatError if it is of another network."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

    _be_quiet()
    try:
        load_tensors(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world.mesh is None)
    except Exception as error:  # of shapes and names; the files themselves are as they were written
        said = " ".join(str(error).split())[:200]
        raise FormatError(
            f"{folder}: is of another network than the recipe's ({said}): give the recipe that it was made with"
        ) from None


def _be_quiet() -> None:
    """One process is no mistake that PyTorch would have to warn of."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)


class Parts:
    """Tensors of a checkpoint, which must have been checked, put together from the parts of all processes."""

    def __init__(self, folder: Path, kind: str = "weights") -> None:
        self._prefix = f"{kind}."
        self._parts: dict[str, list[tuple[SafetensorsFile, list[int]]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = SafetensorsFile(path)
            offsets = parse_object(file.metadata.get(SHARDING, "{}").encode(), path)
            for name in file.names():
                if name.startswith(self._prefix):
                    begin = offsets[name]["saved_offsets"] if name in offsets else [0] * len(file.info(name)[1])
                    self._parts.setdefault(name.removeprefix(self._prefix), []).append((file, begin))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        ends = [np.add(begin, file.info(self._prefix + name)[1]) for file, begin in self._parts[name]]
        return tuple(np.max(ends, axis=0).tolist())

    def names(self) -> list[str]:
        """Of all parameters."""
        return sorted(self._parts)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The whole tensor, float32."""
        found = np.empty(self.shape(name), np.float32)
        for file, begin in self._parts[name]:
            part = file.array(self._prefix + name)
            found[tuple(slice(at, at + size) for at, size in zip(begin, part.shape, strict=True))] = part
        return found


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as it was written, and what is wrong with newer ones."""
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if (wrong := damage(path)) is None:
            return path, passed_over
        passed_over.append(wrong)
    return None, passed_over


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is as it was written."""
    try:
        verify_manifest(folder)
    except (OSError, KiloqError) as error:
        return str(error)
    return None


def forget_old(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
