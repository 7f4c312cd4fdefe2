"""`kiloq quantize`: the command line of this folder.

The plan and a line for each layer go to stderr, the result to stdout, with `--json` as one object and nothing else.
Imports wait until the command runs, so that `--help` is quick.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiloq.core.errors import MissingError, UsageError

if TYPE_CHECKING:
    from kiloq.convert.source import ModelSource
    from kiloq.quantize.plan import Plan
    from kiloq.quantize.run import Outcome, Samples
    from kiloq.quantize.settings import Settings

HELD_OUT = 8  # one of so many calibration samples measures perplexity where no text is given for it
EVALUATION_SAMPLES = 8
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("quantize")
@click.argument("model")
@click.option("--bits", type=click.Choice(["4", "8"]), default="4", show_default=True, help="Bits of a weight.")
@click.option("--group", type=click.Choice(["32", "64", "128", "-1"]), default="128", show_default=True,
              help="Columns that share a scale; -1: the whole row.")  # fmt: skip
@click.option("--method", type=click.Choice(["gptq", "rtn"]), default="gptq", show_default=True,
              help="GPTQ, or round to nearest.")  # fmt: skip
@click.option("--symmetric/--asymmetric", default=True, show_default=True, help="Without or with zero points.")
@click.option("--exact-peaks/--reference-peaks", default=None,
              help="Keep the largest weight of a group exactly [default: for 8 bits], or cut it by half a step as "
                   "the reference does.")  # fmt: skip
@click.option("--act-order", is_flag=True, help="Columns with the largest inputs first (desc_act).")
@click.option("--static-groups", is_flag=True, help="With --act-order: keep groups of neighbouring columns.")
@click.option("--damping", type=float, default=0.01, show_default=True, help="Share of the Hessian's mean diagonal.")
@click.option("--true-sequential/--one-shot", default=True, show_default=True,
              help="Let each matrix see the quantised ones before it in its layer.")  # fmt: skip
@click.option("--search", is_flag=True, help="Shrink the range of a group where that lowers its rounding error.")
@click.option("--calibration", type=FILE, help="Conversations (.json, .jsonl) or plain text; needed by gptq.")
@click.option("--samples", type=click.IntRange(1, 4096), default=64, show_default=True, help="Calibration samples.")
@click.option("--length", type=click.IntRange(2, 1 << 17), default=512, show_default=True, help="Tokens of a sample.")
@click.option("--eval", "evaluation", type=FILE, help="Text for perplexity [default: the tail of the calibration].")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]),
              help="Type of embeddings, norms, head and biases [default: as stored].")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--dry-run", is_flag=True, help="Print what it will take on this machine, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def quantize_command(model: str, out: Path, dtype: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Quantise MODEL (a name, a folder or a .gguf file) to a GPTQ folder that kiloq, transformers and vLLM read.

    A run that was killed goes on where it was when the same command is given again.

    \b
    Examples:
      kiloq quantize Qwen-1_8B-Chat --calibration talks.jsonl --out Qwen-1_8B-Chat-Int4
      kiloq quantize smollm2 --bits 8 --method rtn --out smollm2-int8
    """
    settings = _settings(options)
    if settings.method == "gptq" and options["calibration"] is None:
        raise UsageError(
            "gptq needs texts like those that the model will see: give --calibration FILE, or --method rtn"
        )
    _need_torch()
    from kiloq.convert.assets import resolve
    from kiloq.convert.source import open_model
    from kiloq.quantize.packing import check_shape

    source = open_model(resolve(model))
    if source.quantised and source.kind != "gguf":
        raise UsageError(f"{source.path}: is quantised already: quantise the original weights")
    for name in source.names():
        if name.startswith("layers.") and len(source.shape(name)) == 2:
            check_shape(name, source.shape(name))
    samples, texts = _read_texts(source, options)
    plan = _plan(source, settings, samples)
    if dry_run:
        _print_plan(plan, samples, as_json)
        return
    if not plan.fits:
        click.echo("kiloq: this needs more memory than is free; --dry-run shows the parts", err=True)
    outcome, size = _run(source, settings, samples, texts, out, dtype)
    _print_result(out, outcome, size, as_json)


def _settings(options: dict[str, Any]) -> Settings:
    from kiloq.quantize.settings import Settings

    bits, exact_peaks = int(options["bits"]), options["exact_peaks"]
    return Settings(
        method=options["method"],
        bits=bits,
        group=int(options["group"]),
        symmetric=options["symmetric"],
        exact_peaks=bits == 8 and not options["search"] if exact_peaks is None else exact_peaks,
        desc_act=options["act_order"],
        static_groups=options["static_groups"],
        damping=options["damping"],
        true_sequential=options["true_sequential"],
        search=options["search"],
    )


def _need_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingError("quantising needs PyTorch: run `pip install 'kiloq[train]'` to get it")


def _read_texts(source: ModelSource, options: dict[str, Any]) -> tuple[Samples, dict[str, Path]]:
    """The samples, and the files that they come from by use."""
    from kiloq.convert.write import load_tokenizer
    from kiloq.quantize.calibration import check_length, read_samples
    from kiloq.quantize.run import Samples

    texts = {use: options[use] for use in ("calibration", "evaluation") if options[use] is not None}
    if not texts:
        return Samples(), texts
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise UsageError(f"{source.path}: comes without a tokenizer, so no text can be read: add one, or use rtn alone")
    length = check_length(options["length"], source.config.train_length)
    found = {
        "calibration": read_samples(texts["calibration"], tokenizer, length, options["samples"])
        if "calibration" in texts
        else [],
        "evaluation": read_samples(texts["evaluation"], tokenizer, length, EVALUATION_SAMPLES)
        if "evaluation" in texts
        else [],
    }
    if not found["evaluation"] and len(found["calibration"]) >= HELD_OUT:
        kept = len(found["calibration"]) - min(EVALUATION_SAMPLES, len(found["calibration"]) // HELD_OUT)
        found = {"calibration": found["calibration"][:kept], "evaluation": found["calibration"][kept:]}
        texts["evaluation"] = texts["calibration"]
    return Samples(**found), texts


def _plan(source: ModelSource, settings: Settings, samples: Samples) -> Plan:
    from kiloq.quantize.plan import make_plan

    sizes = [sum(map(len, part)) for part in (samples.calibration, samples.evaluation)]
    length = max(map(len, samples.calibration + samples.evaluation), default=1)
    return make_plan(source.config, settings, sizes[0], sizes[1], length)


def _run(
    source: ModelSource, settings: Settings, samples: Samples, texts: dict[str, Path], out: Path, dtype: str | None
) -> tuple[Outcome, int]:
    from kiloq.convert.write import source_hashes
    from kiloq.core.manifest import check_replaceable
    from kiloq.quantize.run import quantise_model
    from kiloq.quantize.work import Work
    from kiloq.quantize.write import write_quantised

    check_replaceable(out.absolute())
    job = {"source": {k: str(v) for k, v in source_hashes(source).items()}, "settings": asdict(settings),
           "calibration": samples.calibration, "evaluation": samples.evaluation}  # fmt: skip
    work = Work(out, job)
    if finished := work.layers_done():
        click.echo(f"kiloq: an earlier run has finished {finished} layers, this one goes on", err=True)
    outcome = quantise_model(source, settings, samples, work, _say)
    figures = _figures(settings, samples, texts, outcome)
    size = write_quantised(source, out, settings, outcome, work, dtype=dtype, inputs=dict(texts), figures=figures)
    work.remove()
    return outcome, size


def _figures(settings: Settings, samples: Samples, texts: dict[str, Path], outcome: Outcome) -> dict[str, Any]:
    """What quantisation.json and the report hold."""
    return {
        "settings": asdict(settings),
        "run": {
            "calibration": f"{texts['calibration'].name}, {len(samples.calibration)} samples, "
            f"{sum(map(len, samples.calibration)):,} tokens" if samples.calibration else "none",
            "seconds": round(outcome.seconds, 1),
        },
        "error_of": "each matrix's outputs on the calibration samples" if samples.calibration else "the weights",
        "errors": outcome.errors,
        "perplexity": {
            "text": texts["evaluation"].name if samples.evaluation else None,
            "tokens": sum(len(ids) - 1 for ids in samples.evaluation),
            "before": outcome.before,
            "after": outcome.after,
        },
    }  # fmt: skip


def _say(layer: int, layers: int, errors: dict[str, float], seconds: float) -> None:
    worst = max(errors, key=lambda name: errors[name])
    click.echo(
        f"kiloq: layer {layer + 1} of {layers}: error {sum(errors.values()) / len(errors):.2e}, "
        f"largest {errors[worst]:.2e} in {worst}, {seconds:.1f} s",
        err=True,
    )


def _print_plan(plan: Plan, samples: Samples, as_json: bool) -> None:
    if as_json:
        record = {**asdict(plan), "peak_bytes": plan.peak_bytes, "fits": plan.fits}
        click.echo(json.dumps(record))
        return
    click.echo(f"samples: {len(samples.calibration)} to calibrate, {len(samples.evaluation)} to measure perplexity")
    click.echo("memory (estimated):")
    for part, size in plan.memory_bytes.items():
        click.echo(f"  {size / 2**30:8.2f} GiB  {part}")
    free = "" if plan.available_bytes is None else f" of {plan.available_bytes / 2**30:.1f} GiB that are free"
    click.echo(f"  {plan.peak_bytes / 2**30:8.2f} GiB  in all{free}{'' if plan.fits else ': too much'}")
    click.echo(f"time (estimated, at {plan.gflops:.0f} GFLOP/s measured now):")
    for part, seconds in plan.seconds.items():
        click.echo(f"  {seconds / 60:8.1f} min  {part}")
    click.echo(f"  {sum(plan.seconds.values()) / 60:8.1f} min  in all")


def _print_result(out: Path, outcome: Outcome, size: int, as_json: bool) -> None:
    if as_json:
        record = {
            "path": str(out),
            "size_bytes": size,
            "seconds": round(outcome.seconds, 3),
            "resumed_layers": outcome.resumed,
            "perplexity": {"before": outcome.before, "after": outcome.after},
            "errors": outcome.errors,
        }
        click.echo(json.dumps(record))
        return
    line = f"{out}: {size / 1e6:,.1f} MB of weights"
    if outcome.before is not None and outcome.after is not None:
        change = 100 * (outcome.after / outcome.before - 1)
        line += f", perplexity {outcome.before:.3f} before, {outcome.after:.3f} after ({change:+.2f} %)"
    click.echo(line)
