"""A whole run: plan the parts, take them through the stages, settle the global steps, and put the result in its place.

Whatever is finished lies in the working folder under its name, so a run that was killed anywhere goes on with the first
task that has no mark, and ends with the same bytes: documents, removed documents, report and data card depend on the
recipe and the input files alone. Only the manifest has a clock.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiloq.core.errors import UsageError
from kiloq.core.manifest import check_replaceable, sha256_file, write_manifest
from kiloq.core.work import WorkFolder
from kiloq.prepare.dedup.fuzzy import cluster_sizes, losers_of
from kiloq.prepare.dedup.joins import label_files
from kiloq.prepare.documents import batch_of
from kiloq.prepare.pipeline.engine import run_tasks
from kiloq.prepare.pipeline.funnel import Funnel
from kiloq.prepare.pipeline.recipe import Recipe
from kiloq.prepare.pipeline.result import write_result
from kiloq.prepare.pipeline.stages import GlobalStep, Settled, docs_of, key_ranges, numbered, stages_of
from kiloq.prepare.pipeline.store import Store, count_rows, read_table, table_file
from kiloq.prepare.pipeline.tally import Tally
from kiloq.prepare.readers.plan import plan, root_of

MOST_EDGES = 20_000_000  # settled in this process, else on disk. Ours: some 4 GB where no two share a document
GROUP_KEYS = 4_000_000  # keys that are grouped at a time. Ours: with 3 uint64 a key some 400 MB at the peak
Progress = Callable[[str, int, int], None]  # (what is done, how many of it, of how many)


@dataclass(frozen=True)
class Task:
    """One task of a run and the name under which it is marked."""

    stage: int
    kind: str  # "part" or "group"
    number: int
    more: Mapping[str, Any] = field(default_factory=dict)


def prepare(recipe: Recipe, out: Path, progress: Progress = lambda what, done, of: None) -> Funnel:
    """Run `recipe` into the folder `out`. Raises KiloqError in one sentence; run it again to go on."""
    began = time.monotonic()
    check_replaceable(out)
    checked(recipe)
    work = WorkFolder.beside(out, "preparing")
    store = Store(work.folder)
    with work.locked():
        pieces = planned(recipe)
        _check_apart(recipe, pieces, out)
        inputs = {str(path): sha256_file(path) for path in _files(recipe.input_files())}
        job = {"recipe": recipe.identity(), "pieces": pieces, "inputs": inputs, "sources": _sources(recipe, pieces)}
        work.begin_result(job)
        recorded = recipe.resolved()
        recipe = recipe.ready(store.folder)
        run = Run(recipe, store, len(pieces), progress)
        funnel = run.run()
        write_result(funnel, store.result)
        counts = {"documents_read": funnel.documents_in, "documents": funnel.documents_out, "bytes": funnel.bytes_out}
        write_manifest(
            store.result,
            "documents",
            inputs={**inputs, **run.inputs},
            config=recorded,
            counts=counts,
            seed=recipe.seed,
            seconds=time.monotonic() - began,
        )
        work.deliver(out)
    return funnel


def planned(recipe: Recipe) -> list[list[Any]]:
    """[place of the source, piece] of every part, in order."""
    return [
        [at, piece.to_json()]
        for at, source in enumerate(recipe.source)
        for piece in plan(source, recipe.piece_mb * 10**6)
    ]


def _check_apart(recipe: Recipe, pieces: Sequence[Sequence[Any]], out: Path) -> None:
    """Raises UsageError if a source has files of an earlier result: each run would read the one before."""
    target = out.resolve()
    for at, source in enumerate(recipe.source):
        root = root_of(source).resolve()
        below = f"{target.relative_to(root).as_posix()}/" if target.is_relative_to(root) else None
        if below and any(name.startswith(below) for place, piece in pieces if place == at for name in piece["files"]):
            raise UsageError(f"{out}: the source {source.name} has files in it: choose an --out outside of its folder")


def _sources(recipe: Recipe, pieces: Sequence[Sequence[Any]]) -> dict[str, list[int]]:
    """Size and time of change of every file to be read: a run does not go on with files that are others by now."""
    found = {}
    for at, piece in pieces:
        for name in piece["files"]:
            path = root_of(recipe.source[at]) / name
            status = path.stat()
            found[str(path)] = [status.st_size, status.st_mtime_ns]
    return found


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files of a list of files and folders."""
    return [
        file
        for path in paths
        for file in ([path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()))
    ]


def checked(recipe: Recipe) -> None:
    """Raises KiloqError if a step would fail on documents as the steps before it leave them; tried on none."""
    batch = numbered(batch_of([]), 0, 0)
    for step in recipe.step:
        if isinstance(step, GlobalStep):
            step.keys(batch, docs_of(batch))
            step.ranks(batch, docs_of(batch))
        else:
            batch = step.apply(batch).batch


class Run:
    """The stages of one run."""

    def __init__(self, recipe: Recipe, store: Store, parts: int, progress: Progress) -> None:
        self.recipe, self.store, self.parts, self.progress = recipe, store, parts, progress
        self.stages = stages_of(recipe.step)
        self.funnel = Funnel(recipe, parts)
        self.inputs: dict[str, str] = {}  # files that were read -> sha256
        self._begin = self._first_open()

    def run(self) -> Funnel:
        """Do what is left to do."""
        for at, stage in enumerate(self.stages):
            title = f"pass {at + 1} of {len(self.stages)}"
            tallies = self._do(title, [Task(at, "part", part) for part in range(self.parts)])
            for tally in tallies:
                self.funnel.tally.add(Tally.from_json(tally))
                self.inputs |= tally["inputs"]
            if at:
                shutil.rmtree(self.store.folder / f"stage-{at - 1}", ignore_errors=True)  # nobody reads it any more
            if stage.keys is not None:
                self._settle(at, stage.keys, tallies)
        return self.funnel

    def _first_open(self) -> int:
        """The first stage that an earlier run did not end, or their number: files that only those before read may be gone."""
        for stage in range(len(self.stages)):
            if not all(self.store.mark(stage, "part", part).exists() for part in range(self.parts)):
                return stage
        return len(self.stages)

    def _do(self, title: str, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The tallies of `tasks`, in order; those that an earlier run has finished are not done again."""
        found = [self._finished(task) for task in tasks]
        left = [at for at, tally in enumerate(found) if tally is None]
        self.progress(title, len(tasks) - len(left), len(tasks))
        if left:
            orders = [
                {"do": tasks[at].kind, "stage": tasks[at].stage, "number": tasks[at].number, **tasks[at].more}
                for at in left
            ]
            with closing(run_tasks(self.recipe, str(self.store.folder), orders)) as answers:
                for done, (at, tally) in enumerate(answers, start=1):
                    found[left[at]] = tally
                    self.progress(title, len(tasks) - len(left) + done, len(tasks))
        tallies = [tally for tally in found if tally is not None]
        assert len(tallies) == len(tasks), f"{len(tallies)} tallies of {len(tasks)} tasks"
        return tallies

    def _finished(self, task: Task) -> dict[str, Any] | None:
        last = len(self.stages) - 1  # whose files are the result
        return self.store.finished(task.stage, task.kind, task.number, check=task.stage >= min(self._begin, last))

    def _settle(self, at: int, place: int, tallies: Sequence[Mapping[str, Any]]) -> None:
        """Group the keys of a global step and put its losers where the parts will look for them."""
        step: Any = self.recipe.step[place]
        label = self.recipe.labels[place + 1]
        keys, bands = (
            sum(tally["keys"] for tally in tallies),
            sorted({band for tally in tallies for band in tally["bands"]}),
        )
        ranges = key_ranges(bands or [0], -(-keys // max(1, len(bands))), GROUP_KEYS)
        tasks = [Task(at, "group", number, found._asdict()) for number, found in enumerate(ranges)]
        self._do(f"{label}: grouping {keys:,} keys", tasks)
        self.funnel.keys[label] = keys
        if step.clustered:
            self.funnel.clusters[label] = self._clusters(at, step)

    def _clusters(self, at: int, step: Any) -> dict[int, int]:
        """Cluster sizes of a step whose groups are edges; its losers are written."""
        done = self.store.finished(at, "settle", 0, check=at + 1 >= self._begin)
        if done is None:
            sizes: Counter[int] = Counter()
            targets: list[Path] = []
            for settled in self._settled(at, step):
                targets.append(self.store.table(at, "losers", len(targets)))
                with table_file(targets[-1], settled.losers.schema, 1 << 16) as write:
                    write(settled.losers)
                sizes.update(settled.clusters)
            done = {str(size): count for size, count in sorted(sizes.items())}
            self.store.finish(at, "settle", 0, targets, done)
        return {int(size): count for size, count in done.items()}

    def _settled(self, at: int, step: Any) -> Iterator[Settled]:
        """The losers of a step, all at once or, where there are many edges, by components that lie on disk."""
        edges, ranks = (self.store.tables(at, kind) for kind in ("groups", "ranks"))
        if count_rows(edges) <= MOST_EDGES:
            yield step.settle(map(read_table, edges), map(read_table, ranks))
            return
        labels, rounds = (self.store.folder / f"stage-{at}" / name for name in ("labels", "rounds"))
        for folder in (labels, rounds):  # of a run that was killed
            shutil.rmtree(folder, ignore_errors=True)
        for path in label_files(edges, labels, rounds):
            found = read_table(path)
            nodes, roots = (found.column(name).to_numpy() for name in ("doc", "root"))
            losers = losers_of(nodes, roots, map(read_table, ranks))
            yield Settled(losers, cluster_sizes(losers))
