"""From starting a process to its first token of the default model, files in the page cache: kiloq and xllamacpp.

    python benchmarks/cold_start.py

The clock stops at the first byte on standard output. Both run the same Q4_1 file's weights with two threads, and
Python's byte code is kept from the warm-up run, as pip leaves it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import record
from models import model_file
from targets import WHEEL

# The prebuilt wheel as its own documentation uses it, without its warm-up run, which would only cost here.
PEER = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = sys.argv[1], 512, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
params.warmup, params.verbosity = False, -1
answer = xllamacpp.Server(params).handle_completions({"prompt": "Hi", "max_tokens": 1, "temperature": 0.0})
print(answer["choices"][0]["text"] or "?", flush=True)
os._exit(0)
"""


def commands() -> dict[str, list[str]]:
    """What is started; kiloq's command line finds the default model by its name."""
    kiloq = str(Path(sys.executable).parent / "kiloq")
    file = str(model_file("default", "int4", Path()))
    return {
        "kiloq": [kiloq, "generate", "smollm2", "Hi", "--max-new-tokens", "1"],
        WHEEL: [sys.executable, "-c", PEER, file],
    }


def seconds_to_first_byte(command: list[str]) -> Callable[[], float]:
    """Wall-clock seconds of one run."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run() -> float:
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            assert process.stdout is not None
            first = process.stdout.read(1)
            took = time.perf_counter() - start
            process.stdout.read()
        if not first or process.returncode:
            raise SystemExit(f"{' '.join(command[:3])} ended with code {process.returncode} and no token")
        return took

    return run


if __name__ == "__main__":
    figures = record.interleaved({name: seconds_to_first_byte(command) for name, command in commands().items()})
    for name, figure in figures.items():
        print(f"{name:12} {figure['median']:.3f} s  ({figure['min']:.3f} to {figure['max']:.3f})")
    print(record.write("cold-start", figures))
