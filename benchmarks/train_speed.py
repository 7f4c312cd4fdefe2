"""Tokens per second, share of the matrix products' rate, memory and growth of a training step, against transformers.

    python benchmarks/train_speed.py            about 25 minutes; wants the machine for itself
    python benchmarks/train_speed.py --quick    to see that it works

Every engine has a process of its own (`train_engines.py`), which takes a step when told to; the steps of the engines
alternate, five each after one that is not counted. Both types are measured, float32 and bf16 autocast, since which is
faster depends on the processor: without tile instructions bf16 products may be the slower ones. `ratio` compares the
same type, `best ratio` each engine's faster one.

`share` is the rate of the step, operations by `kiloq.model.flops`, over that of bare matrix products of the same sizes
and type, which take their turn in the same rounds. `working bytes` is the peak of resident memory (VmHWM) above the
imports and above weights, gradients and both moments in float32: activations, casts, and whatever else is alive.

Growth: a step's time follows its operations. With tokens, matrices and vocabulary fixed it is a line in the sequence
length, whose slope is attention's; a line in the vocabulary, whose slope is the head's three products, the softmax and
AdamW's pass over two matrices; and a line in the parameters of the layers. `computed s` is what the operations would
take at the rate of bare products: the two columns rise alike, and their distance is what passes over memory cost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import record
from train_engines import BODY, SHAPES, config_of

from kiloq.model.flops import adamw_bytes, training_flops

PROGRAM = Path(__file__).parent / "train_engines.py"
COMPARED = (("33m", "transformers"), ("465m", "transformers"), ("131m", "transformers"), ("nanogpt", "gpt2"))
PRECISIONS = ("fp32", "bf16")
TOKENS = 2_048  # of a step whose growth is measured; ours
GROWTH: dict[str, list[tuple[dict[str, Any], int, int]]] = {
    "sequence": [({**BODY, "vocab_size": 4_096}, TOKENS // length, length) for length in (128, 256, 512, 1024, 2048)],
    "vocab_size": [({**BODY, "vocab_size": rows}, 4, 512) for rows in (4_096, 24_000, 65_536, 151_936)],
    "num_layers": [({**BODY, "vocab_size": 4_096, "num_layers": layers}, 4, 512) for layers in (2, 4, 8, 16)],
}


class Worker:
    """A process that takes steps."""

    def __init__(self, engine: str, precision: str, sizes: tuple[dict[str, Any], int, int]) -> None:
        order = json.dumps({"engine": engine, "precision": precision, "sizes": sizes})
        pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, PROGRAM, order], **pipe)
        self.first = json.loads(self._line())

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None
        print("step", file=self._process.stdin, flush=True)
        return float(self._line())

    def end(self) -> dict[str, Any]:
        """Figures of memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        last: dict[str, Any] = json.loads(self._line())
        self._process.wait()
        return self.first | last

    def _line(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        raise SystemExit(f"a step ended early: {self._process.args}")


def compared(name: str, peer: str, precision: str) -> dict[str, Any]:
    """kiloq, a peer and bare products on one shape, in turn."""
    shape, batch, sequence = SHAPES[name]
    config, tokens = config_of(shape, sequence), batch * sequence
    workers = {engine: Worker(engine, precision, SHAPES[name]) for engine in ("kiloq", peer, "products")}
    seconds = record.interleaved({engine: worker.step for engine, worker in workers.items()})
    found = {engine: worker.end() for engine, worker in workers.items()}
    rate = found["products"]["count"] / seconds["products"]["median"]
    flops = batch * training_flops(config, sequence)
    figures: dict[str, Any] = {"seconds": seconds, "products GFLOP/s": rate / 1e9, "step GFLOP": flops / 1e9}
    for engine in ("kiloq", peer):
        taken, memory = seconds[engine]["median"], found[engine]
        state = adamw_bytes(config) if engine == "kiloq" else 16 * memory["count"]
        figures[engine] = {
            "parameters": memory["count"],
            "tokens/s": tokens / taken,
            "peak bytes": memory["peak"],
            "working bytes": memory["peak"] - memory["before"] - state,
        }
        if peer != "gpt2" or engine == "kiloq":
            figures[engine]["share"] = flops / taken / rate
    ours, theirs = figures["kiloq"], figures[peer]
    figures["ratio"] = ours["tokens/s"] / theirs["tokens/s"]
    figures["memory ratio"] = ours["working bytes"] / theirs["working bytes"]
    print(
        f"{name:8} {precision}: {ours['tokens/s']:9,.0f} tokens/s, {figures['ratio']:.2f} of {peer}'s; "
        f"{ours['share']:.0%} of {rate / 1e9:,.0f} GFLOP/s; {ours['working bytes'] / 2**20:,.0f} MiB beside the state, "
        f"{figures['memory ratio']:.2f} of {theirs['working bytes'] / 2**20:,.0f}",
        flush=True,
    )
    return figures


def best_ratio(by_precision: dict[str, Any], peer: str) -> float:
    """kiloq's faster type against the peer's."""
    ours, theirs = (max(found[engine]["tokens/s"] for found in by_precision.values()) for engine in ("kiloq", peer))
    return float(ours / theirs)


def grown(what: str, sizes: list[tuple[dict[str, Any], int, int]]) -> dict[str, Any]:
    """Seconds of steps that differ in one number, measured in turn, and what their operations would take."""
    workers = {str(number): Worker("kiloq", "fp32", size) for number, size in enumerate(sizes)}
    bare = Worker("products", "fp32", sizes[-1])
    seconds = record.interleaved({**{name: worker.step for name, worker in workers.items()}, "products": bare.step})
    for worker in (*workers.values(), bare):
        worker.end()
    rate = bare.first["count"] / seconds.pop("products")["median"]
    points: dict[str, Any] = {
        "x": [],
        "measured s": [figure["median"] for figure in seconds.values()],
        "computed s": [],
    }
    for shape, batch, sequence in sizes:
        points["x"].append(sequence if what == "sequence" else shape[what])
        points["computed s"].append(batch * training_flops(config_of(shape, sequence), sequence) / rate)
    for name in ("measured", "computed"):
        points[f"{name} ms for each"] = 1e3 * slope(points["x"], points[f"{name} s"])
    print(f"growth with {what}: {points}", flush=True)
    return points


def slope(x: list[float], y: list[float]) -> float:
    """Of the line through points with the least squares."""
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / sum((a - x_mean) ** 2 for a in x)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small shape, one round and no growth")
    parser.add_argument("--shapes", nargs="*", choices=[name for name, _ in COMPARED], help="all by default")
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    record.ROUNDS = 1 if options.quick else record.ROUNDS
    pairs = [("quick", "transformers")] if options.quick else COMPARED
    figures: dict[str, Any] = {}
    for name, peer in pairs:
        if options.shapes and name not in options.shapes:
            continue
        wanted = ["fp32"] if peer == "gpt2" else options.precisions
        by_precision = {precision: compared(name, peer, precision) for precision in wanted}
        figures[name] = {"peer": peer, **by_precision, "best ratio": best_ratio(by_precision, peer)}
    if not (options.quick or options.no_growth):
        figures["growth"] = {what: grown(what, sizes) for what, sizes in GROWTH.items()}
    print(record.write("train-speed", figures, options.out))


if __name__ == "__main__":
    main()
