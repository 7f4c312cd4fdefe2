"""Streams side by side: `kiloq serve` against llama.cpp's server on the same int8 weights, by the same load generator.

    python benchmarks/serving.py [--quick]

Closed loops of 1 and of 16 clients on the default model (Q8_0), prompts of about 100 tokens, answers of 64; and 16
clients whose prompts share nine tenths. Servers take turns, both are loaded all the time, the load generator runs on
the same two cores. Aimed at: 16 streams give 4 times the tokens of one, and twice those of llama.cpp's server, with a
better p95 of the time to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path
from typing import Any

import models
import record
import servers

from kiloq.serve.load import Load, make_prompts, report, run

STREAMS, ANSWER, WORDS = 16, 64, 90
LEAST_OVER_ONE, LEAST_OVER_LLAMA = 4.0, 2.0
KINDS = {"1 stream": (1, 0.0), "16 streams": (STREAMS, 0.0), "16 streams, shared prefix": (STREAMS, 0.9)}


def measured(server: servers.ServerProcess, kind: str, turn: int, requests: int, answer: int) -> dict[str, Any]:
    """One run of one kind of load; prompts differ from turn to turn, so that no cache knows them."""
    clients, shared = KINDS[kind]
    prompts = make_prompts(requests * clients, WORDS, shared, seed=hash((kind, turn)) & 0xFFFF)
    load = Load(server.url, "model", prompts, answer, clients)
    seen, seconds = asyncio.run(run(load))
    figures = report(load, seen, seconds)
    if figures["answered"] != figures["requests"]:
        raise SystemExit(f"{server.url} answered {figures['answered']} of {figures['requests']}: {figures['errors']}")
    return figures


def middle(runs: list[dict[str, Any]], *path: str) -> float:
    """The median over rounds of one figure."""
    values = []
    for figures in runs:
        value: Any = figures
        for name in path:
            value = value[name]
        values.append(float(value))
    return statistics.median(values)


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """What is kept of the rounds of one server under one load."""
    kept = {"tokens_per_s": middle(runs, "tokens_per_s")}
    for name in ("time_to_first_token_s", "inter_token_s", "end_to_end_s"):
        kept |= {f"{name}_{p}": middle(runs, name, p) for p in ("p50", "p95", "p99")}
    return kept


def main() -> int:
    """Prints and keeps; exit code 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round; the figures say little")
    parser.add_argument("--cache", type=Path, default=models.default_folder())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds, requests, answer = (1, 1, 8) if options.quick else (record.ROUNDS, 3, ANSWER)
    file = models.model_file("default", "int8", options.cache)
    both = {
        "kiloq": servers.kiloq(file, "--threads", str(servers.THREADS)),
        "llama.cpp": servers.llama(file, STREAMS, 512),
    }
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {name: {kind: [] for kind in KINDS} for name in both}
    try:
        for server in both.values():
            measured(server, "1 stream", -1, 1, 8)  # what only a first time costs
        for turn in range(rounds):
            for kind in KINDS:
                for name, server in both.items():
                    runs[name][kind].append(measured(server, kind, turn, requests, answer))
    finally:
        for server in both.values():
            server.stop()
    figures: dict[str, Any] = {name: {kind: summary(found) for kind, found in of.items()} for name, of in runs.items()}
    ours, theirs = figures["kiloq"], figures["llama.cpp"]
    figures["ratios"] = {
        "16 streams over 1": ours["16 streams"]["tokens_per_s"] / ours["1 stream"]["tokens_per_s"],
        "llama.cpp, 16 streams over 1": theirs["16 streams"]["tokens_per_s"] / theirs["1 stream"]["tokens_per_s"],
        **{f"over llama.cpp, {kind}": ours[kind]["tokens_per_s"] / theirs[kind]["tokens_per_s"] for kind in KINDS},
        **{
            f"p95 to the first token, llama.cpp's over ours, {kind}": theirs[kind]["time_to_first_token_s_p95"]
            / ours[kind]["time_to_first_token_s_p95"]
            for kind in KINDS
        },
    }
    for name in both:
        for kind, found in figures[name].items():
            print(f"{name:10} {kind:28} {found['tokens_per_s']:8.1f} tokens/s   first token p50 "
                  f"{found['time_to_first_token_s_p50']:.3f} p95 {found['time_to_first_token_s_p95']:.3f} s   between p50 "
                  f"{1e3 * found['inter_token_s_p50']:.1f} p95 {1e3 * found['inter_token_s_p95']:.1f} ms")  # fmt: skip
    for name, ratio in figures["ratios"].items():
        print(f"{name:70} {ratio:.2f}")
    print(record.write("serving", figures, options.out))
    ratios = figures["ratios"]
    reached = ratios["16 streams over 1"] >= LEAST_OVER_ONE and ratios["over llama.cpp, 16 streams"] >= LEAST_OVER_LLAMA
    return int(not options.quick and not reached)


if __name__ == "__main__":
    sys.exit(main())
