"""The step that keeps pages by a trained classifier, and the file of one: quality, toxicity, adult text, whatever it learned.

A classifier is made by `kiloq prepare classifier` from examples of a good and a bad side; which is which is the
user's choice. The score is the probability of one side. Pages are dropped by a fixed limit, or by GPT-3's rule, which
also keeps some pages of a low score so that the rest is not all of one kind: keep if a draw from a Pareto distribution
is larger than 1 - score (Brown et al. 2020, appendix A). The draw comes from the text's hash, so that a page has
the same fate on every run, machine and number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kiloq.core.errors import FormatError, UsageError
from kiloq.core.safetensors import write_safetensors
from kiloq.prepare.documents import SCHEMA, Result, texts_of, with_scores
from kiloq.prepare.models.files import ModelFile, cached, check_column, chosen_rows
from kiloq.prepare.models.linear import Linear, Shape
from kiloq.prepare.models.units import text_hash
from kiloq.prepare.rules.text import over, under
from kiloq.prepare.settings import check_choice, check_counts, check_shares

KIND = "kiloq classifier 1"
SIDES = ("good", "bad")
MAX_WEIGHT = 1e4  # ours: AdaGrad takes steps below 1; keeps the sums of kiloq.prepare.models.linear in 63 bits
BITS, WORDS, CHARS = (10, 24), (0, 4), (0, 8)  # least and most that a model may have. Ours


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Adds the probability of a side (float32, 0 to 1; null for rows of other languages). None for every limit: only that."""

    name: ClassVar[str] = "classifier"

    path: str = ""  # the model, made by `kiloq prepare classifier`
    column: str = "quality"  # what the score is called
    languages: tuple[str, ...] | None = None  # of rows that are judged, others get null; None: every row
    side: str = "good"  # whose probability the score is; "bad" for a toxicity score, say
    least: float | None = None  # less: dropped
    most: float | None = None  # more: dropped
    pareto: float | None = None  # shape of the distribution of GPT-3's rule, which has 9

    def __post_init__(self) -> None:
        check_choice(self, "side", SIDES)
        check_shares(self, "least", "most")
        check_counts(self, "pareto", least=1)
        check_column(self, *SCHEMA.names)
        if not self.path:
            raise UsageError("classifier: there is no model: give path = FILE from `kiloq prepare classifier`")
        if self.pareto is not None and self.side == "bad":
            raise UsageError("classifier: pareto keeps high scores and side is 'bad': give side = 'good', or most")

    def apply(self, batch: Any) -> Result:
        model = load_classifier(self.path)
        texts = texts_of(batch)
        scores: list[float | None] = [None] * len(texts)
        reasons: list[str | None] = [None] * len(texts)
        for row in chosen_rows(batch, self.languages):
            good = model.score(texts[row])
            score = good if self.side == "good" else 1 - good
            scores[row], reasons[row] = score, self._reason(texts[row], score)
        return Result(with_scores(batch, self.column, scores), reasons)

    def _reason(self, text: str, score: float) -> str | None:
        what = f"{self.column}:"
        low = under("classifier", what, score, self.least, percent=False)
        high = over("classifier", what, score, self.most, percent=False)
        if low or high or self.pareto is None:
            return low or high
        draw = pareto_draw(text, self.pareto)
        if draw > 1 - score:
            return None
        return f"classifier: {self.column}: {score:.6g}, and the draw of {draw:.6g} is not above {1 - score:.6g}"


def pareto_draw(text: str, shape: float) -> float:
    """A draw from the distribution of `numpy.random.pareto(shape)` (Lomax: 0 and up) that depends on the text alone."""
    uniform = (text_hash(text) + 0.5) / (1 << 64)
    return float(uniform ** (-1 / shape) - 1)


def save_classifier(model: Linear, path: Path, said: Mapping[str, str]) -> None:
    """The model as one file; `said` is kept in it for people: what it was made from and how well it does."""
    shape = {name: str(getattr(model.shape, name)) for name in ("bits", "words", "chars")}
    arrays = {"weights": model.weights, "bias": np.array([model.bias], np.float32)}
    write_safetensors(path, arrays, {**said, **shape, "kind": KIND})


def _load(path: Path) -> Linear:
    file = ModelFile(path, KIND)
    shape = Shape(file.number("bits", *BITS), file.number("words", *WORDS), file.number("chars", *CHARS))
    if not shape.words and not shape.chars:
        raise FormatError(f"{path}: counts neither words nor characters: it is damaged")
    weights = file.array("weights", np.float32, 1 << shape.bits, MAX_WEIGHT)
    return Linear(shape, weights, float(file.array("bias", np.float32, 1, MAX_WEIGHT)[0]))


load_classifier = cached(_load)
