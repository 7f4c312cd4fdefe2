"""Checkpoints: everything that the next step depends on, on disk as one folder that is whole or not there.

`checkpoints/step-000200` holds the weights and both moments of AdamW (safetensors, float32) and `state.json`; its
manifest, written last, has the sha256 of every file, and all of them are checked before a weight is used. A damaged
checkpoint is passed over for the newest good one. No pickle: a checkpoint cannot run code. The order of the data needs
no state (kiloq.train.batches), and the network draws no lots, so a run that goes on has the bits of one that never
stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kiloq.core.errors import FormatError, KiloqError, MissingError
from kiloq.core.manifest import atomic_folder, verify_manifest, write_manifest
from kiloq.core.safe_json import load_object, write_json
from kiloq.core.safetensors import SafetensorsFile, write_safetensors

WEIGHTS, MOMENTS, STATE = "weights.safetensors", "moments.safetensors", "state.json"
MAX_STATE_BYTES = 16 << 20
MOMENT_NAMES = ("exp_avg", "exp_avg_sq")  # PyTorch's


@dataclass
class Progress:
    """Where a run is, besides its tensors."""

    step: int = 0  # steps done
    tokens: int = 0  # that have been learned from
    skipped: list[int] = field(default_factory=list)  # steps that were not taken: their gradient was not finite
    bad_in_a_row: int = 0


def save(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, config: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of a step and return its folder."""
    target = folder / f"step-{progress.step:07}"
    named = dict(network.named_parameters())
    moments, steps = {}, {}
    for name, parameter in named.items():
        state = optimizer.state.get(parameter, {})
        for moment in MOMENT_NAMES:
            if moment in state:
                moments[f"{name}.{moment}"] = state[moment].detach().cpu().numpy()
        if "step" in state:
            steps[name] = float(state["step"])
    with atomic_folder(target) as staging:
        write_safetensors(staging / WEIGHTS, {name: p.detach().cpu().numpy() for name, p in named.items()})
        write_safetensors(staging / MOMENTS, moments)
        write_json(staging / STATE, {"progress": asdict(progress), "optimizer_steps": steps})
        write_manifest(staging, "checkpoint", config=config, counts={"step": progress.step, "tokens": progress.tokens})
    return target


def load(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint into the network and its optimizer. Raises FormatError if any bit of it is not as written."""
    verify_manifest(folder)
    weights, moments = SafetensorsFile(folder / WEIGHTS), SafetensorsFile(folder / MOMENTS)
    record = load_object(folder / STATE, MAX_STATE_BYTES)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(_tensor(weights, name, parameter))
            if f"{name}.{MOMENT_NAMES[0]}" in moments.names():
                optimizer.state[parameter] = {
                    "step": torch.tensor(record["optimizer_steps"][name]),
                    **{moment: _tensor(moments, f"{name}.{moment}", parameter) for moment in MOMENT_NAMES},
                }
    return Progress(**record["progress"])


def _tensor(file: SafetensorsFile, name: str, like: torch.Tensor) -> torch.Tensor:
    found = torch.from_numpy(file.array(name).copy()).to(like.device)
    if found.shape != like.shape:
        raise FormatError(
            f"{file.path}: {name} has shape {tuple(found.shape)}, and the network wants {tuple(like.shape)}"
        )
    return found


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as it was written, and what is wrong with newer ones."""
    passed_over = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            verify_manifest(path)
        except (FormatError, MissingError, KiloqError) as error:
            passed_over.append(str(error))
            continue
        return path, passed_over
    return None, passed_over


def forget_old(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
