"""The read bandwidth of this machine's memory, in huge pages, as the ceiling of decoding: `bandwidth.c`, compiled here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from peers import THREADS

SECONDS = 0.5
SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-pthread")


def gigabytes_per_second(size_bytes: int, folder: Path) -> float:
    """10^9 bytes per second that THREADS cores read out of a buffer of `size_bytes`; `folder` keeps the program.

    A buffer as large as a model's weights, because a large shared cache may hold a part of both.
    """
    program = folder / "bandwidth"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(program)], check=True)
    command = [str(program), str(THREADS), str(max(1, size_bytes // 1_000_000)), str(SECONDS), "1"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
