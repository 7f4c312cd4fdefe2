"""The rate of matrix products that this machine reaches through PyTorch's library, as the ceiling of prompts and batches.

Run in a process of its own, on THREADS threads and without tile instructions (AMX), which kiloq has no kernels for:
8-bit integers and float32, products of a size that suits any library. Source: oneDNN, "CPU dispatcher control".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from peers import THREADS

ROWS, WIDTH = 512, 2048
SECONDS = 0.3  # for each type
PROGRAM = """
import json, sys, time, torch
threads, rows, width, seconds = (float(value) for value in sys.argv[1:])
rows, width = int(rows), int(width)
torch.set_num_threads(int(threads))
pairs = {
    "int8": (torch._int_mm, *(torch.randint(-127, 128, (n, width), dtype=torch.int8) for n in (rows, width))),
    "fp32": (torch.mm, torch.randn(rows, width), torch.randn(width, width)),
}
rates = {}
for name, (multiply, left, right) in pairs.items():
    best, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        multiply(left, right.t())
        best = min(best, time.perf_counter() - start)
    rates[name] = 2 * rows * width * width / best
print(json.dumps(rates))
"""


def operations_per_second() -> dict[str, float]:
    """Best rates of "int8" and "fp32"; a multiply-add is two operations."""
    command = [sys.executable, "-c", PROGRAM, *map(str, (THREADS, ROWS, WIDTH, SECONDS))]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"the rate of matrix products needs PyTorch (pip install 'kiloq[train]'): {done.stderr[-300:]}"
        )
    rates: dict[str, float] = json.loads(done.stdout)
    return rates
