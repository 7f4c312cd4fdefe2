"""Every way to spread a run over processes learns what one process learns: 50 steps, float32, losses within 1e-5."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kiloq.train.settings import Parallel, Recipe

from .runs import SEQUENCE, make_corpus, recipe, trainer_of, weights_at

STEPS = 50
TOLERANCE = 1e-5  # nats a token; float32 sums in another order
PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from kiloq.train.loop import Trainer
from kiloq.train.parallel.world import world
from kiloq.train.settings import Recipe, from_tables
import torch
torch.set_num_threads(1)
found = from_tables(json.loads(sys.argv[1]), Path("/"))
with world(found.parallel, "cpu") as processes:
    rows = []
    trainer = Trainer(found, Path(sys.argv[2]), processes)
    trainer.run(rows.append)
    if processes.main:
        Path(sys.argv[3]).write_text(json.dumps(rows))
"""


def launch(recipe: Recipe, out: Path, processes: int) -> list[dict[str, Any]]:
    """The rows that the main process of a run said."""
    tables = json.loads(json.dumps(recipe.resolved()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rows = out.with_suffix(".json")
    command = [
        sys.executable,
        "-c",
        PROGRAM.format(tests=str(Path(__file__).parent)),
        json.dumps(drop(tables)),
        str(out),
        str(rows),
    ]
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(processes)
    ]  # fmt: skip
    said = [process.communicate(timeout=180)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(said)[-6000:]
    return [row for row in json.loads(rows.read_text()) if "loss" in row]


def drop(tables: dict[str, Any]) -> dict[str, Any]:
    """Without what is None: TOML and recipes have no null."""
    return {
        key: drop(value) if isinstance(value, dict) else value for key, value in tables.items() if value is not None
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


def spread(corpus: Path, **more: Any) -> Recipe:
    return recipe(corpus, **{"steps": STEPS, "save_every": STEPS, "evaluate_every": STEPS, "micro_batch": 2, **more})


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The rows and the last weights of one process."""
    out = tmp_path_factory.mktemp("alone")
    rows: list[Any] = []
    trainer_of(spread(corpus), out).run(rows.append)
    return [row for row in rows if "loss" in row], weights_at(out)


@pytest.mark.parametrize(
    ("parallel", "processes"),
    [
        ({}, 2),
        ({"shard": 2}, 2),
        ({"tensor": 2}, 2),
        ({"pipeline": 2}, 2),
        ({"pipeline": 2, "schedule": "gpipe"}, 2),
        ({"pipeline": 2, "schedule": "interleaved"}, 2),
        ({"context": 2}, 2),
        ({"shard": 2, "tensor": 2}, 4),
        ({"pipeline": 2, "context": 2}, 4),
    ],
    ids=lambda value: (
        "-".join(f"{key}={one}" for key, one in value.items()) or "copies" if isinstance(value, dict) else str(value)
    ),
)
def test_many_processes_learn_what_one_learns(
    corpus: Path, tmp_path: Path, alone: Any, parallel: dict[str, Any], processes: int
) -> None:
    more = {"micro_batch": 1} if "pipeline" in parallel else {}
    rows = launch(spread(corpus, parallel=Parallel(**parallel), **more), tmp_path / "out", processes)
    wanted, weights = alone
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    worst = max(abs(row["loss"] - other["loss"]) for row, other in zip(rows, wanted, strict=True))
    assert worst <= TOLERANCE, worst
    assert rows[-1]["evaluation_loss"] == pytest.approx(wanted[-1]["evaluation_loss"], abs=TOLERANCE)
    if parallel in ({}, {"shard": 2}):
        assert weights_at(tmp_path / "out") == weights, "data parallelism is bitwise"
    assert SEQUENCE % 4 == 0  # what context and tensor cut
