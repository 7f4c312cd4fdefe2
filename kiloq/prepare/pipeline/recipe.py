"""The recipe of `kiloq prepare`: where documents come from, the steps that they go through, and how they are mixed.

A TOML file read downwards: `[[source]]` tables, then `[[step]]` tables, each with the fields of the dataclass that its
name stands for. Paths are relative to the recipe. `resolved` gives the whole of it, defaults included, as one JSON
object: that is what identifies a run, what workers get, and what the manifest keeps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kiloq.core.errors import UsageError
from kiloq.core.recipe import field_values, from_table, read_toml, set_values
from kiloq.prepare.mix import Mix
from kiloq.prepare.pipeline.tally import READ
from kiloq.prepare.readers.source import Source
from kiloq.prepare.settings import check_choice, check_counts
from kiloq.prepare.steps import make_step

ENGINES = ("native", "ray")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run of `kiloq prepare`."""

    name: str  # what the result is called in its report and data card
    seed: int = 0  # of the order of a mix; no step draws lots, and samples go by the hashes of their ids
    engine: str = "native"  # Daft's runner: "native", this machine, or "ray", a cluster
    address: str | None = None  # of the Ray cluster, such as "ray://head:10001"; None: the one that this machine is in
    workers: int = 0  # processes that work on parts; 0: one a core
    piece_mb: int = 64  # megabytes of input in a part. Ours: a minute of work, so a kill costs that at most
    source: tuple[Source, ...] = ()
    step: tuple[Any, ...] = ()  # Step or GlobalStep
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        check_choice(self, "engine", ENGINES)
        check_counts(self, "seed", "workers")
        check_counts(self, "piece_mb", least=1)
        if not self.source:
            raise UsageError('recipe: has no source: add a table [[source]] with name = "…" and path = "…"')
        names = [source.name for source in self.source]
        name, times = Counter(names).most_common(1)[0]
        if times > 1:
            raise UsageError(f"recipe: two sources are called {name}: give each its own name")
        self.mix.check_names(names)
        if not any(map(self.mix.draws, names)):
            raise UsageError("mix: every source has a weight or epochs of 0: give one of them more")

    @cached_property
    def labels(self) -> list[str]:
        """The names of the steps with their place, as reports and folders show them; reading is number 0."""
        return [READ, *(f"{at:02}-{step.name}" for at, step in enumerate(self.step, start=1))]

    def resolved(self) -> dict[str, Any]:
        """The whole recipe as JSON-able tables that `from_tables` reads."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        found["source"] = [plain(source) for source in self.source]
        found["step"] = [{"kind": step.name, **plain(step)} for step in self.step]
        found["mix"] = plain(self.mix)
        return found

    def identity(self) -> dict[str, Any]:
        """What decides which documents stay: not where and on how many processes it runs, nor how they are mixed."""
        apart = ("engine", "address", "workers", "mix", "seed")
        return {key: value for key, value in self.resolved().items() if key not in apart}

    def ready(self, folder: Path) -> Recipe:
        """The recipe with what steps keep in a run's folder made there (or found): indices that all workers share."""
        steps = (step.prepared(folder) if hasattr(step, "prepared") else step for step in self.step)
        return replace(self, step=tuple(steps))

    def input_files(self) -> list[Path]:
        """Files and folders that steps read: models, lists, benchmarks."""
        return sorted({Path(path) for step in self.step for path in _paths(plain(step))})


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, changed by `--set` values. Raises UsageError, FormatError or MissingError in one sentence."""
    tables = set_values(read_toml(path), settings)
    tables.setdefault("name", path.stem)
    return from_tables(tables, path.parent.absolute())


def from_tables(tables: Mapping[str, Any], base: Path) -> Recipe:
    """A Recipe from its tables; relative paths start at `base`."""
    rest = {key: value for key, value in tables.items() if key not in ("source", "step", "mix")}
    sources = [from_table(Source, _based(table, base), "source") for table in _listed(tables, "source")]
    steps = [make_step(_based(table, base)) for table in _listed(tables, "step")]
    mix = tables.get("mix", {})
    if not isinstance(mix, Mapping):
        raise UsageError(f"recipe: mix is {mix!r:.40}: a table [mix] was expected")
    return Recipe(
        **field_values(Recipe, rest, "recipe"),
        source=tuple(sources),
        step=tuple(steps),
        mix=from_table(Mix, mix, "mix"),
    )


def _listed(tables: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = tables.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise UsageError(f"recipe: {name} is {found!r:.40}: tables [[{name}]] were expected")
    return found


def _is_path(key: str) -> bool:
    return key.endswith(("path", "paths"))


def _based(table: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """`table` with its paths made absolute."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [absolute(item) for item in value]
        return str(base / value) if isinstance(value, str) and value else value

    return {key: absolute(value) if _is_path(key) else value for key, value in table.items()}


def _paths(table: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for key, value in table.items():
        if _is_path(key) and value:
            found.extend([value] if isinstance(value, str) else value)
    return found


def plain(part: Any) -> dict[str, Any]:
    """A dataclass as JSON-able values: tuples become lists, what is switched off becomes false."""
    values = json.loads(json.dumps(asdict(part)))
    return {key: False if value is None else value for key, value in values.items()}
