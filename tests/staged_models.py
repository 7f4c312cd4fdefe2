"""Tiny random models for tests of stages, and what is left of processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from oracles.tiny_models import save, tiny

import kiloq
from kiloq.generate.stages import StagedBackend

LAYERS, TRAIN_LENGTH = 4, 64
GONE_S = 10.0  # for a process to see that its first one has ended; it looks every second


def staged_folder(folder: Path, *, tied: bool = False) -> Path:
    """A random model whose rotary base changes with the length; tied: its embedding is the head as well."""
    model = tiny("qwen2", num_hidden_layers=LAYERS, max_position_embeddings=TRAIN_LENGTH, tie_word_embeddings=tied)
    save(model, folder, tokenizer=True)
    config = json.loads((folder / "config.json").read_text())
    config["kiloq"] = {"dynamic_ntk": True, "logn": True, "max_length": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def backend_of(model: kiloq.Model) -> StagedBackend:
    """Of a model in stages."""
    backend = model.engine.backend
    assert isinstance(backend, StagedBackend)
    return backend


def some_ids(count: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, 320, count).tolist()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to ask does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_all_end(pids: list[int]) -> None:
    """Waits for it."""
    until = time.monotonic() + GONE_S
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until, f"{[pid for pid in pids if alive(pid)]} of {pids} are left"
        time.sleep(0.05)
