"""Preparations that are killed at random moments and go on: whether every file is the one of an undisturbed run.

    python benchmarks/prepare_kill.py              200 kills, half an hour on two cores

A kill is SIGKILL: to all processes of a run, to the main one, or to a worker, at a moment drawn from the first two
thirds of the time that a whole run takes. The same command is then given again, and killed again, until it ends by
itself; then everything but the manifest, which has a clock, is compared, and nothing may be left beside the output.
Moments are told by the last line that the run has written. The program ends with 1 if anything differed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from prepare.runs import command, contents, members, wait_for, workers, write_corpus

KILLS, QUICK_KILLS = 200, 6
FILES, DOCUMENTS = 8, 700  # 8 parts of 0.6 MB: every pass has several tasks for each of two workers
VICTIMS = ("all", "main", "worker")
MOST_TURNS = 50  # of one output before it counts as one that never ends
STEPS = "".join(
    f"[[step]]\n{step}\n"
    for step in ('kind = "clean"', 'kind = "gopher"\nleast_words = 20', 'kind = "exact"', 'kind = "exact"\nunit = "line"',
                 'kind = "fuzzy"', 'kind = "pii"')
)  # fmt: skip


class Turn(NamedTuple):
    """What became of one run."""

    code: int | None  # its exit code; None: it outlived its kill
    moment: str  # what it did last, without numbers
    strays: int  # processes that were still there five seconds after its end


def turn(recipe: Path, out: Path, victim: str | None, after_s: float) -> Turn:
    """One run into `out`, of which `victim` is killed `after_s` seconds after it began; None: nobody is."""
    words = recipe.with_name("stderr")
    with words.open("wb") as stderr:
        process = subprocess.Popen(
            command(recipe, out), stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        if victim is not None:
            end = time.monotonic() + after_s
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            _kill(process, victim)
        code = process.wait()
    strays = 0 if wait_for(lambda: not members(process.pid), 5) else len(members(process.pid))
    if strays:
        os.killpg(process.pid, signal.SIGKILL)
    lines = words.read_text().splitlines()
    said = [line for line in lines if not line.startswith("kiloq:") and " to do" in line]
    if code not in (0, 1, -signal.SIGKILL):
        print(f"exit code {code}:", *lines[-5:], sep="\n  ")
    return Turn(code, re.sub(r" [\d,]+ keys", "", said[-1].rpartition(":")[0]) if said else "start", strays)


def _kill(process: subprocess.Popen[bytes], victim: str) -> None:
    try:
        if victim == "all":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "main":
            process.kill()
        elif found := workers(process.pid):
            os.kill(found[-1], signal.SIGKILL)
    except ProcessLookupError:  # it ended in the same moment
        pass


def fuzz(recipe: Path, kills: int, seed: int) -> dict[str, Any]:
    """The figures of at least `kills` kills."""
    order = random.Random(seed)
    start = time.monotonic()
    assert turn(recipe, recipe.with_name("undisturbed"), None, 0).code == 0
    whole_s = time.monotonic() - start
    expected = contents(recipe.with_name("undisturbed"))
    out = recipe.with_name("out")
    victims, moments, codes = Counter[str](), Counter[str](), Counter[str]()
    outputs = differing = strays = left_over = 0
    while victims.total() < kills:
        for _ in range(MOST_TURNS):
            victim = order.choice(VICTIMS)
            found = turn(recipe, out, victim, order.uniform(0, whole_s * 2 / 3))
            strays += found.strays
            if found.code == 0:
                break
            victims[victim] += 1
            moments[found.moment] += 1
            codes[str(found.code)] += 1
        outputs += 1
        found = contents(out)
        if found != expected:
            differing += 1
            names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
            kept = Path(tempfile.mkdtemp(prefix="prepare-kill-"))
            shutil.copytree(out, kept / "out")
            shutil.copytree(recipe.with_name("undisturbed"), kept / "undisturbed")
            print(f"differ in {', '.join(names)}; kept in {kept}", file=sys.stderr)
        left_over += len(list(out.parent.glob(".out*")))
        shutil.rmtree(out, ignore_errors=True)
        print(f"{victims.total()} kills, {outputs} outputs, {differing} differ", file=sys.stderr)
    return {
        "seed": seed, "undisturbed_s": round(whole_s, 2), "files": len(expected), "kills": victims.total(),
        "outputs": outputs, "outputs that differ": differing, "processes left": strays, "files left beside": left_over,
        "victims": dict(sorted(victims.items())), "moments": dict(sorted(moments.items())),
        "exit codes": dict(sorted(codes.items())),
    }  # fmt: skip


def main() -> int:
    """The program; 1 if an output differed, or something was left, or a run ended in a way that it must not."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kills", type=int, default=KILLS)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills, to see that it works")
    made.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_corpus(Path(folder) / "corpus", FILES, DOCUMENTS, STEPS)
        figures = fuzz(recipe, QUICK_KILLS if options.quick else options.kills, options.seed)
    for name, figure in figures.items():
        print(f"{name:24} {figure}")
    print(record.write("prepare-kill", figures, options.out))
    wrong = figures["outputs that differ"] + figures["processes left"] + figures["files left beside"]
    return int(wrong > 0 or not set(figures["exit codes"]) <= {"1", "-9"})


if __name__ == "__main__":
    sys.exit(main())
