"""`kiloq tokenize train`: a vocabulary from texts, as a folder that this and other programs load.

The folder has Qwen's file format and control tokens (`qwen.tiktoken`), the same as tokenizer.json, and a manifest with
the hash of every input. The same texts give the same bytes, however many processes count.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiloq.core.errors import UsageError
from kiloq.core.files import shown

if TYPE_CHECKING:
    from kiloq.tokenize.counting import Counts
    from kiloq.tokenize.train import Encode

ALONE_BYTES = 16 << 20  # ours: starting processes takes longer than counting this much
MAX_PROCESSES = 8  # ours: reading and adding up keeps one process busy by then
MAX_WEIGHT = 1000  # ours, in steps of 0.001


@click.command(name="train")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--vocab-size", required=True, type=int, help="Tokens to have, the 256 bytes among them.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--weights", default="", metavar="GROUP=N,...", help="How often each text of a group counts (others: 1).")
@click.option("--by", "field", help="The field of a row that names its group (default: language or lang).")
@click.option("--start", metavar="VOCABULARY", help="Go on from its tokens: qwen, a folder or a .tiktoken file.")
@click.option("--processes", type=click.IntRange(1, 256), help="Processes that count (default: one a core, 8 at most).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train_command(
    inputs: Sequence[Path],
    vocab_size: int,
    out: Path,
    weights: str,
    field: str | None,
    start: str | None,
    processes: int | None,
    as_json: bool,
) -> None:
    """Train a byte-level BPE vocabulary on INPUTS: text, .jsonl and .parquet files or folders of them.

    Text files and .jsonl may end in .gz or .zst. Rows have a field "text". Qwen's 208 control tokens follow after the
    tokens that are trained, also with --start, where they had smaller ids before.
    """
    from kiloq.core.manifest import check_replaceable
    from kiloq.tokenize.counting import count_pieces
    from kiloq.tokenize.texts import input_files, read_texts
    from kiloq.tokenize.train import check_size, train

    began = time.monotonic()
    check_replaceable(out)
    times, default = parse_weights(weights)
    first, encode = _start(start)
    check_size(vocab_size, 256 if first is None else len(first))
    files = [path for path, _ in input_files(inputs)]
    counts = count_pieces(read_texts(inputs, field), times, default, processes or _processes(files))
    ranks = train(counts.pieces, vocab_size, start=first, encode=encode, progress=_progress(vocab_size))
    config = {"vocab_size": vocab_size, "weights": weights, "by": field, "start": start}
    report = {"out": str(out), "tokens": len(ranks), **_counts(counts)}
    _write(out, ranks, files, config, report, time.monotonic() - began)
    if as_json:
        click.echo(json.dumps({**report, "documents_by_group": counts.documents, "bytes_by_group": counts.bytes}))
        return
    if counts.long_pieces:
        click.echo(f"left out {counts.long_pieces:,} pieces too long to be a token", err=True)
    click.echo(
        f"{out}: {len(ranks):,} tokens from {report['documents']:,} documents, {report['bytes']:,} bytes; "
        f"see what they do with `kiloq tokenize text -t {out} TEXT`"
    )


def parse_weights(text: str) -> tuple[dict[str, int], int]:
    """Weights of "en=1,zh=2.5" as the smallest whole numbers in the same ratio, and what a weight of 1 becomes."""
    thousandths = {}
    for part in filter(None, text.split(",")):
        name, equals, number = part.rpartition("=")
        plain = re.fullmatch(r"([0-9]{1,4})(?:\.([0-9]{1,3}))?", number)
        value = int(plain[1]) * 1000 + int((plain[2] or "").ljust(3, "0")) if plain else -1
        if not name or not equals or name in thousandths or not 0 <= value <= MAX_WEIGHT * 1000:
            raise UsageError(
                f"--weights has {shown(part, 40)}: give name=number once for each name, with a number "
                f"from 0 to {MAX_WEIGHT} and at most three decimals, such as en=1,zh=2.5"
            )
        thousandths[name] = value
    unit = gcd(1000, *thousandths.values())
    return {name: value // unit for name, value in thousandths.items()}, 1000 // unit


def _start(source: str | None) -> tuple[dict[bytes, int] | None, Encode | None]:
    """The ranks to go on from and how pieces are encoded with them."""
    if source is None:
        return None, None
    from kiloq.tokenize.bpe import ByteBPE
    from kiloq.tokenize.patterns import QWEN
    from kiloq.tokenize.tokenizer import Tokenizer
    from kiloq.tokenize.vocabulary import Vocabulary

    found = Tokenizer.load(source).vocabulary
    if not isinstance(found, Vocabulary) or found.ids is not None or found.pattern is not QWEN:
        raise UsageError(f"--start {source}: is of another kind: give a byte-level vocabulary with Qwen's pieces")
    if max(found.ranks.values()) != len(found.ranks) - 1:
        raise UsageError(f"--start {source}: is an expanded vocabulary: give the qwen.tiktoken that it was made from")
    ranks = found.ranks
    bpe = ByteBPE(ranks, QWEN)
    return ranks, lambda piece: bpe.encode(piece.decode())


def _processes(files: Sequence[Path]) -> int:
    size = sum(path.stat().st_size for path in files)
    return 1 if size < ALONE_BYTES else min(MAX_PROCESSES, os.cpu_count() or 1)


def _progress(size: int) -> Any:
    watched, last = sys.stderr.isatty(), time.monotonic()

    def progress(made: int) -> None:
        nonlocal last
        if watched and made % 256 == 0 and time.monotonic() - last > 0.5:
            last = time.monotonic()
            click.echo(f"\r{made:,} of {size:,} tokens", nl=False, err=True)
        elif watched and made == size:
            click.echo("\r\x1b[K", nl=False, err=True)

    return progress


def _counts(counts: Counts) -> dict[str, int]:
    return {
        "documents": counts.documents.total(),
        "bytes": counts.bytes.total(),
        "different_pieces": len(counts.pieces),
        "long_pieces_left_out": counts.long_pieces,
    }


def _write(
    out: Path,
    ranks: dict[bytes, int],
    files: Sequence[Path],
    config: Mapping[str, Any],
    report: Mapping[str, Any],
    seconds: float,
) -> None:
    from kiloq.core.manifest import atomic_folder, write_manifest
    from kiloq.tokenize.tokenizer import Tokenizer
    from kiloq.tokenize.vocabulary import qwen

    with atomic_folder(out) as staging:
        Tokenizer(qwen(ranks)).save(staging)
        counts = {name: value for name, value in report.items() if isinstance(value, int)}
        inputs: dict[str, Path | str] = {str(path): path for path in files}
        write_manifest(staging, "tokenizer", inputs=inputs, config=config, counts=counts, seconds=seconds)
