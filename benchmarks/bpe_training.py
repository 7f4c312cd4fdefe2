"""Training a vocabulary of 32,000 tokens on 100 MB: `kiloq tokenize train` against rustbpe and tokenizers.

    python -m venv ENV && ENV/bin/pip install -e '.[data]' -c constraints.txt
    ENV/bin/pip install -c constraints.txt rustbpe tokenizers
    ENV/bin/python benchmarks/bpe_training.py          about fifteen minutes; what is not installed is left out

The text is that of encoding.py: prose in many languages and Python sources. Every turn is a process of its own that
reads the documents from one JSON-lines file with kiloq's reader and trains with Qwen's expression; the figures are its
processor time, that of its own processes included, and its peak resident memory, which these have little of. All use as many threads or processes as they like, but kiloq also one
alone. kiloq's figures have more in them: the whole command, NFC and writing the folder. rustbpe's ranks must be kiloq's;
tokenizers settles ties in its own way.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import record
from encoding import TEXTS, real_texts

from kiloq.tokenize.command import command
from kiloq.tokenize.export import tiktoken_lines
from kiloq.tokenize.normalize import nfc, well_formed
from kiloq.tokenize.patterns import QWEN
from kiloq.tokenize.texts import read_texts

MEGABYTES, TOKENS = 100.0, 32_000


def kiloq(source: Path, *more: str) -> bytes:
    """The command, which writes a folder."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        command.main(["train", str(source), "--vocab-size", str(TOKENS), "-o", str(out), *more], standalone_mode=False)
        return (out / "qwen.tiktoken").read_bytes()


def kiloq_alone(source: Path) -> bytes:
    """The command in one process."""
    return kiloq(source, "--processes", "1")


def rustbpe(source: Path) -> bytes:
    """The library from an iterator of texts."""
    import rustbpe

    made = rustbpe.Tokenizer()
    made.train_from_iterator(_texts(source), TOKENS, pattern=QWEN.expression)
    return tiktoken_lines({bytes(token): rank for token, rank in made.get_mergeable_ranks()})


def tokenizers(source: Path) -> bytes:
    """The library with the same split."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN.expression), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _texts(source), trainers.BpeTrainer(vocab_size=TOKENS, initial_alphabet=alphabet, show_progress=False)
    )
    assert made.get_vocab_size() == TOKENS
    return b""


TRAINERS: dict[str, Callable[[Path], bytes]] = {
    "kiloq": kiloq, "kiloq, one process": kiloq_alone, "rustbpe": rustbpe, "tokenizers": tokenizers,
}  # fmt: skip


def _texts(source: Path) -> Iterator[str]:
    return (text.text for text in read_texts([source]))


def used() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def child(name: str, source: Path) -> dict[str, Any]:
    """What a turn does: trains, and says what it took."""
    before = used()
    ranks = TRAINERS[name](source)
    seconds = used() - before
    status = Path("/proc/self/status").read_text()  # getrusage's figure begins at the parent's
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    return {"cpu_s": seconds, "peak_mb": peak_kib / 1024, "sha256": hashlib.sha256(ranks).hexdigest()}


def turn(name: str, source: Path, found: list[dict[str, Any]]) -> Callable[[], float]:
    """Processor seconds of `child` in a process of its own; what it says is kept."""

    def run() -> float:
        line = [sys.executable, __file__, "--child", name, "--texts", source]
        done = subprocess.run(line, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        return float(found[-1]["cpu_s"])

    return run


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the text and one round")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="a folder of text files")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    parser.add_argument("--child", choices=TRAINERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.texts)))
        return
    record.ROUNDS = 1 if options.quick else record.ROUNDS
    texts = real_texts(options.texts, MEGABYTES / 20 if options.quick else MEGABYTES)
    names = [name for name in TRAINERS if name.startswith("kiloq") or importlib.util.find_spec(name)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.jsonl"
        with source.open("w", encoding="utf-8") as file:  # in NFC, to which kiloq alone would bring it
            file.writelines(json.dumps({"text": nfc(well_formed(text))}) + "\n" for text in texts)
        seconds = record.interleaved({name: turn(name, source, found[name]) for name in names})
    assert len({each["sha256"] for name in names if name != "tokenizers" for each in found[name]}) == 1
    figures: dict[str, Any] = {"bytes": sum(len(text.encode()) for text in texts), "tokens": TOKENS}
    for name in names:
        peaks = [each["peak_mb"] for each in found[name]]
        figures[name] = {"cpu_s": seconds[name], "peak_mb": max(peaks)}
        print(f"{name:20} {seconds[name]['median']:8.1f} CPU s {max(peaks):8,.0f} MB")
    print(record.write("bpe-training", figures, options.out))


if __name__ == "__main__":
    main()
