"""What a run came to, as one object: the numbers behind report.html, the data card and funnel.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kiloq.prepare.decontaminate import Decontaminate, contamination
from kiloq.prepare.mix import Part, Size, mix_record, mixed
from kiloq.prepare.pipeline.recipe import Recipe
from kiloq.prepare.pipeline.tally import Tally


@dataclass
class Funnel:
    """Counts of a whole run. Documents that went in are those that came out and those that a step removed."""

    recipe: Recipe
    parts: int
    tally: Tally = field(default_factory=Tally)
    keys: dict[str, int] = field(default_factory=dict)  # label of a global step -> keys that were compared
    clusters: dict[str, dict[int, int]] = field(default_factory=dict)  # label -> documents in a cluster -> clusters

    def steps(self) -> Iterable[tuple[str, Counter[str]]]:
        """(label, documents and bytes in and out) of reading and of every step, in order."""
        return ((label, self.tally.steps.get(label, Counter())) for label in self.recipe.labels)

    def _counts(self, at: int) -> Counter[str]:
        """Of reading (0) or the last step (-1); nothing where no document came."""
        return self.tally.steps.get(self.recipe.labels[at], Counter())

    @property
    def documents_in(self) -> int:
        return self._counts(0)["documents in"]

    @property
    def documents_out(self) -> int:
        return self._counts(-1)["documents out"]

    @property
    def bytes_out(self) -> int:
        return self._counts(-1)["bytes out"]

    def by(self, what: str) -> dict[str, dict[str, Size]]:
        """ "source" or "language" -> {"read": Size, "kept": Size}, the largest first."""
        found: dict[str, dict[str, Counter[str]]] = {}
        for when, counts in self.tally.sizes.items():
            for key, count in counts.items():
                source, language, unit = key.split("\t")
                name = source if what == "source" else language
                found.setdefault(name, {}).setdefault(when, Counter())[unit] += count
        order = sorted(found, key=lambda name: (-max(counts["bytes"] for counts in found[name].values()), name))
        empty = Counter[str]()
        return {
            name: {
                when: Size(found[name].get(when, empty)["documents"], found[name].get(when, empty)["bytes"])
                for when in ("read", "kept")
            }
            for name in order
        }

    def contamination(self) -> dict[str, Any]:
        """The contents of decontamination.json: by step and test set, how many items were looked for and which hit."""
        found = {}
        for label, step in zip(self.recipe.labels[1:], self.recipe.step, strict=True):
            if isinstance(step, Decontaminate) and step.index_path is not None:
                names = (f"[{name}]" for name in self.tally.hits.get(label, Counter()))
                found[label] = contamination(names, step.index_path)
        return found

    def mix(self) -> list[Part]:
        """What every source gives to the mix; empty if nothing was kept of those that it draws from."""
        kept = self.by("source")
        names = [source.name for source in self.recipe.source]
        sizes = {name: kept[name]["kept"] if name in kept else Size(0, 0) for name in names}
        drawn = [name for name in names if sizes[name].bytes and self.recipe.mix.draws(name)]
        return mixed(self.recipe.mix, sizes) if drawn else []

    def record(self) -> dict[str, Any]:
        """The contents of funnel.json."""
        return {
            "name": self.recipe.name,
            "parts": self.parts,
            "documents": {"read": self.documents_in, "kept": self.documents_out},
            "steps": [
                {
                    "step": label,
                    **{
                        key.replace(" ", "_"): counts[key]
                        for key in ("documents in", "documents out", "bytes in", "bytes out")
                    },
                    "reasons": dict(self.tally.reasons.get(label, Counter()).most_common()),
                    "edits": dict(self.tally.edits.get(label, Counter()).most_common()),
                    **({"keys": self.keys[label]} if label in self.keys else {}),
                    **({"clusters": self.clusters[label]} if label in self.clusters else {}),
                }
                for label, counts in self.steps()
            ],
            "sources": {
                name: {when: size._asdict() for when, size in sizes.items()}
                for name, sizes in self.by("source").items()
            },
            "languages": {
                name: {when: size._asdict() for when, size in sizes.items()}
                for name, sizes in self.by("language").items()
            },
            "scores": {column: dict(bins) for column, bins in self.tally.scores.items()},
        }

    def mix_record(self) -> dict[str, Any]:
        """The contents of mix.json."""
        return mix_record(self.recipe.mix, self.mix(), self.recipe.seed)
