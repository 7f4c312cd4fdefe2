"""`kiloq prepare`: the command line of this folder.

What is being done goes to stderr as one line that moves, the funnel to stdout, with `--json` as one object and nothing
else. Imports wait until the command runs, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kiloq.prepare.pipeline.funnel import Funnel
    from kiloq.prepare.pipeline.recipe import Recipe


@click.command("prepare")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--set", "settings", multiple=True, metavar="A.B=C", help="Change a value of the recipe; may be repeated."
)
@click.option(
    "--engine", type=click.Choice(["native", "ray"]), help="This machine, or a Ray cluster [default: the recipe's]."
)
@click.option("--workers", type=click.IntRange(1, 100_000), help="Processes at work [default: one a core].")
@click.option("--dry-run", is_flag=True, help="Print the whole recipe and what it will read, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prepare_command(
    recipe: Path,
    out: Path,
    settings: Sequence[str],
    engine: str | None,
    workers: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a clean corpus from raw files, as RECIPE (a TOML file) says.

    The folder gets documents/ (Parquet), removed/ (every dropped document with its reason), report.html, a data card,
    funnel.json, mix.json and a manifest. A run that was killed goes on where it was when the same command is given
    again.

    \b
    Examples:
      kiloq prepare recipes/tiny/prepare.toml --out corpus
      kiloq prepare web.toml --out web --set step.2.least=0.5 --dry-run
    """
    from kiloq.prepare.pipeline.recipe import read_recipe
    from kiloq.prepare.pipeline.run import prepare

    found = read_recipe(recipe, settings)
    found = replace(found, engine=engine or found.engine, workers=workers or found.workers)
    if dry_run:
        _print_plan(found, as_json)
        return
    line = Line()
    try:
        funnel = prepare(found, out, line.show)
    finally:
        line.end()
    if as_json:
        click.echo(json.dumps({"out": str(out), **funnel.record()}))
        return
    _print_funnel(funnel)
    click.echo(f"\n{out}: {funnel.documents_out:,} documents; open {out / 'report.html'} to see why others went")


def _print_plan(recipe: Recipe, as_json: bool) -> None:
    from kiloq.prepare.pipeline.run import checked, planned
    from kiloq.prepare.pipeline.stages import stages_of

    checked(recipe)
    parts = len(planned(recipe))
    passes = len(stages_of(recipe.step))
    if as_json:
        click.echo(json.dumps({"recipe": recipe.resolved(), "parts": parts, "passes": passes}))
        return
    click.echo(json.dumps(recipe.resolved(), indent=1, ensure_ascii=False))
    click.echo(f"{parts:,} parts, {passes} {'pass' if passes == 1 else 'passes'} over the documents", err=True)


def _print_funnel(funnel: Funnel) -> None:
    click.echo(f"{'step':<24}{'in':>12}{'removed':>12}{'out':>12}")
    for label, counts in funnel.steps():
        came, left = counts["documents in"], counts["documents out"]
        click.echo(f"{label:<24}{came:>12,}{came - left:>12,}{left:>12,}")


class Line:
    """One line on stderr that says what is being done: rewritten in a terminal, else written when the task changes."""

    def __init__(self) -> None:
        self._watched, self._last = sys.stderr.isatty(), ""

    def show(self, what: str, done: int, of: int) -> None:
        """`done` of `of` pieces of `what`."""
        if self._watched:
            click.echo(f"\r\x1b[K{what}: {done:,} of {of:,}", nl=False, err=True)
        elif what != self._last:
            click.echo(f"{what}: {of:,} to do" + (f", {done:,} done before" if done else ""), err=True)
        self._last = what

    def end(self) -> None:
        """Clear the line."""
        if self._watched and self._last:
            click.echo("\r\x1b[K", nl=False, err=True)
