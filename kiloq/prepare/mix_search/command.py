"""`kiloq prepare mix-search`: the command line of this folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiloq.core.errors import UsageError

if TYPE_CHECKING:
    from kiloq.prepare.mix_search.search import Found, Search
    from kiloq.tokenize.corpus.shards import Corpus

LEAST_SHARE = 0.001  # of the tokens; a proxy cannot learn anything of a smaller source, which keeps its size. Ours

_paths = click.Path(path_type=Path)


@click.command(name="mix-search")
@click.argument("corpus", type=_paths)
@click.option("--proxy", required=True, type=_paths, help="The `kiloq train` recipe of the tiny models.")
@click.option("-o", "--out", required=True, type=_paths, help="The folder to write.")
@click.option("--mixtures", default=24, show_default=True, type=click.IntRange(4, 4096), help="To learn from.")
@click.option(
    "--held-out", default=8, show_default=True, type=click.IntRange(3, 4096), help="To check what was learned."
)
@click.option("--target", "targets", multiple=True, metavar="NAME=WEIGHT", help="A source that matters [default: all].")
@click.option("--without", multiple=True, metavar="NAME", help="A source that keeps its size; may be repeated.")
@click.option(
    "--most-epochs", default=4.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of a source."
)
@click.option("--tokens", type=click.IntRange(1), help="Of the run that the mix is for [default: the corpus' own].")
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Change a value of the proxies' recipe.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the mixtures.")
@click.option("--jobs", type=click.IntRange(1, 4096), help="Proxies side by side [default: one a core].")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def mix_search_command(
    corpus: Path,
    proxy: Path,
    out: Path,
    mixtures: int,
    held_out: int,
    targets: Sequence[str],
    without: Sequence[str],
    most_epochs: float,
    tokens: int | None,
    settings: Sequence[str],
    seed: int,
    jobs: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Propose the shares of CORPUS' sources by training many tiny models on different ones.

    CORPUS is a folder that `kiloq tokenize corpus` wrote by source. The folder gets mix.json (for `kiloq train`),
    weights.toml (for the recipe of `kiloq prepare`), report.html and search.json. A search that was killed goes on
    where it was when the same command is given again.

    \b
    Example:
      kiloq prepare mix-search shards --proxy recipes/tiny/proxy.toml --out mix
    """
    from kiloq.core.machine import usable_cores
    from kiloq.core.manifest import NAME, check_replaceable, sha256_file, write_manifest
    from kiloq.core.work import WorkFolder
    from kiloq.prepare.command import Line
    from kiloq.prepare.mix_search.proxies import Proxies
    from kiloq.prepare.mix_search.search import Search, search
    from kiloq.tokenize.corpus.shards import Corpus

    check_replaceable(out)
    opened = Corpus(corpus)
    natural, limits = _sources(opened, without, most_epochs, tokens)
    plan = Search(
        natural=natural, limits=limits, targets=_weights(targets), learned=mixtures, held_out=held_out, seed=seed
    )
    inputs = {str(proxy): sha256_file(proxy), str(corpus / NAME): sha256_file(corpus / NAME)}
    config = {**vars(plan), "settings": list(settings), "device": device}
    work = WorkFolder.beside(out, "searching")
    line = Line()
    with work.locked() as lock:
        result = work.begin_result({"config": config, "inputs": inputs})
        proxies = Proxies(work.folder / "proxies", proxy, corpus, settings, device, lock)
        try:
            found = search(plan, proxies, jobs or usable_cores(), line.show)
        finally:
            line.end()
        rows = _shares(opened, found.shares, found.weights)
        _write(result, plan, found, rows)
        write_manifest(result, "mix", inputs=inputs, config=config, seed=seed)
        work.deliver(out)
    _print(plan, found, rows, out, as_json)


def _write(folder: Path, plan: Search, found: Found, rows: Sequence[Mapping[str, Any]]) -> None:
    """The files of a finished search."""
    from kiloq.core.safe_json import write_json
    from kiloq.prepare.mix_search.report import report_page
    from kiloq.prepare.mix_search.search import as_json

    write_json(folder / "search.json", as_json(plan, found))
    write_json(folder / "mix.json", {"sources": list(rows)})
    (folder / "weights.toml").write_text(_toml(rows), encoding="utf-8")
    (folder / "report.html").write_text(report_page(plan, found), encoding="utf-8")


def _print(plan: Search, found: Found, rows: Sequence[Mapping[str, Any]], out: Path, machine: bool) -> None:
    from kiloq.prepare.mix_search.report import foreseen, verdict
    from kiloq.prepare.mix_search.search import as_json

    if machine:
        click.echo(json.dumps({"out": str(out), **as_json(plan, found)}))
        return
    for row in rows:
        before = plan.natural.get(row["name"], row["share"])
        click.echo(f"{row['name']:<24}{before:>8.1%} -> {row['share']:>6.1%}")
    click.echo(f"\n{verdict(found)}\n{foreseen(plan, found)}\n{out / 'report.html'} shows more")


def _sources(
    corpus: Corpus, without: Sequence[str], most_epochs: float, tokens: int | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Shares and largest shares of the sources that take part. Raises UsageError where there is nothing to search."""
    counts = corpus.tokens_of_sources
    for name in without:
        if name not in counts:
            raise UsageError(f"--without {name!r:.60}: the corpus has {', '.join(counts)}"[:500])
    taken = {
        name: count for name, count in counts.items() if name not in without and count >= LEAST_SHARE * corpus.tokens
    }
    if len(taken) < 2:
        raise UsageError(
            f"{corpus.folder}: has {len(taken)} source to mix, and a mix needs two: encode a corpus that has more, by "
            "`kiloq tokenize corpus … --by source`"
        )
    total = sum(taken.values())
    wanted = (tokens or corpus.tokens) * total / corpus.tokens
    if most_epochs * total < wanted:
        raise UsageError(
            f"--tokens {tokens:,}: the corpus has {corpus.tokens:,}, so {most_epochs:g} epochs of all of it are fewer: "
            "give fewer --tokens or more --most-epochs"
        )
    natural = {name: count / total for name, count in taken.items()}
    return natural, {name: min(1.0, most_epochs * count / wanted) for name, count in taken.items()}


def _weights(targets: Sequence[str]) -> dict[str, float]:
    """The targets of the command line. Raises UsageError for one that has no weight."""
    found = {}
    for target in targets:
        name, equals, weight = target.rpartition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            equals = ""
        if not equals or not name or not 0 < found[name] < float("inf"):
            raise UsageError(f"--target {target!r:.60}: give a source and a weight above 0, such as --target news=2")
    return found


def _shares(corpus: Corpus, shares: Mapping[str, float], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """What mix.json says of each source; those that were not searched keep the share that their size gives them."""
    counts = corpus.tokens_of_sources
    searched = sum(counts[name] for name in shares) / corpus.tokens
    usual = sum(weights[name] * counts[name] for name in shares) / sum(counts[name] for name in shares)
    return [
        {
            "name": name,
            "share": shares[name] * searched if name in shares else count / corpus.tokens,
            "weight": weights.get(name, usual),
        }
        for name, count in counts.items()
    ]


def _toml(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table for the recipe of `kiloq prepare`."""
    lines = [f"{json.dumps(row['name'], ensure_ascii=False)} = {row['weight']:.4g}" for row in rows]
    return "\n".join(["[mix.weights]", *lines, ""])
