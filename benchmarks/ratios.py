"""Figures of interleaved rounds into ratios, and ratios into the table that is printed: worst first.

A ratio is the median over rounds of two figures taken one after the other, because the machine's speed drifts more
between rounds than within one.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from targets import BANDWIDTH, target


@dataclass(frozen=True)
class Slice:
    """One timed stretch."""

    value: float
    quiet: bool  # nobody else used the processors


@dataclass(frozen=True)
class Ratio:
    """kiloq's figure over another's, both in the same unit (more is better), with its target where there is one."""

    model: str
    weights: str
    work: str
    against: str
    ratio: float
    low: float
    high: float
    ours: float
    theirs: float
    quiet: int  # rounds in which nobody else used the machine; 0: the ratio says nothing
    rounds: int
    floor: float | None
    stretch: float | None

    @property
    def reached(self) -> float:
        """Share of the floor; comparisons without a floor or without a quiet round come last."""
        return self.ratio / self.floor if self.floor and self.quiet else float("inf")


def compare(model: str, weights: str, work: str, against: str, ours: list[Slice], theirs: list[Slice]) -> Ratio:
    """The ratio of two engines over the same rounds; undisturbed rounds alone where there are any."""
    pairs = list(zip(ours, theirs, strict=True))
    quiet = [(a, b) for a, b in pairs if a.quiet and b.quiet]
    values = [a.value / b.value for a, b in quiet or pairs]
    aim = target(model, work, weights, against)
    return Ratio(
        model, weights, work, against,
        ratio=statistics.median(values), low=min(values), high=max(values),
        ours=median(ours), theirs=median(theirs), quiet=len(quiet), rounds=len(pairs),
        floor=aim.floor if aim else None, stretch=aim.stretch if aim else None,
    )  # fmt: skip


def median(slices: list[Slice]) -> float:
    """Of the undisturbed slices, or of all where there are none."""
    return statistics.median([one.value for one in slices if one.quiet] or [one.value for one in slices])


def summary(slices: list[Slice]) -> dict[str, Any]:
    """What is kept of an engine's rounds."""
    values = [one.value for one in slices]
    return {
        "median": round(median(slices), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "disturbed": sum(not one.quiet for one in slices),
    }


def table(ratios: list[Ratio]) -> str:
    """One line a comparison, the one furthest below its floor first."""
    lines = [
        f"{'model':8}{'weights':8}{'work':18}{'against':18}{'ratio':>7}  {'rounds':13}{'floor':>6}{'stretch':>8}"
        f"{'kiloq':>10}{'other':>10}"
    ]
    for one in sorted(ratios, key=lambda ratio: (ratio.reached, ratio.ratio)):
        floor, stretch = (f"{value:.2f}" if value else "" for value in (one.floor, one.stretch))
        mark = "  below the floor" if one.reached < 1 else "" if one.quiet else "  disturbed by others: no result"
        mark += f"  ({one.quiet} of {one.rounds} rounds)" if 0 < one.quiet < one.rounds else ""
        lines.append(
            f"{one.model:8}{one.weights:8}{one.work:18}{one.against:18}{f'{one.ratio:.2f}' if one.quiet else '-':>7}  "
            f"{f'{one.low:.2f} to {one.high:.2f}' if one.quiet else '-':13}{floor:>6}{stretch:>8}{one.ours:10.2f}{one.theirs:10.2f}{mark}"
        )
    return "\n".join(lines)


def records(ratios: list[Ratio]) -> list[dict[str, Any]]:
    """The table for the result file."""
    return [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(one).items()}
        for one in sorted(ratios, key=lambda ratio: (ratio.reached, ratio.ratio))
    ]


def share_of_bandwidth(model: str, weights: str, tokens: list[Slice], gigabytes: list[Slice], size: int) -> Ratio:
    """Decoding against reading the same bytes: tokens per second against GB/s over GB a token."""
    limits = [Slice(one.value * 1e9 / size, one.quiet) for one in gigabytes]
    return compare(model, weights, "decode", BANDWIDTH, tokens, limits)
