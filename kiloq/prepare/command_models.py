"""`kiloq prepare classifier` and `perplexity`: the models that the steps `classifier` and `perplexity` ask.

Both read texts as often as they need and hold a bounded part of them. A tenth of the texts, chosen by their hash, is
held out and measured: what is printed is about texts that the model has not seen. The same texts give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiloq.core.errors import UsageError
from kiloq.core.files import check_target

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kiloq.prepare.models.linear import Linear

HELD_OUT = 10  # one text in so many is not learned from. Ours
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the table that is printed

_paths = click.Path(path_type=Path)


@click.command(name="classifier")
@click.option("--good", multiple=True, required=True, type=_paths, help="Texts of the good side; may be repeated.")
@click.option("--bad", multiple=True, required=True, type=_paths, help="Texts of the bad side; may be repeated.")
@click.option("-o", "--out", required=True, type=_paths, help="The model file to write.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1, 1000), help="Times to learn each text.")
@click.option("--rate", default=0.1, show_default=True, type=click.FloatRange(0, 10, min_open=True), help="Of AdaGrad.")
@click.option("--decay", default=1e-5, show_default=True, type=click.FloatRange(0, 1), help="L2 on the weights.")
@click.option("--bits", default=18, show_default=True, type=click.IntRange(10, 24), help="2**BITS buckets of 4 bytes.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the order of texts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train_classifier_command(
    good: Sequence[Path],
    bad: Sequence[Path],
    out: Path,
    epochs: int,
    rate: float,
    decay: float,
    bits: int,
    seed: int,
    as_json: bool,
) -> None:
    """Train a classifier that tells good texts from bad ones.

    What good and bad mean is yours to say: reference prose and web pages, polite and toxic comments. Files are text
    (one document each), .jsonl or .parquet with a field "text", or folders of them; also .gz and .zst.
    """
    from kiloq.prepare.models.classifier import save_classifier
    from kiloq.prepare.models.linear import Shape, train

    check_target(out)
    counts = _counted(bad, good)
    shape = Shape(bits=bits)
    model = train(
        lambda: _mixed(bad, good, counts), counts, shape, epochs=epochs, rate=rate, decay=decay, seed=seed
    )  # fmt: skip
    report = {"out": str(out), "learned": {"bad": counts[0], "good": counts[1]}, **_judged(model, bad, good)}
    save_classifier(model, out, {"report": json.dumps({**report, "out": out.name})})
    if as_json:
        click.echo(json.dumps(report))
        return
    held = report["held_out"]
    click.echo(f"{out}: learned from {counts[1]:,} good and {counts[0]:,} bad texts")
    click.echo(
        f"held out: {held['good']:,} good and {held['bad']:,} bad texts, accuracy {report['accuracy']:.4f}, "
        f"area under the curve {report['area']:.4f}"
    )
    click.echo("keep from  good kept  bad kept")
    for row in report["table"]:
        click.echo(f"{row['least']:9.1f}  {row['good_kept']:9.2%}  {row['bad_kept']:8.2%}")


@click.command(name="perplexity")
@click.argument("inputs", nargs=-1, required=True, type=_paths)
@click.option("-o", "--out", required=True, type=_paths, help="The model file to write.")
@click.option("--order", default=6, show_default=True, type=click.IntRange(1, 12), help="Longest run, in characters.")
@click.option(
    "--most-grams", default=8 << 20, show_default=True, type=click.IntRange(1, 1 << 28), help="Kept, 32 bytes each."
)
@click.option(
    "--characters",
    default=20_000,
    show_default=True,
    type=click.IntRange(1, 60_000),
    help="Of the vocabulary, at most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train_perplexity_command(
    inputs: Sequence[Path], out: Path, order: int, most_grams: int, characters: int, as_json: bool
) -> None:
    """Train a language model of characters on good texts: INPUTS.

    Files are text (one document each), .jsonl or .parquet with a field "text", or folders of them; also .gz and .zst.
    """
    from dataclasses import replace

    import numpy as np

    from kiloq.prepare.models.scorer import PERCENTILES, estimate_scorer, save_scorer, vocabulary

    check_target(out)
    learned = sum(1 for _ in _texts(inputs, held_out=False))
    if not learned:
        raise UsageError("there is no text to learn from: give files with text in them")
    alphabet = vocabulary(_texts(inputs, held_out=False), characters)
    scorer = estimate_scorer(_texts(inputs, held_out=False), alphabet, order, most_grams)
    found = [value for value in scorer.perplexities(_texts(inputs, held_out=True)) if value is not None]
    if found:
        points = np.percentile(found, np.arange(PERCENTILES)).astype(np.float32)
        scorer = replace(scorer, percentiles=points)
    grams = int((scorer.table.slots != np.iinfo(np.uint64).max).sum())
    report: dict[str, Any] = {
        "out": str(out), "learned": learned, "held_out": len(found), "characters": len(alphabet), "grams": grams,
        "percentiles": {str(p): float(scorer.percentiles[p]) for p in (5, 33, 50, 67, 95)} if found else {},
    }  # fmt: skip
    save_scorer(scorer, out, {"report": json.dumps({**report, "out": out.name})})
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{out}: {grams:,} n-grams of {len(alphabet):,} characters from {learned:,} texts")
    if found:
        said = ", ".join(f"{value:.3g} at {p} of 100" for p, value in report["percentiles"].items())
        click.echo(f"perplexity of a byte of {len(found):,} texts held out: {said}")
    else:
        click.echo("no text was held out, so the model has no percentiles: give more texts", err=True)


def _texts(inputs: Sequence[Path], *, held_out: bool) -> Iterator[str]:
    """The texts of files: those held out, or the others. A text belongs to one side, however often it comes."""
    from kiloq.prepare.models.units import text_hash
    from kiloq.tokenize.texts import read_texts

    for text in read_texts(inputs):
        if text.text.strip() and (text_hash(text.text) % HELD_OUT == 0) == held_out:
            yield text.text


def _counted(bad: Sequence[Path], good: Sequence[Path]) -> tuple[int, int]:
    """How many texts each side has to learn from."""
    counts = []
    for name, side in (("bad", bad), ("good", good)):
        learned, held = (sum(1 for _ in _texts(side, held_out=held_out)) for held_out in (False, True))
        if not learned or not held:
            raise UsageError(
                f"--{name} has {learned + held:,} texts, of which {held:,} are to be held out: give more, "
                f"at least some {2 * HELD_OUT}"
            )
        counts.append(learned)
    return counts[0], counts[1]


def _mixed(bad: Sequence[Path], good: Sequence[Path], counts: tuple[int, int]) -> Iterator[tuple[str, bool]]:
    """Both sides, each spread evenly over the whole, so that every part of the stream has both.

    A side that is behind in its share is next, so neither runs out before the end.
    """
    sides = _texts(bad, held_out=False), _texts(good, held_out=False)
    done = [0, 0]
    for _ in range(sum(counts)):
        side = int(done[1] * counts[0] <= done[0] * counts[1])
        done[side] += 1
        text = next(sides[side], None)
        if text is None:
            raise UsageError("the files have changed while they were read: run it again")
        yield text, bool(side)


def _judged(model: Linear, bad: Sequence[Path], good: Sequence[Path]) -> dict[str, Any]:
    """What the model does with the texts held out."""
    import numpy as np

    from kiloq.prepare.models.linear import area

    scores = [np.array([model.score(text) for text in _texts(side, held_out=True)]) for side in (bad, good)]
    every = np.concatenate(scores)
    is_good = np.repeat([False, True], [len(found) for found in scores])
    return {
        "held_out": {"bad": len(scores[0]), "good": len(scores[1])},
        "accuracy": float(((every >= 0.5) == is_good).mean()),
        "area": area(every, is_good),
        "table": [
            {"least": least, "good_kept": _share(scores[1], least), "bad_kept": _share(scores[0], least)}
            for least in THRESHOLDS
        ],
    }


def _share(scores: npt.NDArray[np.float64], least: float) -> float:
    return float((scores >= least).mean())
