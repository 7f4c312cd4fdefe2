"""GPTQ of 0.5 billion weights on this machine: minutes and peak memory, beside what `--dry-run` says of both.

    python benchmarks/quantisation_speed.py         about ten minutes

The shape of Qwen1.5-0.5B with random weights and random tokens: neither time nor memory depends on them. 4 bits in
groups of 128, calibrated on 64 samples of 512 tokens, as the variants of `quantisation_quality.py` are.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import models
import numpy as np
import record
import rounds

from kiloq.convert.source import open_model
from kiloq.quantize.plan import make_plan
from kiloq.quantize.run import Samples, quantise_model
from kiloq.quantize.settings import Settings
from kiloq.quantize.work import Work

MOST_SECONDS = 600
SAMPLES, LENGTH, QUICK_SAMPLES = 64, 512, 2


def main() -> int:
    """Prints and keeps; exit code 1 where it takes too long."""
    options = rounds.parse(rounds.parser(__doc__))
    source = open_model(models.model_file("quick" if options.quick else "0.5b", "bf16", options.cache))
    count = QUICK_SAMPLES if options.quick else SAMPLES
    ids = np.random.default_rng(0).integers(0, source.config.vocab_size, (count, LENGTH)).tolist()
    plan = make_plan(source.config, Settings(), count * LENGTH, 0, LENGTH)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        quantise_model(source, Settings(), Samples(ids), Work(Path(folder) / "out", {}), tell)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    planned_s, planned_bytes = sum(plan.seconds.values()), plan.peak_bytes
    print(f"{seconds:.0f} s (at most {MOST_SECONDS}; the plan said {planned_s:.0f}), "
          f"peak {peak / 2**20:,.0f} MiB (the plan said {planned_bytes / 2**20:,.0f})")  # fmt: skip
    figures = {
        "model": source.path.name,
        "parameters": source.parameters(),
        "samples": count,
        "length": LENGTH,
        "seconds": seconds,
        "planned_seconds": planned_s,
        "peak_bytes": peak,
        "planned_bytes": planned_bytes,
    }
    print(record.write("quantisation-speed", figures, options.out))
    return int(seconds > MOST_SECONDS and not options.quick)


def tell(layer: int, layers: int, errors: dict[str, float], seconds: float) -> None:
    """A line a layer on standard error."""
    print(f"layer {layer + 1} of {layers}: {seconds:.1f} s, largest error {max(errors.values()):.4f}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
