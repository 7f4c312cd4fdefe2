"""`kiloq train`: the command line of this folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kiloq.train.parallel.world import World
    from kiloq.train.settings import Recipe


@click.command("train")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--data", type=click.Path(path_type=Path), help="The corpus to learn [default: the recipe's].")
@click.option(
    "--set", "settings", multiple=True, metavar="A.B=C", help="Change a value of the recipe; may be repeated."
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train_command(
    recipe: Path, out: Path, data: Path | None, settings: Sequence[str], device: str, as_json: bool
) -> None:
    """Train a model from scratch, or go on with one, as RECIPE (a TOML file) says.

    OUT gets model/ (a folder for chat, serve and others), metrics.jsonl, curves.svg and checkpoints/. A run that was
    stopped or killed goes on after its last checkpoint when the same command is given again.
    """
    from kiloq.core.errors import MissingError

    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingError("training needs PyTorch: run `pip install 'kiloq[train]'` to get it") from None
    from kiloq.train.parallel.world import world
    from kiloq.train.settings import read_recipe

    found = read_recipe(recipe, settings)
    if data is not None:
        found = replace(found, data=str(data.absolute()))
    with world(found.parallel, device) as processes:
        report = _trained(found, out, processes)
    if not processes.main:
        return
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    if as_json:
        click.echo(json.dumps(report))
    elif report["step"] == found.steps:
        loss = report["evaluation_loss"]
        said = "no text was held out" if loss is None else f"loss {loss:.3f} nats a token on held-out text"
        click.echo(f"{out / 'model'}: {report['tokens']:,} tokens, {said}")
    else:
        click.echo(f"stopped after step {report['step']:,} of {found.steps:,}; the same command goes on")


def _trained(recipe: Recipe, out: Path, processes: World) -> dict[str, Any]:
    """Train, and write the model at the end; what there is to say of the run."""
    from kiloq.train.checkpoint import Weights, newest_good
    from kiloq.train.export import export
    from kiloq.train.loop import Trainer

    trainer = Trainer(recipe, out, processes)
    progress = trainer.run(_say if processes.main else lambda row: None)
    report: dict[str, Any] = {
        "out": str(out),
        "step": progress.step,
        "tokens": progress.tokens,
        "skipped": len(progress.skipped),
    }
    if progress.step == recipe.steps:
        evaluation = trainer.evaluation or trainer.evaluate()  # the last step has evaluated, unless it was done before
        report["evaluation_loss"] = evaluation.loss if evaluation else None
        report["evaluation_losses"] = evaluation.by_source if evaluation else {}
        newest, _ = newest_good(trainer.saver.folder)
        if processes.main and newest is not None:
            tokenizer = _tokenizer(recipe.tokenizer)
            export(Weights(newest), trainer.config, out / "model", tokenizer, trainer.corpus.end_id, recipe.resolved())
        processes.wait()
    return report


def _tokenizer(source: str | None) -> Any:
    from kiloq.tokenize.tokenizer import Tokenizer

    return None if source is None else Tokenizer.load(source)


def _say(row: Mapping[str, Any]) -> None:
    if "note" in row:
        click.echo(row["note"], err=True)
        return
    line = f"step {row['step']:,}: loss {row['loss']:.3f}, norm {row['norm']:.2f}, {row['tokens_per_second']:,.0f} tokens/s"
    if "evaluation_loss" in row:
        click.echo(f"{line}, evaluation {row['evaluation_loss']:.3f}", err=True)
    elif sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)
