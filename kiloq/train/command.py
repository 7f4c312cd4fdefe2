"""`kiloq train`: the command line of this folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiloq.core.display import neutralise
from kiloq.core.errors import MissingError, UsageError

if TYPE_CHECKING:
    from kiloq.train.hardware import Device
    from kiloq.train.parallel.world import World
    from kiloq.train.settings import Recipe


@click.command("train")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--data", type=click.Path(path_type=Path), help="The corpus to learn [default: the recipe's].")
@click.option(
    "--set", "settings", multiple=True, metavar="A.B=C", help="Change a value of the recipe; may be repeated."
)
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Where to train.")
@click.option("--dry-run", is_flag=True, help="Print what the run needs, and stop.")
@click.option("--processes", type=click.IntRange(1), help="With --dry-run [default: the fewest that [parallel] needs].")
@click.option("--gpu", metavar="NAME", help="With --dry-run: a100-80, h100, rtx-4090 or another.")
@click.option(
    "--peak", type=click.FloatRange(0, min_open=True), help="With --memory, of a device of your own: bf16 Tflop/s."
)
@click.option("--memory", type=click.FloatRange(0, min_open=True), help="With --peak: its memory, GB.")
@click.option("--vocab-size", type=click.IntRange(1), help="With --dry-run: tokens, where there is no corpus yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train_command(
    recipe: Path,
    out: Path | None,
    data: Path | None,
    settings: Sequence[str],
    device: str,
    dry_run: bool,
    processes: int | None,
    gpu: str | None,
    peak: float | None,
    memory: float | None,
    vocab_size: int | None,
    as_json: bool,
) -> None:
    """Train a model from scratch, or go on with one, as RECIPE (a TOML file) says.

    OUT gets model/ (a folder for chat, serve and others), metrics.jsonl, curves.svg and checkpoints/. A run that was
    stopped or killed goes on after its last checkpoint when the same command is given again. On many processes or
    machines start it by torchrun.

    \b
    Examples:
      kiloq train recipes/tiny/train.toml --out run
      kiloq train recipes/qwen-7b/train.toml --dry-run --processes 256 --gpu a100-80
      torchrun --nproc-per-node 8 -m kiloq train recipes/small/train.toml --out run --device cuda
    """
    from kiloq.train.settings import read_recipe

    found = read_recipe(recipe, settings)
    if data is not None:
        found = replace(found, data=str(data.absolute()))
    if dry_run:
        _print_plan(found, processes, _device(gpu, peak, memory), vocab_size, as_json)
        return
    if out is None:
        raise UsageError("give --out, the folder to write, or --dry-run to see what the run needs")
    report = _run(found, out, device)
    if report is None:
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


def _device(gpu: str | None, peak: float | None, memory: float | None) -> Device | None:
    """The accelerator that a plan is for. Raises UsageError for half of one."""
    from kiloq.train.hardware import device_named, own_device

    if gpu is not None:
        return device_named(gpu)
    if (peak is None) != (memory is None):
        raise UsageError("give both --peak and --memory of a device of your own, or its name by --gpu")
    return own_device(peak, memory) if peak is not None and memory is not None else None


def _print_plan(
    recipe: Recipe, processes: int | None, device: Device | None, vocab_size: int | None, as_json: bool
) -> None:
    from kiloq.tokenize.corpus.shards import Corpus
    from kiloq.train.plan import as_json as planned_json
    from kiloq.train.plan import as_text, plan, planned_config

    if vocab_size is None and recipe.data is not None:
        vocab_size = Corpus(recipe.data).vocab_size
    found = plan(planned_config(recipe, vocab_size), recipe, processes or recipe.parallel.processes, device)
    click.echo(json.dumps(planned_json(found)) if as_json else as_text(found))


def _run(recipe: Recipe, out: Path, device: str) -> dict[str, Any] | None:
    """Train; what there is to say, in the process that speaks."""
    try:
        import torch
    except ImportError:
        raise MissingError("training needs PyTorch: run `pip install 'kiloq[train]'` to get it") from None
    from kiloq.core.work import WorkFolder
    from kiloq.train.allocator import keep_memory
    from kiloq.train.parallel.world import world

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here: see `kiloq doctor`, or train on the cpu")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file: give a folder")
    tokenizer = _tokenizer(recipe.tokenizer)  # now: a run of weeks must not find out at its end that there is none
    keep_memory()
    with world(recipe.parallel, device) as processes, WorkFolder(out).locked() if processes.main else nullcontext():
        report = _trained(recipe, out, tokenizer, processes)
    return report if processes.main else None


def _trained(recipe: Recipe, out: Path, tokenizer: Any, processes: World) -> dict[str, Any]:
    """Train, and write the model at the end; what there is to say of the run."""
    from kiloq.train.checkpoint import Parts, newest_good
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
        if processes.main:
            newest, _ = newest_good(trainer.saver.folder)
            assert newest is not None, "the last step is always saved"
            export(Parts(newest), trainer.config, out / "model", tokenizer, trainer.corpus.end_id, recipe.resolved())
        processes.wait()
    return report


def _tokenizer(source: str | None) -> Any:
    from kiloq.tokenize.tokenizer import Tokenizer

    return None if source is None else Tokenizer.load(source)


def _say(row: Mapping[str, Any]) -> None:
    """A line that moves in a terminal; elsewhere one for every evaluation."""
    if "note" in row:
        click.echo(row["note"], err=True)
        return
    line = (
        f"step {row['step']:,}: loss {row['loss']:.3f}, norm {row['norm']:.2f}, rate {row['rate']:.2g}, "
        f"{row['tokens_per_second']:,.0f} tokens/s, {row['teraflops']:.3g} Tflop/s, "
        f"{row['memory_gb']:.1f} GB, {_span(row['seconds_left'])} left"
    )
    if "bad" in row:
        click.echo(f"step {row['step']:,} was not taken: {row['bad']}", err=True)
    elif "evaluation_loss" in row:
        click.echo(f"{line}, evaluation {row['evaluation_loss']:.3f}", err=True)
        for sample in row.get("samples", ()):
            click.echo(f"  {neutralise(' '.join(sample.split()))}", err=True)
    elif sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)


def _span(seconds: float) -> str:
    """Time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
