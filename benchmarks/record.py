"""How a measurement is kept: medians of five, with machine, commit and command, as JSON in benchmarks/results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5


def interleaved(tasks: dict[str, Callable[[], float]]) -> dict[str, dict[str, float]]:
    """Runs every task in turn, five rounds after a warm-up; each returns its own figure."""
    for task in tasks.values():
        task()
    figures: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            figures[name].append(task())
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in figures.items()
    }


def write(name: str, figures: dict[str, Any], out: Path | None = None) -> Path:
    """Writes `out`, or `<date>-<machine>-<name>.json` in the results, and returns its path."""
    record = {
        "name": name,
        "command": _command(),
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "figures": figures,
    }
    label = record["machine"]["cpu"].split("@")[0].strip().replace(" ", "-").replace("(R)", "").lower()
    path = out or RESULTS / f"{record['date']}-{label}-{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _command() -> str:
    """The command line, but for the folders of this machine, which no figure depends on."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    rest = iter(sys.argv[1:])
    for word in rest:
        if word in ("--cache", "--out", "--llama"):
            next(rest, None)
        else:
            words.append(shlex.quote(word))
    return " ".join(words)


def _machine() -> dict[str, Any]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=RESULTS, capture_output=True, text=True, check=True).stdout.strip()
