"""`kiloq tokenize`: look at the tokens of a text, train or extend a vocabulary, encode a corpus, compare vocabularies.

In a terminal the pieces of a text are coloured in turn; a piece that ends inside a character shows its bytes. With
`--json` one object goes to stdout and nothing else.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiloq.core.display import neutralise, wants_colour
from kiloq.core.errors import UsageError
from kiloq.core.files import atomic_file, shown
from kiloq.tokenize.command_report import report_command
from kiloq.tokenize.command_train import train_command
from kiloq.tokenize.corpus.command import corpus_command

if TYPE_CHECKING:
    from kiloq.tokenize.tokenizer import Special, Tokenizer

COLOURS = ("green", "yellow", "blue", "magenta", "cyan")
CONTROL_COLOUR = "red"

_tokenizer = click.option(
    "-t",
    "--tokenizer",
    "source",
    default="qwen",
    show_default=True,
    metavar="NAME|FOLDER|FILE",
    help="qwen, a model folder, a .gguf, a tokenizer.json or a .tiktoken file.",
)
_extra = click.option(
    "--extra",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A .tiktoken file of an expanded vocabulary; may be repeated.",
)


@click.group(name="tokenize", help="Show the tokens of a text; train, extend and compare vocabularies; encode.")
def command() -> None:
    """The group of the five commands."""


command.add_command(train_command)
command.add_command(report_command)
command.add_command(corpus_command)


@command.command(name="text")
@click.argument("text", default="-")
@_tokenizer
@_extra
@click.option(
    "--special",
    default="none",
    show_default=True,
    metavar="none|all|NAMES",
    help="Control tokens to recognise in the text; names are separated by commas.",
)
@click.option("--decode", is_flag=True, help="TEXT is a list of ids; print the text that they stand for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def text_command(text: str, source: str, extra: Sequence[Path], special: str, decode: bool, as_json: bool) -> None:
    """Show the ids, pieces and bytes of TEXT, or of standard input for "-"."""
    from kiloq.tokenize.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(source, extra=extra)
    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    ids = _parse_ids(text) if decode else tokenizer.encode(text, special=_special(special))
    if as_json:
        click.echo(json.dumps(_report(tokenizer, ids)))
    elif decode:
        decoded = tokenizer.decode(ids)
        click.echo(neutralise(decoded) if sys.stdout.isatty() else decoded)
    else:
        click.echo(_pieces(tokenizer, ids), color=wants_colour(sys.stdout))


@command.command(name="expand")
@click.argument("words", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The .tiktoken file to write.")
@click.option("--start-id", type=click.IntRange(0, 1 << 21), help="First new id (default: the vocabulary's size).")
@_tokenizer
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def expand_command(words: Path, out: Path, start_id: int | None, source: str, as_json: bool) -> None:
    """Make tokens for WORDS, a file with lines of word TAB frequency."""
    from kiloq.tokenize.expand import expand, read_words
    from kiloq.tokenize.export import tiktoken_lines
    from kiloq.tokenize.tokenizer import Tokenizer
    from kiloq.tokenize.vocabulary import Vocabulary

    tokenizer = Tokenizer.load(source)
    if not isinstance(tokenizer.vocabulary, Vocabulary):
        raise UsageError(f"{source}: is a SentencePiece vocabulary, and only byte-level BPE can be extended")
    first = tokenizer.vocab_size if start_id is None else start_id
    made = expand(tokenizer.vocabulary, read_words(words), first)
    with atomic_file(out) as file:
        file.write(tiktoken_lines(made.tokens))
    if as_json:
        tokens = [{"id": id_, "bytes": base64.b64encode(t).decode()} for t, id_ in made.tokens.items()]
        click.echo(json.dumps({"out": str(out), "tokens": tokens, "skipped": made.skipped}))
        return
    for word, reason in made.skipped.items():
        click.echo(f"left out {shown(word)}: {reason}", err=True)
    click.echo(f"{out}: {len(made.tokens)} new tokens from id {first}; load them with --extra {out}")


def _special(value: str) -> Special:
    return "none" if value == "none" else "all" if value == "all" else value.split(",")


def _parse_ids(text: str) -> list[int]:
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    if bad := next((word for word in words if not (word.isascii() and word.isdecimal() and len(word) < 10)), None):
        raise UsageError(f"{shown(bad, 20)} is not a token id: give numbers separated by spaces or commas")
    return list(map(int, words))


def _report(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    tokens = [tokenizer.token_bytes(token_id) for token_id in ids]
    data = b"".join(tokens)
    return {
        "ids": list(ids),
        "pieces": [token.decode("utf-8", "replace") for token in tokens],
        "bytes": [base64.b64encode(token).decode() for token in tokens],
        "special": [tokenizer.is_special(token_id) for token_id in ids],
        "text": data.decode("utf-8", "replace"),
        "counts": {"tokens": len(ids), "bytes": len(data), "characters": len(data.decode("utf-8", "replace"))},
    }


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The pieces, then a line per token with its id, its text in quotes and its bytes, then the counts."""
    painted, lines = [], []
    for at, token_id in enumerate(ids):
        token = tokenizer.token_bytes(token_id)
        colour = CONTROL_COLOUR if tokenizer.is_special(token_id) else COLOURS[at % len(COLOURS)]
        painted.append(click.style(neutralise(token.decode("utf-8", "backslashreplace")), fg=colour))
        quoted = shown(token.decode("utf-8", "backslashreplace"), 40)
        lines.append(f"{token_id:>8}  {click.style(quoted, fg=colour)}  {token.hex(' ')}")
    size = len(tokenizer.decode_bytes(ids))
    return "\n".join(["".join(painted), *lines, f"{len(ids)} tokens, {size} bytes"])
