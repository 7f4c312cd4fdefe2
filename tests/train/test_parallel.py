"""Every way to spread a run over processes learns what one process learns: 50 steps, float32, losses within 1e-5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kiloq.train.metrics import METRICS, read_metrics
from kiloq.train.settings import Parallel, Recipe

from .runs import SEQUENCE, launch, make_corpus, recipe, trainer_of, weights_at

STEPS = 50
TOLERANCE = 1e-5  # nats a token; float32 sums in another order


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


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.timeout(300)  # DeepSpeed compiles a part of itself when it is first used
def test_deepspeed_learns_what_we_learn_and_goes_on_from_our_checkpoints(
    corpus: Path, tmp_path: Path, alone: Any, stage: int
) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    parallel = Parallel(engine="deepspeed", deepspeed=str(tmp_path / "zero.json"))
    out, wanted = tmp_path / "out", alone[0]
    launch(spread(corpus, save_every=25, parallel=parallel, micro_batch=1), out, 2)
    rows = read_metrics(out / METRICS)
    assert max(abs(row["loss"] - other["loss"]) for row, other in zip(rows, wanted, strict=True)) <= TOLERANCE
    assert [row["norm"] for row in rows] == pytest.approx([row["norm"] for row in wanted], rel=1e-4)
    if stage == 1:
        return
    (out / "checkpoints" / "step-0000050" / "manifest.json").unlink()  # as if it had been killed before
    more = {"parallel": parallel} if stage == 2 else {}  # stage 3's goes on without DeepSpeed
    rows = launch(spread(corpus, save_every=25, micro_batch=1, **more), out, 2)
    assert max(abs(row["loss"] - other["loss"]) for row, other in zip(rows, wanted, strict=True)) <= TOLERANCE


@pytest.mark.parametrize(
    "more",
    [{"precision": "bf16"}, {"checkpointing": "selective"}, {"checkpointing": "full", "micro_batch": 1}],
    ids=["bf16", "selective", "full"],
)
def test_shards_with_what_saves_memory(corpus: Path, tmp_path: Path, alone: Any, more: dict[str, Any]) -> None:
    rows = launch(spread(corpus, parallel=Parallel(shard=2), **more), tmp_path / "out", 2)
    tolerance = TOLERANCE
    if more.get("precision") == "bf16":
        trainer_of(spread(corpus, **more), tmp_path / "narrow").run((narrow := list[Any]()).append)
        alone, tolerance = (narrow, None), 2e-2  # norms are gathered in bf16 too
    worst = max(abs(row["loss"] - other["loss"]) for row, other in zip(rows, alone[0], strict=True))
    assert worst <= tolerance, worst


@pytest.mark.parametrize(
    ("before", "after"),
    [(({"shard": 2}, 2), ({}, 1)), (({}, 1), ({"shard": 2}, 2)), (({"shard": 2}, 2), ({"tensor": 2}, 2))],
    ids=["2 to 1", "1 to 2", "shard to tensor"],
)
def test_a_run_goes_on_with_another_number_of_processes(
    corpus: Path, tmp_path: Path, alone: Any, before: tuple[Any, int], after: tuple[Any, int]
) -> None:
    out, wanted = tmp_path / "out", alone[0]
    launch(spread(corpus, save_every=25, parallel=Parallel(**before[0])), out, before[1])
    (out / "checkpoints" / "step-0000050" / "manifest.json").unlink()  # as if it had been killed before
    rows = launch(spread(corpus, save_every=25, parallel=Parallel(**after[0])), out, after[1])
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    assert max(abs(row["loss"] - other["loss"]) for row, other in zip(rows, wanted, strict=True)) <= TOLERANCE
