"""What the programs share that time kiloq alone: the command line, interleaved rounds, sequences, texts.

A figure is a median over rounds in which every turn is taken once, so that a slow moment of the machine hits all of
them; a turn in which somebody else used the processors is repeated while there is patience (`quiet.py`).
"""

from __future__ import annotations

import argparse
import math
import subprocess
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import models
import numpy as np
import record
from peers import BATCH
from quiet import PATIENCE_S, quietly
from ratios import Slice

from kiloq.generate.backend import Row

TEXTS = Path(__file__).parents[2] / "shared" / "data" / "pretrain_text"
SLICE_S, QUICK_SLICE_S = 0.5, 0.05  # timed at a stretch

Key = TypeVar("Key", bound=Hashable)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all of these programs have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it works; the figures say little"
    )
    made.add_argument("--rounds", type=int, default=record.ROUNDS)
    made.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds to wait for a quiet moment, a turn")
    made.add_argument("--cache", type=Path, default=models.default_folder(), help="keeps the models and small programs")
    made.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with `slice_s`; --quick is one round without patience."""
    options = made.parse_args()
    options.slice_s = SLICE_S
    if options.quick:
        options.rounds, options.patience, options.slice_s = 1, 0.0, QUICK_SLICE_S
    return options


def timed(
    turns: dict[Key, Callable[[], float]], options: argparse.Namespace, warm_up: bool = True
) -> dict[Key, list[Slice]]:
    """Every turn's figures, one a round; before them each turn once, for what only a first time costs."""
    for turn in turns.values() if warm_up and not options.quick else ():
        turn()
    slices: dict[Key, list[Slice]] = {key: [] for key in turns}
    for _ in range(options.rounds):
        for key, turn in turns.items():
            slices[key].append(Slice(*quietly(turn, options.patience)))
    return slices


def read(backend: Any, sequence: Any, ids: Sequence[int]) -> None:
    """Appends tokens to a sequence, in pieces as the engine gives them."""
    for start in range(0, len(ids), BATCH):
        backend.step([Row(sequence, list(ids[start : start + BATCH]), 1.0)])


def cache_bytes(backend: Any) -> int:
    """What the keys and values of all sequences take: the blocks in use, whole."""
    used, _allocated = backend._decoder.cache_blocks
    return int(used * backend._decoder.cache_block_bytes)


def text_of(part: str) -> str:
    """WikiText-2's "valid" or "test", unpacked by the `zstd` program."""
    packed = TEXTS / f"wikitext2_{part}.txt.zst"
    if not packed.exists():
        raise SystemExit(f"{packed} is not there: put the shared folder beside the repository")
    return subprocess.run(["zstd", "-dc", packed], capture_output=True, check=True).stdout.decode()


def perplexity(backend: Any, samples: Iterable[Sequence[int]]) -> float:
    """exp of the mean negative log-likelihood of each next token; every sample starts afresh."""
    total, count = 0.0, 0
    for ids in samples:
        logits_TV = backend.logits(list(ids))[:-1]
        peaks_T = logits_TV.max(axis=1)
        sums_T = np.exp(logits_TV - peaks_T[:, None]).sum(axis=1, dtype=np.float64)
        own_T = logits_TV[np.arange(len(ids) - 1), list(ids[1:])]
        total += float((peaks_T + np.log(sums_T) - own_T).sum())
        count += len(ids) - 1
    return math.exp(total / count)
