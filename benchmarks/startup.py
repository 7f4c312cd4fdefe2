"""Start-up times of whole processes: bare Python, `import kiloq`, `kiloq --help`, `kiloq doctor --json`.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import record

KILOQ = str(Path(sys.executable).parent / "kiloq")
COMMANDS = {
    "bare python": [sys.executable, "-c", "pass"],
    "import kiloq": [sys.executable, "-c", "import kiloq"],
    "kiloq --help": [KILOQ, "--help"],
    "kiloq --version": [KILOQ, "--version"],
    "kiloq chat --help": [KILOQ, "chat", "--help"],
    "kiloq doctor --json": [KILOQ, "doctor", "--json"],
}


def seconds_of(command: list[str]) -> Callable[[], float]:
    """Wall-clock seconds of one run."""

    def run() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    figures = record.interleaved({name: seconds_of(command) for name, command in COMMANDS.items()})
    for name, figure in figures.items():
        print(f"{name:22} {figure['median']:.3f} s  ({figure['min']:.3f} to {figure['max']:.3f})")
    print(record.write("startup", figures))
