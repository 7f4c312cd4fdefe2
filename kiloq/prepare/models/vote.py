"""The step that lets several scores vote: a page stays if voters with enough of the weight call it good.

One filter alone is wrong in its own way about some kind of page; a page that most filters like is seldom bad. Scores
are columns that earlier steps have added (`classifier`, `perplexity`, `language`), each with the limit from which its
voter says good. A score that is null abstains: its weight counts on neither side. Where all abstain the page stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, isfinite, isnan
from typing import Any, ClassVar

from kiloq.core.errors import UsageError
from kiloq.prepare.documents import Result
from kiloq.prepare.settings import check_shares


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Drops pages that too small a share of the weight calls good. The lists run in parallel."""

    name: ClassVar[str] = "vote"

    columns: tuple[str, ...] = ()  # the scores that vote
    thresholds: tuple[float, ...] = ()  # good from here up
    weights: tuple[float, ...] = ()  # of each voter, above 0; empty: all the same
    low: tuple[str, ...] = ()  # those of the columns where good is from the threshold down: perplexity, toxicity
    least: float = 0.5  # share of the weight that must say good. Ours: a majority, or half of it

    def __post_init__(self) -> None:
        check_shares(self, "least")
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise UsageError(f"vote: columns are {', '.join(self.columns) or 'none'}: name one or more, each once")
        for name in ("thresholds", "weights"):
            values = getattr(self, name)
            if len(values) != len(self.columns) and (values or name == "thresholds"):
                raise UsageError(f"vote: {len(values)} {name} for {len(self.columns)} columns: give one for each")
        if not all(isfinite(weight) and weight > 0 for weight in self.weights):
            raise UsageError(f"vote: weights are {list(self.weights)}: give numbers above 0")
        if strange := [name for name in self.low if name not in self.columns]:
            raise UsageError(
                f"vote: low has {strange[0]!r:.60}, which is not one of columns: {', '.join(self.columns)}"
            )

    def apply(self, batch: Any) -> Result:
        names = batch.schema.names
        for name in self.columns:
            if name not in names:
                raise UsageError(
                    f"vote: there is no column {name!r:.60}: put the step that adds it before, or choose one of "
                    f"{', '.join(names)}"
                )
        voters = [_numbers(batch, name) for name in self.columns]
        return Result(batch, [self.judge(scores) for scores in zip(*voters, strict=True)])

    def judge(self, scores: Sequence[float | None]) -> str | None:
        """The reason against a page with these scores, one for each column, or None."""
        good, cast, said = [], [], []
        weights = self.weights or (1.0,) * len(self.columns)
        for name, score, limit, weight in zip(self.columns, scores, self.thresholds, weights, strict=True):
            if score is None or isnan(score):
                said.append(f"{name} abstains")
                continue
            likes = score <= limit if name in self.low else score >= limit
            cast.append(weight)
            good += [weight] if likes else []
            said.append(f"{name} {score:.4g} says {'good' if likes else 'bad'}")
        share = fsum(good) / fsum(cast) if cast else 1.0
        if share >= self.least:
            return None
        return f"vote: good say {share:.4g} of the weight, at least {self.least:.4g} are needed: {', '.join(said)}"


def _numbers(batch: Any, name: str) -> list[float | None]:
    """A column of numbers; true and false are 1 and 0."""
    values = batch.column(name).to_pylist()
    if not all(value is None or isinstance(value, bool | int | float) for value in values):
        raise UsageError(f"vote: the column {name} has no numbers: choose a column of scores")
    return [None if value is None else float(value) for value in values]
