"""What goes wrong in a run: steps that cannot be taken, spikes, a full disk, a process that hangs, a signal to stop."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kiloq.core.errors import KiloqError
from kiloq.core.manifest import verify_manifest
from kiloq.train import checkpoint, faults
from kiloq.train.checkpoint import Progress
from kiloq.train.loop import Trainer
from kiloq.train.metrics import METRICS, read_metrics

from .damage import contents, fault, put
from .runs import make_corpus, recipe, started, trainer_of, weights_at


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


# Steps that cannot be taken


def spoil(trainer: Trainer, batches: set[int], factor: float = math.nan) -> None:
    """Make the gradients of some batches not finite, or `factor` times too large."""
    real = trainer.engine.gradients

    def gradients(rows: Any, tokens: int) -> float:
        loss = real(rows, tokens)
        if trainer.batch not in batches:
            return loss
        for parameter in trainer.engine.parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
        return loss

    trainer.engine.gradients = gradients  # type: ignore[method-assign]


def test_a_step_without_a_finite_gradient_is_not_taken_and_its_documents_are_named(
    corpus: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(recipe(corpus, steps=4), tmp_path)
    spoil(trainer, {1})
    rows: list[Any] = []
    trainer.run(rows.append)
    assert [row.get("bad") for row in rows] == [None, "its gradient is not finite", None, None]
    batch = trainer.recipe.batch
    read = trainer.batches.rows(range(batch, 2 * batch)).documents
    assert rows[1]["documents"] == sorted({number for some in read for number in some})
    assert (trainer.progress.skipped, trainer.progress.updates, trainer.progress.step) == ([1], 3, 4)
    assert trainer.progress.tokens == 3 * batch * trainer.recipe.sequence


def test_a_run_whose_last_step_is_bad_has_its_last_checkpoint(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(corpus), tmp_path)
    spoil(trainer, {5})
    trainer.run(lambda row: None)
    found, _ = checkpoint.newest_good(tmp_path / "checkpoints")
    assert found is not None and found.name == "step-0000006" and checkpoint.progress_of(found).skipped == [5]


def test_weights_and_moments_are_as_before_a_bad_step(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(corpus), tmp_path)
    trainer.step()
    before = {name: tensor.clone() for name, tensor in trainer.engine.tensors().items()}
    spoil(trainer, {1})
    assert trainer.step().bad == "its gradient is not finite"
    after = trainer.engine.tensors()
    assert all((after[name] == tensor).all() for name, tensor in before.items())


def test_five_bad_steps_in_a_row_lead_back_past_their_data(corpus: Path, tmp_path: Path) -> None:
    """Batches 6 to 10 are bad; the run goes back to step 6 and on with batch 11. Killed and begun again: the same."""
    weights = []
    for name in ("whole", "killed"):
        out, notes = tmp_path / name, list[str]()

        def say(row: Any, name: str = name, notes: list[str] = notes) -> None:
            notes.append(str(row.get("note")))
            if name == "killed" and "back to step 6" in notes[-1] and len(notes) < 15:
                raise KeyboardInterrupt

        trainer = spoiled(corpus, out)
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                trainer.run(say)
            trainer = spoiled(corpus, out)
        trainer.run(say)
        assert "5 bad steps in a row: back to step 6, past the data of those steps" in notes
        assert (trainer.progress.skipped, trainer.progress.passed, trainer.progress.returns) == ([6, 7, 8, 9, 10], 5, 1)
        assert [row["step"] for row in read_metrics(out / METRICS)] == [*range(1, 12), *range(7, 13)]
        weights.append(weights_at(out))
    assert weights[0] == weights[1]


def spoiled(corpus: Path, out: Path) -> Trainer:
    trainer = trainer_of(recipe(corpus, steps=12), out)
    spoil(trainer, set(range(6, 11)))
    return trainer


def test_what_a_run_cannot_get_past_ends_it_with_a_sentence(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(corpus, max_bad_steps=2), tmp_path / "first")
    spoil(trainer, set(range(100)))
    with pytest.raises(KiloqError, match="step 2: 2 steps in a row could not be taken, and there is no checkpoint"):
        trainer.run(lambda row: None)
    trainer = trainer_of(recipe(corpus, max_bad_steps=2, steps=50), tmp_path / "later")
    spoil(trainer, set(range(2, 100)))
    with pytest.raises(KiloqError, match="the run has gone back 3 times: give a lower peak_rate"):
        trainer.run(lambda row: None)


def test_spikes_are_told_from_what_steps_usually_are() -> None:
    progress = Progress(recent=[(2.0 + 0.1 * (at % 2), 1.0) for at in range(faults.WINDOW)])
    assert faults.bad(2.2, 1.0, progress, 6.0) is None
    assert faults.bad(3.0, 1.0, progress, None) is None
    said = faults.bad(3.0, 1.0, progress, 6.0)
    assert (
        said is not None and said.startswith("its loss, 3, is above 2.35") and "6 deviations over the last 128" in said
    )
    assert "its norm, 9" in (faults.bad(2.0, 9.0, progress, 6.0) or "")
    assert faults.bad(9.0, 1.0, Progress(recent=[(2.0, 1.0)] * (faults.LEAST - 1)), 6.0) is None
    assert faults.bad(math.nan, 1.0, progress, None) == "its gradient is not finite"


def test_a_spike_is_skipped_and_does_not_count_as_usual(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(corpus, steps=20, spikes=6.0), tmp_path)
    spoil(trainer, {18}, 1000.0)
    rows: list[Any] = []
    trainer.run(rows.append)
    assert [row["step"] for row in rows if row.get("bad")] == [19] and "its norm" in rows[18]["bad"]
    assert len(trainer.progress.recent) == 19


# The disk


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer_of(recipe(corpus), tmp_path / "whole")
    whole.run(lambda row: None)
    real = checkpoint._write_parts

    def full(folder: Path, tensors: Any, group: Any) -> None:
        if "0000004" in folder.name:
            (folder / "half.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        real(folder, tensors, group)

    monkeypatch.setattr(checkpoint, "_write_parts", full)
    with pytest.raises(
        KiloqError, match=r"the checkpoint was not written: .*No space left on device.*the same command"
    ):
        trainer_of(recipe(corpus), tmp_path / "full").run(lambda row: None)
    found, passed_over = checkpoint.newest_good(tmp_path / "full" / "checkpoints")
    assert found is not None and found.name == "step-0000002" and not passed_over
    verify_manifest(found)
    monkeypatch.setattr(checkpoint, "_write_parts", real)
    trainer_of(recipe(corpus), tmp_path / "full").run(lambda row: None)
    assert weights_at(tmp_path / "full") == weights_at(tmp_path / "whole")
    assert not list((tmp_path / "full" / "checkpoints").glob(".*"))


def test_every_kind_of_damage_is_refused_before_a_weight_is_used(corpus: Path, tmp_path: Path) -> None:
    trainer_of(recipe(corpus), tmp_path).run(lambda row: None)
    older, newest = sorted((tmp_path / "checkpoints").glob("step-*"))
    files, other, order = contents(newest), contents(older), random.Random(0)
    for _ in range(100):  # benchmarks/train_corruption.py does a thousand
        kind, change = fault(files, other, order)
        put(change)
        found, passed_over = checkpoint.newest_good(tmp_path / "checkpoints")
        assert found == older and len(passed_over) == 1, (kind, sorted(change))
        put({**dict.fromkeys(newest.iterdir()), **files})
    assert checkpoint.newest_good(tmp_path / "checkpoints") == (newest, [])


# Processes


def wait_for_steps(running: list[subprocess.Popen[str]], out: Path) -> None:
    """Until some steps are done."""
    while not (out / METRICS).exists() or (out / METRICS).read_text().count("\n") < 5:
        assert all(process.poll() is None for process in running), running[0].communicate()
        time.sleep(0.05)


def ended(running: list[subprocess.Popen[str]]) -> None:
    for process in running:
        process.kill()
        process.communicate()


def test_a_process_that_hangs_is_told_with_stacks(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = started(recipe(corpus, steps=100_000, hang_minutes=0.2, evaluate_every=1000, save_every=1000), out, 2)
    try:
        wait_for_steps(running, out)
        os.kill(running[1].pid, signal.SIGSTOP)
        said, _ = running[0].communicate(timeout=60)
    finally:
        ended(running)
    assert running[0].returncode == 75
    assert "no step has ended for 0.2 minutes, and process 1 does not run" in said
    assert "in step" in said and "all_reduce" in said


def test_a_signal_to_stop_is_heard_by_all_and_ends_well(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = started(recipe(corpus, steps=100_000, evaluate_every=1000, save_every=1000), out, 2)
    wait_for_steps(running, out)
    running[1].send_signal(signal.SIGTERM)  # one of them is enough
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    step = json.loads(said[0].splitlines()[-1])["step"]
    found, _ = checkpoint.newest_good(out / "checkpoints")
    assert found is not None and found.name == f"step-{step:07}" and len(read_metrics(out / METRICS)) == step


def test_too_few_processes_are_a_sentence(corpus: Path, tmp_path: Path) -> None:
    from kiloq.train.settings import Parallel

    running = started(recipe(corpus, parallel=Parallel(tensor=2)), tmp_path / "out", 1)
    said, _ = running[0].communicate(timeout=60)
    assert running[0].returncode == 2 and "there are 1 processes: start a multiple of 2" in said
