"""What drawing a token costs, as a share of the step that makes its logits: 151,936 of them, one stream.

    python benchmarks/sampling.py           about a minute; wants the machine for itself

The 0.3 B shape in 4 bits: the smallest that has so many tokens, with the shortest steps. Steps that draw inside the call
are timed in turns with steps that only give their logits. At most 5 % is allowed for any rule. Random weights give flat
logits, of which a nucleus keeps tens of thousands; a low temperature makes them as steep as a trained model's.
"""

from __future__ import annotations

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
BARE = "logits alone"


def step_rate(backend: Any, origin: Any, ids: list[int], rule: dict[str, Any] | None, slice_s: float) -> float:
    """Steps per second behind the prompt, each with the logits of one token or a draw from them."""
    sampler = None if rule is None else make_sampler(SamplingParams(**rule), ids)
    uniforms = np.random.default_rng(0)
    took, steps = 0.0, 0
    while took < slice_s:
        sequence = backend.fork(origin)
        start = time.perf_counter()
        for _ in range(SPARE // 2):
            draw = None if sampler is None else Draw(sampler, [float(uniforms.random())])
            backend.step([Row(sequence, [ids[0]], 1.0, want_logits=draw is None, draw=draw)])
            steps += 1
        took += time.perf_counter() - start
    return steps / took


def main() -> int:
    """Prints and keeps; exit code 1 where a rule costs too much."""
    options = rounds.parse(rounds.parser(__doc__))
    file = models.model_file("quick" if options.quick else "0.3b", "int4", options.cache)
    model = kiloq.load(file, threads=THREADS)
    backend: Any = model.engine.backend
    ids = random_ids(PROMPT, model.config.vocab_size).tolist()
    origin = backend.open()
    rounds.read(backend, origin, ids)
    rules: dict[str, dict[str, Any] | None] = {BARE: None, **RULES}
    turns: dict[str, Callable[[], float]] = {
        name: partial(step_rate, backend, origin, ids, rule, options.slice_s) for name, rule in rules.items()
    }
    slices = rounds.timed(turns, options)
    shares = {name: median(slices[BARE]) / median(slices[name]) - 1 for name in RULES}
    for name, share in shares.items():
        mark = "" if share <= MOST_SHARE else "  above the limit"
        print(f"{name:28} {1e3 / median(slices[name]):8.3f} ms a step, {share:+7.2%} (at most {MOST_SHARE:.0%}){mark}")
    figures = {
        "model": file.name,
        "vocabulary": model.config.vocab_size,
        "steps_per_s": {name: summary(found) for name, found in slices.items()},
        "share_of_step": shares,
    }
    print(record.write("sampling", figures, options.out))
    return int(max(shares.values()) > MOST_SHARE and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
