"""`kiloq tokenize corpus`: texts to shards of token ids, the form in which training reads them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click


@click.command(name="corpus")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-t", "--tokenizer", default="qwen", show_default=True, metavar="NAME|FOLDER|FILE", help="The vocabulary."
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--by", help="The field of a row that names its source (default: that of a prepared folder, or language)."
)
@click.option("--end", metavar="TOKEN", help="The control token after each document (default: <|endoftext|>).")
@click.option("--exact", is_flag=True, help="Encode with tiktoken alone: six times slower.")
@click.option("--processes", type=click.IntRange(1, 256), help="Processes that encode (default: one a core).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def corpus_command(
    inputs: Sequence[Path],
    tokenizer: str,
    out: Path,
    by: str | None,
    end: str | None,
    exact: bool,
    processes: int | None,
    as_json: bool,
) -> None:
    """Encode INPUTS: folders that `kiloq prepare` wrote, or text, .jsonl and .parquet files or folders of them.

    A run that was killed goes on where it was when the same command is given again.
    """
    from kiloq.core.machine import usable_cores
    from kiloq.core.manifest import check_replaceable, write_manifest
    from kiloq.core.work import WorkFolder
    from kiloq.tokenize.corpus.encode import Encoder, ExactEncoder
    from kiloq.tokenize.corpus.run import encode_corpus, finish, job_of
    from kiloq.tokenize.texts import is_prepared

    began = time.monotonic()
    check_replaceable(out)
    encoder = (ExactEncoder if exact else Encoder).load(tokenizer, end)
    if by is None and all(is_prepared(path) for path in inputs):
        by = "source"
    job = job_of(inputs, tokenizer, encoder, by, exact)
    work = WorkFolder.beside(out, "encoding")
    with work.locked():
        result = work.begin_result(job)
        records = encode_corpus(job, encoder, work.folder, processes or usable_cores(), _progress)
        counts = finish(work.folder, records, encoder)
        seconds = time.monotonic() - began
        files = {path: Path(path) for unit in job["units"] for path, *_ in unit}
        config = {key: job[key] for key in ("tokenizer", "end", "by", "exact")}
        write_manifest(result, "corpus", inputs={**files}, config=config, counts=counts, seconds=seconds)
        work.deliver(out)
    report = {"out": str(out), "shards": len(records), **counts, "seconds": round(seconds, 3)}
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(
        f"{out}: {counts['tokens']:,} tokens in {counts['documents']:,} documents, {len(records):,} shards; "
        f"{counts['bytes'] / max(1, counts['tokens']):.2f} bytes a token, {counts['bytes'] / 1e6 / seconds:,.0f} MB/s"
    )


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{done:,} of {of:,} shards" if done < of else "\r\x1b[K", nl=False, err=True)
