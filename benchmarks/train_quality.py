"""What `kiloq train` learns of Shakespeare's characters in the time that nanoGPT's CPU setting takes: three seeds each.

    python benchmarks/train_quality.py            about ten minutes; wants the machine for itself

kiloq is the whole command on recipes/shakespeare, timed from its start to its exit: imports, evaluation and files are
in it. The peer is transformers' GPT-2 in nanoGPT's shape (`train_engines.gpt2_network`), taught as nanoGPT's README
says for a CPU: 2,000 steps of 12 windows of 64 characters, AdamW with nanoGPT's numbers, float32, no compiler; the time
is that of its steps alone. Each seed trains both, one after the other. The loss, in nats a character, is the mean over
all 1,742 blocks of 64 characters in the last tenth of the text, for both. nanoGPT's README gives 1.88 for its run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from train_engines import SHAPES, THREADS, gpt2_network

RECIPE = Path(__file__).parents[1] / "recipes" / "shakespeare"
SEEDS = (0, 1, 2)
STEPS, BATCH, SEQUENCE = 2_000, 12, 64  # nanoGPT, README, "quick start" on a CPU
PEAK_RATE, LEAST_RATE, WARM_UP, BETAS, DECAY = 1e-3, 1e-4, 100, (0.9, 0.99), 0.1  # config/train_shakespeare_char.py
DOCUMENTED = 1.88  # nanoGPT, README

Array = np.ndarray[Any, np.dtype[np.int64]]


def kiloq(folder: Path, seed: int, steps: int | None) -> dict[str, float]:
    """The command; its seconds and its evaluation."""
    changes = [f"seed={seed}", f'data="{folder / "train"}"', f'evaluation="{folder / "valid"}"']
    changes += [f'tokenizer="{folder / "vocabulary"}"', *([f"steps={steps}"] if steps else [])]
    options = [word for change in changes for word in ("--set", change)]
    command = [sys.executable, "-m", "kiloq", "train", RECIPE / "train.toml", "--out", folder / f"run-{seed}"]
    start = time.perf_counter()
    done = subprocess.run([*command, "--json", *options], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"kiloq train failed: {done.stderr[-500:]}")
    return {"seconds": seconds, "loss": json.loads(done.stdout)["evaluation_loss"]}


def peer(train_T: Array, valid_T: Array, seed: int, steps: int) -> dict[str, float]:
    """nanoGPT's loop around GPT-2; the seconds of its steps and the loss of its last weights."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = gpt2_network(SHAPES["nanogpt"][0], SEQUENCE)
    groups = [
        {"params": [p for p in network.parameters() if p.dim() >= 2], "weight_decay": DECAY},
        {"params": [p for p in network.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, fused=True)
    network.train()
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        places = random.integers(0, len(train_T) - SEQUENCE, BATCH)
        loss = peer_loss(network, np.stack([train_T[at : at + SEQUENCE + 1] for at in places]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "loss": evaluated(network, valid_T)}


def peer_loss(network: Any, ids_BT: Array) -> Any:
    """Mean over all characters but the first of each row."""
    ids = torch.from_numpy(ids_BT)
    logits_BTV = network(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def evaluated(network: Any, valid_T: Array) -> float:
    """Mean over all whole blocks of the text, as kiloq cuts them."""
    network.eval()
    count = (len(valid_T) - 1) // SEQUENCE
    blocks = np.stack([valid_T[at * SEQUENCE : (at + 1) * SEQUENCE + 1] for at in range(count)])
    return sum(float(peer_loss(network, part)) * len(part) for part in np.array_split(blocks, 16)) / count


def rate(step: int) -> float:
    """nanoGPT's warm-up and cosine."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / (WARM_UP + 1)
    done = (step - WARM_UP) / (STEPS - WARM_UP)
    return LEAST_RATE + 0.5 * (1 + math.cos(math.pi * done)) * (PEAK_RATE - LEAST_RATE)


def characters(folder: Path) -> tuple[Array, Array]:
    """nanoGPT's numbers of the characters of both parts: their places in the sorted alphabet."""
    parts = [np.frombuffer((folder / f"{name}.txt").read_bytes(), np.uint8) for name in ("train", "valid")]
    alphabet = np.unique(np.concatenate(parts))
    train_T, valid_T = (np.searchsorted(alphabet, part).astype(np.int64) for part in parts)
    return train_T, valid_T


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and 20 steps")
    parser.add_argument("--text", type=Path, help="another file than the one beside the repository")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    runs: dict[str, list[dict[str, float]]] = {"kiloq": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "raw"
        text = [options.text] if options.text else []
        subprocess.run([sys.executable, RECIPE / "corpus.py", *text, "--out", folder], check=True)
        train_T, valid_T = characters(folder)
        for seed in SEEDS[:1] if options.quick else SEEDS:
            runs["peer"].append(peer(train_T, valid_T, seed, 20 if options.quick else STEPS))
            runs["kiloq"].append(kiloq(folder, seed, 20 if options.quick else None))
            for who, found in runs.items():
                print(f"seed {seed}: {who:6} {found[-1]['loss']:.3f} in {found[-1]['seconds']:.1f} s", flush=True)
    seconds = {who: statistics.median(run["seconds"] for run in found) for who, found in runs.items()}
    figures = {"runs": runs, "median seconds": seconds, "time ratio": seconds["kiloq"] / seconds["peer"]}
    figures["worst loss"] = {who: max(run["loss"] for run in found) for who, found in runs.items()}
    figures["nanoGPT documents"] = DOCUMENTED
    print(record.write("train-quality", figures, options.out))


if __name__ == "__main__":
    main()
