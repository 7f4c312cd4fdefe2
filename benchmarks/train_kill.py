"""Trainings that are killed at random moments and go on: whether the last weights are those of an undisturbed run.

    python benchmarks/train_kill.py              200 kills with one and two processes, an hour on two cores

A kill is SIGKILL, to all processes of a run or to one of them, as a launcher would then end the others. Half of the
moments are drawn from the whole run, half from the time in which a checkpoint is written: as soon as its staging folder
is seen, after a random part of the time that one takes. The same command is given again until it ends by itself; then
the weights of the model that it has written are compared, byte for byte. What a kill costs is told in steps that are
done again. The program ends with 1 if a run could not go on or anything differed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from train.runs import make_corpus

KILLS, QUICK_KILLS = 200, 6
STEPS, SAVE_EVERY = 120, 5
MOST_TURNS = 200  # of one output before it counts as one that never ends
POLL_S = 0.002
SAVE_S = 0.2  # a checkpoint of this network takes about so long
LAUNCHER_S = 0.05  # until a launcher ends the others
RECIPE = f"""steps = {STEPS}
sequence = 16
batch = 4
micro_batch = 2
precision = "fp32"
evaluate_every = 40
save_every = {SAVE_EVERY}
held_out = 10

[model]
hidden_size = 64
num_layers = 2
num_heads = 2
ffn_size = 128

[optimizer]
peak_rate = 1e-2
warmup_steps = 2
"""


Wait = Callable[[Path], str]  # the output's folder -> what has been waited for


class Turn(NamedTuple):
    """What became of one run."""

    done: bool
    moment: str
    said: str


def processes_of(folder: Path, out: Path, count: int) -> list[subprocess.Popen[str]]:
    """The processes of a run, with one thread each."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "kiloq", "train", str(folder / f"{count}.toml"), "--out", str(out)]
    return [
        subprocess.Popen(
            [*command, "--data", str(folder / "corpus")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip


def turn(folder: Path, out: Path, count: int, wait: Wait | None = None, victim: int | None = None) -> Turn:
    """One run, killed when `wait`, which says what it has waited for, returns; without it, an undisturbed one.

    victim: the process that is killed first; None: all at once.
    """
    running = processes_of(folder, out, count)
    moment = "none"
    if wait is not None:
        moment = wait(out)
        if all(process.poll() is not None for process in running):
            moment = "after its end"
        if victim is not None:
            running[victim].kill()
            time.sleep(LAUNCHER_S)
        for process in running:
            process.kill()
    said = [process.communicate()[1] for process in running]
    return Turn(all(process.returncode == 0 for process in running), moment, "\n".join(said))


def at_any_time(whole_s: float, order: random.Random) -> Wait:
    """A moment of a run that takes `whole_s`."""

    def wait(out: Path) -> str:
        time.sleep(order.uniform(0, whole_s))
        return "any time"

    return wait


def while_saving(whole_s: float, order: random.Random) -> Wait:
    """A moment in the writing of a checkpoint, one of the next ten."""

    def wait(out: Path) -> str:
        end, seen = time.monotonic() + whole_s, order.randrange(10)
        before: set[str] = set()
        while time.monotonic() < end:
            now = {path.name for path in (out / "checkpoints").glob(".*")} if out.exists() else set()
            if now - before:
                if not seen:
                    time.sleep(order.uniform(0, SAVE_S))
                    return "saving"
                seen -= 1
            before |= now
            time.sleep(POLL_S)
        return "any time"

    return wait


def weights_of(out: Path) -> str:
    """A hash of the model's weights."""
    digest = hashlib.sha256()
    for path in sorted((out / "model").glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fuzz(folder: Path, count: int, kills: int, order: random.Random) -> dict[str, Any]:
    """The figures of at least `kills` kills of runs of `count` processes."""
    start = time.monotonic()
    first = turn(folder, folder / "undisturbed", count)
    if not first.done:
        raise SystemExit(first.said)
    whole_s = time.monotonic() - start
    wanted, out = weights_of(folder / "undisturbed"), folder / "out"
    moments, again = Counter[str](), list[int]()
    outputs = differing = unrecoverable = 0
    while moments.total() < kills:
        for _ in range(MOST_TURNS):
            make = order.choice((at_any_time, while_saving))
            found = turn(folder, out, count, make(whole_s, order), order.choice((None, *range(count))))
            if found.done:
                break
            moments[found.moment] += 1
            again.append(steps_done(out) - newest_step(out))
        else:
            found = turn(folder, out, count)
            unrecoverable += not found.done
        outputs += 1
        if found.done and weights_of(out) != wanted:
            differing += 1
            shutil.copytree(out, Path(tempfile.mkdtemp(prefix="train-kill-")) / "out")
        shutil.rmtree(out, ignore_errors=True)
        print(f"{count}: {moments.total()} kills, {outputs} outputs, {differing} differ", file=sys.stderr)
    shutil.rmtree(folder / "undisturbed")
    return {
        "undisturbed_s": round(whole_s, 2), "kills": moments.total(), "moments": dict(sorted(moments.items())),
        "outputs": outputs, "outputs that differ": differing, "unrecoverable": unrecoverable,
        "steps lost at most": max(again), "save_every": SAVE_EVERY,
    }  # fmt: skip


def newest_step(out: Path) -> int:
    """Of the last whole checkpoint."""
    return max((int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("step-*")), default=0)


def steps_done(out: Path) -> int:
    """By the metrics."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = []
    for line in lines:
        try:
            steps.append(int(json.loads(line)["step"]))
        except ValueError:
            continue
    return max(steps, default=0)


def main() -> int:
    """The program; 1 if anything went wrong."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kills", type=int, default=KILLS)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills, to see that it works")
    made.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = made.parse_args()
    kills, order = QUICK_KILLS if options.quick else options.kills, random.Random(options.seed)
    figures: dict[str, Any] = {"seed": options.seed}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder / "corpus")
        for count in (1, 2):
            (folder / f"{count}.toml").write_text(RECIPE + (f"\n[parallel]\nshard = {count}\n" if count > 1 else ""))
            figures[f"{count} processes"] = fuzz(folder, count, -(-kills // 2), order)
    for label, found in figures.items():
        print(f"{label:14} {found}")
    print(record.write("train-kill", figures, options.out))
    wrong = (row["outputs that differ"] + row["unrecoverable"] for row in figures.values() if isinstance(row, dict))
    return int(any(wrong))


if __name__ == "__main__":
    sys.exit(main())
