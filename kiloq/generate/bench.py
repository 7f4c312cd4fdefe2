"""`kiloq bench MODEL`: how fast this machine runs a model, in the terms of `benchmarks/`.

Times the backend itself with random tokens: reading a prompt, answering alone, answering 8 at once. Medians; a machine
that others use gives other numbers every time. Comparisons with other engines are `make bench`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import numpy as np

from kiloq.core.errors import UsageError
from kiloq.generate.backend import Backend, Row
from kiloq.generate.options import loading, model_options, open_model

LEAST_S = 0.5  # of one repetition of decoding, so that the clock and the start count for nothing


@click.command("bench")
@click.argument("model")
@click.option("--prompt", "prompt_tokens", type=int, default=512, show_default=True, help="Tokens of the prompt.")
@click.option("--repeat", type=int, default=5, show_default=True, help="Repetitions; medians are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@model_options
def bench_command(model: str, prompt_tokens: int, repeat: int, as_json: bool, **options: Any) -> None:
    """Measure MODEL (a name, a folder or a .gguf file): tokens per second of prompt and answer."""
    if prompt_tokens < 1 or not 1 <= repeat <= 1000:
        raise UsageError(
            f"--prompt is {prompt_tokens} and --repeat {repeat}: they must be at least 1, --repeat at most 1000"
        )
    started = time.perf_counter()
    loaded = open_model(model, **loading(options))
    load_s = time.perf_counter() - started
    limit = loaded.config.max_length
    if prompt_tokens >= limit:
        raise UsageError(f"--prompt is {prompt_tokens} and the model's context {limit}: leave room for an answer")
    backend = loaded.engine.backend
    record = {"model": model, "engine": backend.name, "weights": backend.dtype, "load_s": round(load_s, 3)} | {
        name: round(rate, 1) for name, rate in measure(backend, prompt_tokens, repeat).items()
    }
    if as_json:
        click.echo(json.dumps(record))
        return
    for name, value in record.items():
        click.echo(f"{name.replace('_', ' '):24} {value}")


def measure(backend: Backend, prompt_tokens: int, repeat: int) -> dict[str, float]:
    """Tokens per second, medians of `repeat`: prefill, decode alone, decode of 8 sequences together (their sum)."""
    random = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return [int(token) for token in random.integers(0, backend.config.vocab_size, count)]

    def prefill() -> float:
        prompt = ids(prompt_tokens)
        return prompt_tokens / _seconds(lambda: backend.step([Row(backend.open(), prompt, 1.0, wanted=1)]))

    def decode(streams: int) -> float:
        sequences = [backend.open() for _ in range(streams)]
        backend.step([Row(sequence, ids(8), 1.0) for sequence in sequences])
        steps, seconds = 0, 0.0
        room = backend.config.max_length - 8
        while seconds < LEAST_S and steps < room:
            rows = [Row(sequence, ids(1), 1.0, wanted=1) for sequence in sequences]
            seconds += _seconds(lambda rows=rows: backend.step(rows))  # type: ignore[misc]
            steps += 1
        return streams * steps / seconds

    prefill()  # the first touch of buffers is not what is measured
    kinds: dict[str, Callable[[], float]] = {
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": lambda: decode(1),
        "decode_8_streams_tokens_per_s": lambda: decode(8),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeat):  # in turns, so that a slow moment of the machine hits all of them
        for name, run in kinds.items():
            rates[name].append(run())
    return {name: median(values) for name, values in rates.items()}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
