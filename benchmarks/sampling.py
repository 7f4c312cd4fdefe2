"""What drawing a token costs, as a share of the step that makes its logits: 151,936 of them, one stream.

    python benchmarks/sampling.py           about a minute; wants the machine for itself

The 0.3 B shape in 4 bits: the smallest that has so many tokens, with the shortest steps. Steps that draw inside the call
take turns with steps that only give their logits, one by one, because the machine's speed drifts. At most 5 % is allowed for any rule. Random weights give flat
logits, of which a nucleus keeps tens of thousands; a low temperature makes them as steep as a trained model's.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import models
import numpy as np
import record
import rounds
from peers import SPARE, THREADS, random_ids
from ratios import median, summary

import kiloq
from kiloq.generate.backend import Draw, Row
from kiloq.generate.params import SamplingParams
from kiloq.generate.samplers import make_sampler

MOST_SHARE = 0.05
PROMPT = 64
STEEP, FLAT = 0.1, 0.8  # temperatures
RULES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, repetition penalty": {"temperature": 0.0, "repetition_penalty": 1.1},
    "temperature": {"temperature": STEEP},
    "top-k 50": {"temperature": STEEP, "top_k": 50},
    "top-p 0.9": {"temperature": STEEP, "top_p": 0.9},
    "min-p 0.05": {"temperature": STEEP, "min_p": 0.05},
    "all of them": {"temperature": STEEP, "top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1,
                    "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {5: 1.0}},
    "flat: temperature": {"temperature": FLAT},
    "flat: top-p 0.9": {"temperature": FLAT, "top_p": 0.9},
    "flat: min-p 0.05": {"temperature": FLAT, "min_p": 0.05},
}  # fmt: skip


def step_ratio(
    backend: Any, origin: Any, ids: list[int], rule: dict[str, Any], slice_s: float, bare_s: list[float]
) -> float:
    """Time of a step that draws over that of one that gives its logits, taken in turns; medians of each.

    The latter, in seconds, is added to `bare_s`."""
    sampler = make_sampler(SamplingParams(**rule), ids)
    uniforms = np.random.default_rng(0)
    took: tuple[list[float], list[float]] = ([], [])
    while sum(map(sum, took)) < slice_s:
        sequences = [backend.fork(origin) for _ in took]
        for _ in range(SPARE // 2):
            for draws, sequence in enumerate(sequences):
                draw = Draw(sampler, [float(uniforms.random())]) if draws else None
                start = time.perf_counter()
                backend.step([Row(sequence, [ids[0]], 1.0, wanted=int(draw is None), draw=draw)])
                took[draws].append(time.perf_counter() - start)
    bare_s.append(statistics.median(took[0]))
    return statistics.median(took[1]) / bare_s[-1]


def main() -> int:
    """Prints and keeps; exit code 1 where a rule costs too much."""
    options = rounds.parse(rounds.parser(__doc__))
    file = models.model_file("quick" if options.quick else "0.3b", "int4", options.cache)
    model = kiloq.load(file, threads=THREADS)
    backend: Any = model.engine.backend
    ids = random_ids(PROMPT, model.config.vocab_size).tolist()
    origin = backend.open()
    rounds.read(backend, origin, ids)
    bare_s: list[float] = []
    turns: dict[str, Callable[[], float]] = {
        name: partial(step_ratio, backend, origin, ids, rule, 2 * options.slice_s, bare_s)
        for name, rule in RULES.items()
    }
    slices = rounds.timed(turns, options)
    shares = {name: median(found) - 1 for name, found in slices.items()}
    print(f"a step that gives its logits: {1e3 * statistics.median(bare_s):.3f} ms")
    for name, share in shares.items():
        mark = "" if share <= MOST_SHARE else "  above the limit"
        print(f"{name:28} {share:+7.2%} (at most {MOST_SHARE:.0%}){mark}")
    figures = {
        "model": file.name,
        "vocabulary": model.config.vocab_size,
        "step_ms": 1e3 * statistics.median(bare_s),
        "steps_over_bare_steps": {name: summary(found) for name, found in slices.items()},
        "share_of_step": shares,
    }
    print(record.write("sampling", figures, options.out))
    return int(max(shares.values()) > MOST_SHARE and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
