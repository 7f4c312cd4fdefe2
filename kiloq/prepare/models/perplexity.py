"""The step that keeps pages by how little they surprise a language model of good text, as CCNet does.

The figure is the perplexity for a byte (kiloq.prepare.models.scorer); prose of the kind that a model was trained on
has about 5 in English and 6 in Chinese, after 7 MB of both. A model carries the percentiles of the texts that its
training held out, so that a limit can be "the best 60 of 100"; CCNet's head, middle and tail are thirds, and it has a
model for each language, for which there is `languages`. Source: Wenzek et al. 2020, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kiloq.core.errors import UsageError
from kiloq.prepare.documents import SCHEMA, Result, texts_of, with_scores
from kiloq.prepare.models.files import check_column, chosen_rows
from kiloq.prepare.models.scorer import PERCENTILES, Scorer, load_scorer
from kiloq.prepare.rules.text import over, under
from kiloq.prepare.settings import check_counts


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Adds the perplexity for a byte (float32; null for an empty text and for rows of other languages). None for every limit: only that."""

    name: ClassVar[str] = "perplexity"

    path: str = ""  # the model, made by `kiloq prepare perplexity`
    column: str = "perplexity"  # what the figure is called
    languages: tuple[str, ...] | None = None  # of rows that are judged, others get null; CCNet has a model for each
    most: float | None = None  # perplexity; more: dropped
    least: float | None = None  # less: dropped; text that repeats itself has a low one
    most_percentile: float | None = None  # the same limits in 1/100 of the texts that training held out;
    least_percentile: float | None = None  # CCNet's thirds are 33.3 and 66.7

    def __post_init__(self) -> None:
        check_counts(self, "most", "least")
        for name in ("most_percentile", "least_percentile"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise UsageError(f"perplexity: {name} is {value}: give 0 to 100, or false to switch it off")
        check_column(self, *SCHEMA.names)
        if not self.path:
            raise UsageError("perplexity: there is no model: give path = FILE from `kiloq prepare perplexity`")

    def apply(self, batch: Any) -> Result:
        scorer = load_scorer(self.path)
        values: list[float | None] = [None] * batch.num_rows
        texts, rows = texts_of(batch), chosen_rows(batch, self.languages)
        for row, value in zip(rows, scorer.perplexities(texts[row] for row in rows), strict=True):
            values[row] = value
        most = self._limit(scorer, self.most, self.most_percentile)
        least = self._limit(scorer, self.least, self.least_percentile)
        scored = with_scores(batch, self.column, values)
        return Result(scored, [_reason(value, least, most) for value in values])

    def _limit(self, scorer: Scorer, value: float | None, percentile: float | None) -> float | None:
        if percentile is None:
            return value
        if not len(scorer.percentiles):
            raise UsageError(f"perplexity: {self.path} has no percentiles: give most or least, or train on more texts")
        return float(np.interp(percentile, np.arange(PERCENTILES), scorer.percentiles))


def _reason(value: float | None, least: float | None, most: float | None) -> str | None:
    if value is None:
        return None
    said = "of a byte:"
    return over("perplexity", said, value, most, percent=False) or under("perplexity", said, value, least, percent=False)  # fmt: skip
