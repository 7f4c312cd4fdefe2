"""A corpus of random documents, recipes of tiny networks, and runs of them: for the tests of training."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shards import write_shards

from kiloq.train.checkpoint import Parts, newest_good
from kiloq.train.loop import Trainer
from kiloq.train.metrics import METRICS, read_metrics
from kiloq.train.parallel.world import World
from kiloq.train.settings import Optimizer, Recipe, Shape

SEQUENCE, END = 16, 99


def make_corpus(folder: Path) -> Path:
    """Two sources of random documents, in two shards."""
    random = np.random.default_rng(0)
    shards = []
    for _ in range(2):
        documents = [[*random.integers(0, 90, random.integers(1, 60)).tolist(), END] for _ in range(120)]
        shards.append(list(zip(random.integers(0, 2, len(documents)).tolist(), documents, strict=True)))
    return write_shards(folder, shards, ["a", "b"], 100, END)


def recipe(corpus: Path, **more: Any) -> Recipe:
    shape = Shape(hidden_size=32, num_layers=4, num_heads=2, ffn_size=64)
    plain: dict[str, Any] = {
        "data": str(corpus), "steps": 6, "sequence": SEQUENCE, "batch": 4, "precision": "fp32", "evaluate_every": 3,
        "save_every": 2, "held_out": 10, "model": shape, "optimizer": Optimizer(warmup_steps=2, peak_rate=1e-2),
    }  # fmt: skip
    return Recipe(**plain | more)


def trainer_of(recipe: Recipe, out: Path) -> Trainer:
    """A run in this process alone."""
    return Trainer(recipe, out, World(torch.device("cpu")))


def weights_at(out: Path) -> dict[str, bytes]:
    """The weights of the newest checkpoint below `out`."""
    newest, _ = newest_good(out / "checkpoints")
    assert newest is not None
    weights = Parts(newest)
    return {name: weights.array(name).tobytes() for name in weights.names()}


def started(recipe: Recipe, out: Path, processes: int) -> list[subprocess.Popen[str]]:
    """The command of a run in `processes` processes of one thread each, as a launcher starts them."""
    path = out.with_suffix(".toml")
    path.write_text(toml(json.loads(json.dumps(recipe.resolved()))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kiloq", "train", str(path), "--out", str(out), "--json"]
    launcher = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **launcher, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(processes)
    ]


def launch(recipe: Recipe, out: Path, processes: int) -> list[dict[str, Any]]:
    """A whole run; its metrics."""
    running = started(recipe, out, processes)
    said = [process.communicate(timeout=180)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(said)[-6000:]
    return read_metrics(out / METRICS)


def toml(tables: dict[str, Any]) -> str:
    """A recipe as a file: values first, then tables; without what is None, for which TOML has no word."""
    values = {key: value for key, value in tables.items() if not isinstance(value, dict | None)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for key, table in tables.items():
        if isinstance(table, dict):
            lines += [f"[{key}]", toml(table)]
    return "\n".join(lines)
