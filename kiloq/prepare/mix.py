"""How much of each source a mix has: from sizes, weights and a temperature, within limits of repetition.

A source's amount follows its weight times its size to the power 1 / temperature. One that would be read more often
than `most_epochs` is held there, and what it gives up goes to the others in their proportion; if all are held, the mix
is shorter than was asked. The order of the draws is kiloq.core.mixture.
Sources: Conneau et al. 2020 (XLM-R, section 3.1: temperature), Muennighoff et al. 2023 (up to four epochs are worth
nearly as much as new data).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kiloq.core.errors import UsageError
from kiloq.core.mixture import BLOCK, places_of
from kiloq.core.recipe import nearest

MAX_TEMPERATURE = 100.0  # beyond it all sources are alike
MAX_WEIGHT = 1e9  # ours; more than any two sources differ in size


class Size(NamedTuple):
    """What a source has."""

    documents: int
    bytes: int  # of text, UTF-8


class Part(NamedTuple):
    """What a source gives to the mix."""

    source: str
    size: Size
    epochs: float  # passes over the source
    share: float  # of the mix's bytes
    places: int  # of BLOCK draws of a document


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The [mix] table of a recipe."""

    megabytes: float | None = None  # of the whole mix, 10^6 bytes of text; None: every source once, or its epochs
    temperature: float = 1.0  # 1: sources count as large as they are; above it small ones are drawn more often
    weights: dict[str, float] = field(default_factory=dict)  # of sources, on top of their size; those not named: 1
    epochs: dict[str, float] = field(default_factory=dict)  # of sources, in place of a weight: passes over all of it
    most_epochs: float = 4.0  # of any source, Muennighoff et al. 2023

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= MAX_TEMPERATURE:
            raise UsageError(
                f"mix: temperature is {self.temperature}: give a number above 0, at most {MAX_TEMPERATURE}"
            )
        for name, value in (("megabytes", self.megabytes), ("most_epochs", self.most_epochs)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"mix: {name} is {value}: give a number above 0")
        for name, value in (*self.weights.items(), *self.epochs.items()):
            if not 0 <= value <= MAX_WEIGHT:
                raise UsageError(f"mix: {name} has {value}: give a number from 0 to {MAX_WEIGHT:g}")
        if both := sorted(self.weights.keys() & self.epochs.keys()):
            raise UsageError(f"mix: {both[0]} has a weight and epochs: give one of them")
        if over := sorted(name for name, value in self.epochs.items() if value > self.most_epochs):
            raise UsageError(
                f"mix: epochs of {over[0]} are {self.epochs[over[0]]:g}, above most_epochs, {self.most_epochs:g}: "
                "give fewer, or raise the limit"
            )

    def draws(self, name: str) -> bool:
        """Whether anything of a source is wanted."""
        return self.weights.get(name, self.epochs.get(name, 1.0)) > 0

    def check_names(self, names: Sequence[str]) -> None:
        """Raises UsageError for a source that the recipe does not have."""
        for name in (*self.weights, *self.epochs):
            if name not in names:
                raise UsageError(f"mix: the source {name!r:.60} is not known: {nearest(name, names)}")


def mixed(mix: Mix, sizes: Mapping[str, Size]) -> list[Part]:
    """What each source gives, in the order of `sizes`. Raises UsageError if nothing is left to draw from."""
    amounts = {name: mix.epochs[name] * size.bytes for name, size in sizes.items() if name in mix.epochs}
    fixed, others = sum(amounts.values()), sum(size.bytes for name, size in sizes.items() if name not in amounts)
    wanted = 1e6 * mix.megabytes if mix.megabytes is not None else fixed + others
    if fixed > wanted:
        raise UsageError(
            f"mix: the sources with epochs have {fixed / 1e6:g} MB, more than megabytes, {mix.megabytes:g}: "
            "give fewer epochs or more megabytes"
        )
    largest = max((size.bytes for size in sizes.values()), default=0)
    masses = {
        name: mix.weights.get(name, 1.0) * (size.bytes / largest) ** (1 / mix.temperature)
        for name, size in sizes.items()
        if name not in amounts and size.bytes
    }
    amounts |= _poured(masses, {name: mix.most_epochs * sizes[name].bytes for name in masses},
                       wanted - fixed)  # fmt: skip
    total = sum(amounts.values())
    if not total > 0:
        raise UsageError("mix: there is no text to mix: see the funnel for what the steps left, or change the weights")
    draws = [amounts.get(name, 0) * size.documents / max(1, size.bytes) for name, size in sizes.items()]
    return [
        Part(name, size, amounts.get(name, 0) / max(1, size.bytes), amounts.get(name, 0) / total, places)
        for (name, size), places in zip(sizes.items(), places_of(draws), strict=True)
    ]


def _poured(masses: Mapping[str, float], limits: Mapping[str, float], amount: float) -> dict[str, float]:
    """`amount` spread in proportion to `masses`, none above its limit: what one cannot take goes to the others."""
    given: dict[str, float] = dict.fromkeys(masses, 0.0)
    open_ = {name: mass for name, mass in masses.items() if mass > 0}
    while open_ and amount > 0:
        total = sum(open_.values())
        full = [name for name, mass in open_.items() if amount * mass / total >= limits[name]]
        for name in full or list(open_):
            given[name] = limits[name] if full else amount * open_[name] / total
        amount -= sum(limits[name] for name in full)
        open_ = {name: mass for name, mass in open_.items() if full and name not in full}
    return given


def mix_record(mix: Mix, parts: Sequence[Part], seed: int) -> dict[str, Any]:
    """The contents of mix.json, from which kiloq.core.mixture.Mixture is made."""
    return {
        "seed": seed,
        "block": BLOCK,
        "bytes": round(sum(part.epochs * part.size.bytes for part in parts)),
        "documents": round(sum(part.epochs * part.size.documents for part in parts)),
        "temperature": mix.temperature,
        "sources": [
            {"name": part.source, **part.size._asdict(), "epochs": round(part.epochs, 6),
             "share": round(part.share, 6), "places": part.places}
            for part in parts
        ],
    }  # fmt: skip
