"""Extractors of main text that kiloq's is measured against, each as a function from a page to its text.

What is not installed is left out. All get the page as text and their settings for articles: resiliparse its main
content without comments and post details, trafilatura no comments, boilerpy3 its article extractor, justext its English
stop words (the pages are English but for a few).
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from kiloq.prepare.documents import batch_of, texts_of
from kiloq.prepare.extract import Extract

Extractor = Callable[[str], str]
_WORD = re.compile(r"\w+")


def kiloq(page: str) -> str:
    """The step, on a batch of one page."""
    return texts_of(Extract().apply(batch_of([{"text": page, "format": "html"}])).batch)[0]


def resiliparse(page: str) -> str:
    """Main content by its own rules."""
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(page, main_content=True, alt_texts=False, comments=False, post_meta=False)
    return text


def trafilatura(page: str, *, fast: bool = False) -> str:
    """Without comments; `fast`: without its fallbacks."""
    from trafilatura import extract

    return extract(page, fast=fast, include_comments=False) or ""


def readability(page: str) -> str:
    """The text of the element that it chooses."""
    from lxml.html import fromstring
    from readability import Document

    return str(fromstring(Document(page).summary()).text_content())


def boilerpy3(page: str) -> str:
    """Its ArticleExtractor."""
    return str(_boilerpy3().get_content(page))


@cache
def _boilerpy3() -> Any:
    from boilerpy3.extractors import ArticleExtractor

    return ArticleExtractor(raise_on_failure=False)


def justext(page: str) -> str:
    """Paragraphs that are no boilerplate."""
    from justext import get_stoplist
    from justext import justext as paragraphs_of

    return "\n".join(part.text for part in paragraphs_of(page, get_stoplist("English")) if not part.is_boilerplate)


# name -> (package, function)
PEERS: dict[str, tuple[str, Extractor]] = {
    "kiloq": ("kiloq", kiloq),
    "resiliparse": ("resiliparse", resiliparse),
    "trafilatura fast": ("trafilatura", lambda page: trafilatura(page, fast=True)),
    "trafilatura": ("trafilatura", trafilatura),
    "readability-lxml": ("readability", readability),
    "boilerpy3": ("boilerpy3", boilerpy3),
    "justext": ("justext", justext),
}


def installed() -> dict[str, Extractor]:
    """The extractors that can be run here."""
    return {name: function for name, (package, function) in PEERS.items() if importlib.util.find_spec(package)}


def answer(extractor: Extractor, page: str) -> str:
    """The text, or nothing where the extractor gives up on a page."""
    try:
        return extractor(page)
    except Exception:  # each has its own for pages that it cannot read
        return ""


def words(text: str) -> Counter[str]:
    """The words of a text, each as often as it comes."""
    return Counter(_WORD.findall(text.lower()))


def scores(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Precision, recall and F1 of words over (answer, gold): each the mean over pages, every page counting the same."""
    rows = []
    for found, gold in ((words(one), words(other)) for one, other in pairs):
        common = (found & gold).total()
        precision, recall = common / max(1, found.total()), common / max(1, gold.total())
        rows.append((precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)))
    sums = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return dict(zip(("precision", "recall", "f1"), (round(value, 4) for value in sums), strict=True))
