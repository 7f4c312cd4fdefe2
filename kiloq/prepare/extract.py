"""The main text of a web page: resiliparse for every page, trafilatura for those whose answer looks doubtful.

resiliparse parses once, in C, and drops navigation, comments and post details; what it leaves above the first and
below the last line of prose (share buttons, "related", copyright) is cut here. Its answer is *doubtful* when too many
of the lines that remain are not prose: then the page is read again by trafilatura in its fast mode, some seven times
slower, and that answer is taken if its length is plausible. Four bounds keep hostile pages from hanging: elements
nested deeper than a browser allows are read without the main-content rules (whose time grows with the square of the
depth), only pages of moderate size go to trafilatura, and pages that are too large, have too many tags, or too many elements
open at once are dropped.
Sources: Bevendorff et al. 2018 (resiliparse), Barbaresi 2021 (trafilatura).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kiloq.core.errors import MissingError
from kiloq.prepare.documents import (
    SCHEMA,
    Outcome,
    Result,
    each_outcome,
    meta_of,
    meta_text,
    strings_of,
    texts_of,
    with_column,
)
from kiloq.prepare.settings import check_counts, check_shares

MAX_DEPTH = 512  # nested elements; the HTML parser of Chromium stops there as well
MAX_OPEN = 2_000  # ours: pages with more elements open at once are dropped; parsing them may take minutes
MANY_TAGS = 20_000  # ours: open elements are counted in pages with more; up to here the worst page takes 0.3 s; the median page has 1,400 tags
# elements without an end tag, or that another start tag ends: HTML standard, section 13.1.2
UNCLOSED = frozenset({
    "area", "base", "body", "br", "col", "colgroup", "dd", "dt", "embed", "head", "hr", "html", "img", "input", "li", "link", "meta",
    "optgroup", "option", "p", "param", "rp", "rt", "source", "tbody", "td", "tfoot", "th", "thead", "tr", "track", "wbr",
})  # fmt: skip
SHAPES = frozenset(  # of SVG: these do end in "/>"
    {"circle", "ellipse", "image", "line", "path", "polygon", "polyline", "rect", "stop", "use"}
)
SAMPLED = 128  # ours: so a chain of elements may be this much longer before it is noticed
PROSE_BYTES = 120  # a line this long is prose whatever it ends in: ours, about 20 English words or 40 Han characters
SENTENCE_BYTES = 50  # a shorter one is prose if it ends as a sentence does: ours
SENTENCE_ENDS = frozenset('.!?:…"”’)。！？：；」』）')
SKIPPED = ("figcaption", "aside", "footer", "nav", "button", '[class*="related"]', '[class*="caption"]')  # CSS; ours
MAX_HEAD = 100_000  # characters of a page in which its canonical address is looked for; ours
PLAUSIBLE = (0.2, 1.5)  # trafilatura's length as a share of resiliparse's: outside, one of them took the wrong element

_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]{0,30})")
_CANONICAL = re.compile(r"<link\b[^<>]{0,1000}>", re.IGNORECASE)
_HREF = re.compile(r"""\bhref\s{0,8}=\s{0,8}["']?(https?://[^\s"'<>]{1,2000})""", re.IGNORECASE)
_IS_CANONICAL = re.compile(r"""\brel\s{0,8}=\s{0,8}["']?canonical\b""", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Rows of format "html" become rows of format "text"; title and address go into `meta`."""

    name: ClassVar[str] = "extract"

    doubtful: float | None = 0.4  # share of lines that are not prose, above it trafilatura is asked; None: never. Ours
    most_doubtful_chars: int = 100_000  # larger pages are not read twice: bounds the time a page may take. Ours
    most_chars: int | None = 20_000_000  # larger pages are dropped unread. Ours; the median page has 0.1 million
    most_tags: int | None = 100_000  # pages with more are dropped: bounds the parser's time at some 10 s. Ours
    least_chars: int = 1  # of main text; fewer: the page is dropped

    def __post_init__(self) -> None:
        check_shares(self, "doubtful")
        check_counts(self, "most_doubtful_chars", "least_chars")
        check_counts(self, "most_chars", "most_tags", least=1)

    def apply(self, batch: Any) -> Result:
        formats, metas = strings_of(batch, "format"), strings_of(batch, "meta")
        outcomes: list[Outcome] = []
        for row, text in enumerate(texts_of(batch)):
            if formats[row] != "html":
                outcomes.append(Outcome(text))
                continue
            outcome, found = self._page(text)
            outcomes.append(outcome)
            formats[row] = "text"
            metas[row] = meta_text({**found, **{k: v for k, v in meta_of(metas[row]).items() if v is not None}})
        result = each_outcome(batch, outcomes)
        batch = with_column(result.batch, "format", formats, SCHEMA.field("format").type)
        batch = with_column(batch, "meta", metas, SCHEMA.field("meta").type)
        return Result(batch, result.reasons, result.edits)

    def _page(self, html: str) -> tuple[Outcome, Mapping[str, str]]:
        """The Outcome for one page, and what it says of itself."""
        if (reason := self._too_costly(html)) is not None:
            return Outcome("", reason), {}
        tree = _parse(html)
        if tree is None:
            return Outcome("", "extract: the page could not be parsed"), {}
        flat = too_deep(tree)
        text = _first(tree, main_content=not flat)
        lines = text.split("\n")
        kept, weak = trim(lines)
        answer, edits = "\n".join(lines[kept]), {"pages extracted": 1}
        if not flat and self.doubtful is not None and weak > self.doubtful and len(html) <= self.most_doubtful_chars:
            second = _second(html)
            edits["pages read twice"] = 1
            if PLAUSIBLE[0] * len(text) <= len(second) <= PLAUSIBLE[1] * len(text):
                answer = second
        answer = answer.strip("\n")
        if len(answer.strip()) < self.least_chars:
            reason = f"extract: {len(answer.strip())} characters of main text, at least {self.least_chars} are needed"
        return Outcome(answer, reason, edits), _said(tree, html)

    def _too_costly(self, html: str) -> str | None:
        """The reason against a page that may take long to parse."""
        if self.most_chars is not None and len(html) > self.most_chars:
            return f"extract: the page has {len(html)} characters, at most {self.most_chars} are read"
        tags = html.count("<")
        if self.most_tags is not None and tags > self.most_tags:
            return f"extract: the page has {tags} tags, at most {self.most_tags} are read"
        count = open_elements(html) if tags > MANY_TAGS else 0
        return f"extract: {count} elements are open at once, at most {MAX_OPEN} may be" if count > MAX_OPEN else None


def too_deep(tree: Any) -> bool:
    """Whether a div or article lies deeper than MAX_DEPTH + SAMPLED; every SAMPLED-th is looked at, and its parents.

    These are the elements that the main-content rules climb: a chain of 100,000 of them takes minutes.
    """
    for tag in ("div", "article"):
        found = tree.document.get_elements_by_tag_name(tag)
        for place in range(MAX_DEPTH, len(found), SAMPLED):
            node, depth = found[place], 0
            while node is not None and depth <= MAX_DEPTH:
                node, depth = node.parent, depth + 1
            if depth > MAX_DEPTH:
                return True
    return False


def open_elements(html: str) -> int:
    """The most elements that are open at one place, at least.

    Parsing takes the time of tags times open elements, for an end tag without a start is looked up through all of
    them. Elements that need no end tag are not counted, nor what stands in scripts.
    """
    depths: Counter[str] = Counter()
    depth = most = at = 0
    while found := _TAG.search(html, at):
        at, tag = found.end(), found[2].lower()
        if found[1]:
            depth -= depths[tag] > 0
            depths[tag] -= depths[tag] > 0
        elif tag in ("script", "style"):
            at = html.find(f"</{found[2]}", at)
            if at < 0:
                break
        elif tag not in UNCLOSED and not (tag in SHAPES and _closes_itself(html, at)):
            depths[tag] += 1
            depth += 1
            most = max(most, depth)
    return most


def _closes_itself(html: str, at: int) -> bool:
    end = html.find(">", at, at + 10_000)  # a bound, so that tags without an end do not take quadratic time
    return end > 0 and html[end - 1] == "/"


def is_prose(line: str) -> bool:
    """Whether a line reads like running text. Counted in UTF-8 bytes: a Han character says as much as three letters."""
    line = line.strip()
    size = len(line) if line.isascii() else len(line.encode())
    return size >= PROSE_BYTES or (size >= SENTENCE_BYTES and line[-1] in SENTENCE_ENDS)


def trim(lines: list[str]) -> tuple[slice, float]:
    """The lines from the first to the last of prose, and the share of those that are not prose; all if none is."""
    prose = [is_prose(line) for line in lines]
    if True not in prose:
        return slice(0, len(lines)), 1.0
    kept = slice(prose.index(True), len(prose) - prose[::-1].index(True))
    filled = sum(1 for line in lines[kept] if line.strip())
    return kept, 1 - sum(prose[kept]) / filled


def decode_page(data: bytes, declared: str | None = None) -> str:
    """`data` as text: in the declared charset if it fits, else in the one that the bytes or the page suggest.

    Never fails: what no charset explains becomes U+FFFD, which the clean-up step counts. NUL is a replacement
    character as well, as in the HTML standard.
    """
    parse = _resiliparse()[2]
    for charset in (declared, "utf-8", parse.detect_encoding(data, from_html_meta=True), parse.detect_encoding(data)):
        try:
            if charset:
                return data.decode(charset).lstrip("\ufeff").replace("\0", "\ufffd")
        except (LookupError, ValueError):  # an unknown name, or bytes that are not in it
            continue
    return data.decode("utf-8", "replace").lstrip("\ufeff").replace("\0", "\ufffd")


def _resiliparse() -> tuple[Any, Any, Any]:
    """resiliparse's extractor, its tree, and its charset functions."""
    try:
        from resiliparse.extract import html2text
        from resiliparse.parse import encoding, html
    except ImportError:
        raise MissingError("reading web pages needs resiliparse: run `pip install 'kiloq[data]'` to get it") from None
    return html2text, html, encoding


def _parse(html: str) -> Any:
    module = _resiliparse()[1]
    try:
        return module.HTMLTree.parse(html.replace("\0", "\ufffd"))
    except (ValueError, RuntimeError):
        return None


def _first(tree: Any, *, main_content: bool) -> str:
    text: str = _resiliparse()[0].extract_plain_text(
        tree,
        main_content=main_content,
        preserve_formatting=True,
        alt_texts=False,
        comments=False,
        post_meta=False,
        skip_elements=SKIPPED,
    )
    return text


def _second(html: str) -> str:
    """trafilatura's answer; empty if it has none or fails on the page."""
    try:
        from trafilatura import extract
    except ImportError:
        raise MissingError("reading web pages needs trafilatura: run `pip install 'kiloq[data]'` to get it") from None
    try:
        return extract(html, fast=True, include_comments=False, include_tables=True) or ""
    except Exception:  # any page may come: what it makes of broken ones is not in its contract
        return ""


def _said(tree: Any, html: str) -> dict[str, str]:
    """What a page says of itself: title and canonical address."""
    said = {}
    title = " ".join((tree.title or "").split())
    if title:
        said["title"] = title[:1000]
    for link in _CANONICAL.finditer(html[:MAX_HEAD]):
        if _IS_CANONICAL.search(link[0]) and (href := _HREF.search(link[0])):
            said["url"] = href[1]
            break
    return said
