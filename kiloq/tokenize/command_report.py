"""`kiloq tokenize report`: what vocabularies make of texts in several languages, as a table, a page or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from kiloq.core.display import neutralise, wants_colour
from kiloq.core.errors import UsageError
from kiloq.core.files import atomic_file, check_target, shown


@click.command(name="report")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-t",
    "--tokenizer",
    "sources",
    multiple=True,
    default=("qwen",),
    show_default=True,
    metavar="[NAME=]SOURCE",
    help="qwen, a model folder, a .gguf, a tokenizer.json or a .tiktoken file; may be repeated.",
)
@click.option("--baseline", help="The tokenizer that the others are compared with (default: the first).")
@click.option("--by", "field", help="The field of a row that names its language (default: language or lang).")
@click.option("--strip", is_flag=True, help="Leave out blank lines and white space around lines.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="An HTML page to write, with bars.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report_command(
    inputs: Sequence[Path],
    sources: Sequence[str],
    baseline: str | None,
    field: str | None,
    strip: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare how tokenizers compress INPUTS, language by language.

    The language of a text is its row's "language" or "lang", else the folder that its file lies in, else the name of
    the file. Files are text, .jsonl or .parquet; text and .jsonl may end in .gz or .zst. A tokenizer.json that kiloq
    itself does not read is read by the package `tokenizers`, where it is installed.
    """
    from kiloq.tokenize import compression
    from kiloq.tokenize.texts import read_texts

    named = _named(sources)
    first = next(iter(named)) if baseline is None else baseline
    if first not in named:
        raise UsageError(f"--baseline {shown(first, 60)} is none of the tokenizers: choose of {', '.join(named)}")
    if out is not None:
        check_target(out)
    tokenizers = {name: compression.load_any(source) for name, source in named.items()}
    found = compression.measure(read_texts(inputs, field), tokenizers, first, strip=strip)
    if out is not None:
        with atomic_file(out) as file:
            file.write(compression.report_page(found).encode())
    if as_json:
        click.echo(json.dumps(compression.as_json(found)))
        return
    if found.empty:
        click.echo(f"left out {found.empty:,} empty documents", err=True)
    _print_table(compression.rows(found))
    if out is not None:
        click.echo(f"wrote {out}", err=True)


def _named(sources: Sequence[str]) -> dict[str, str]:
    """Tokenizers by the name to show: what stands before "=", or the source itself."""
    named: dict[str, str] = {}
    for source in sources:
        name, equals, value = source.partition("=")
        if not equals or Path(source).exists():
            name, value = source, source
        if not name or not value or name in named:
            raise UsageError(f"--tokenizer {shown(source, 60)}: give each a source and a name of its own (NAME=SOURCE)")
        named[name] = value
    return named


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    colour = wants_colour(sys.stdout)
    for row in rows:
        cells = [text.ljust(widths[0]) if not at else text.rjust(widths[at]) for at, text in enumerate(row)]
        line = neutralise("  ".join(cells)).rstrip()
        click.echo(click.style(line, bold=True) if colour and row is rows[0] else line, color=colour)
