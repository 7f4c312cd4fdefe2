"""Program code: a tree of files as documents, with language and licence, without what nobody wrote by hand.

Left out with a reason are copies of other projects (vendored folders), minified and generated files, and those whose
lines or characters are not those of a program. Sources: Chen et al. 2021 (Codex), section 3.1, and Li et al. 2023
(StarCoder) for the longest line of 1,000 characters, the mean of 100 and the share of 0.25 of letters and digits;
folders and heads are those that GitHub's Linguist calls vendored or generated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kiloq.prepare.readers import licenses
from kiloq.prepare.readers.contents import decoded, whole
from kiloq.prepare.readers.languages import language_of
from kiloq.prepare.readers.source import NOT_A_DOCUMENT, Bad, File, Row, Source

VENDORED = frozenset({
    "node_modules", "bower_components", "vendor", "third_party", "thirdparty", "3rdparty", "site-packages", "Godeps", "Pods",
})  # fmt: skip
HEAD_CHARS = 2048  # in which a generator names itself: ours
MINIFIED = (".min.js", ".min.css", "-min.js", ".bundle.js")

_GENERATED = re.compile(
    r"@generated\b|\bthis file (?:is|was|has been) (?:\w+ )?generated\b|\bdo not (?:edit|modify)\b|"
    r"\b(?:auto[- ]?|automatically |machine[- ])generated\b|"
    r"\bgenerated (?:automatically|by (?:the )?(?:protocol buffer|[\w.+-]+[ ](?:\d|version|compiler)))",
    re.IGNORECASE,
)


def rows(file: File) -> Iterator[Row | Bad]:
    """One row of format "code"; the programming language and the licence are in its meta."""
    yield _vendored(file) or _read(file)


def _vendored(file: File) -> Bad | None:
    folders = file.name.split("/")[:-1]
    if folder := next((name for name in folders if name in VENDORED), None):
        return file.bad(f"code: a copy of another project: {folder}")
    return file.bad("code: a minified file") if file.name.lower().endswith(MINIFIED) else None


def _read(file: File) -> Row | Bad:
    data = whole(file)
    if isinstance(data, Bad):
        return data
    if b"\0" in data:
        return file.bad(f"{NOT_A_DOCUMENT}a binary file")
    text = decoded(file, data)
    if isinstance(text, Bad):
        return text
    language = language_of(file.name, text[:HEAD_CHARS])
    if language is None:
        return file.bad(f"{NOT_A_DOCUMENT}a file of no known programming language", text)
    if (reason := _reason(file.source, text)) is not None:
        return file.bad(reason, text)
    license_name = licenses.tagged(text) or licenses.nearest(file.root, file.name, file.licenses)
    if file.source.licenses and not licenses.allows(license_name, file.source.licenses):
        return file.bad(f"code: the licence is not one of those asked for: {license_name or 'not known'}", text)
    return file.row(text, "code", {"code": language, "license": license_name})


def _reason(source: Source, text: str) -> str | None:
    """The first reason against a file."""
    if not text.strip():
        return "the file is empty"
    if _GENERATED.search(text[:HEAD_CHARS]):
        return "code: a generated file"
    lengths = [len(line) for line in text.splitlines()]
    longest, mean = max(lengths), sum(lengths) / len(lengths)
    if source.most_line_chars is not None and longest > source.most_line_chars:
        return f"code: characters of the longest line: {longest}, at most {source.most_line_chars} may be"
    if source.most_mean_line_chars is not None and mean > source.most_mean_line_chars:
        return f"code: mean characters of a line: {mean:.4g}, at most {source.most_mean_line_chars} may be"
    share = sum(map(str.isalnum, text)) / len(text)
    if source.least_alphanumeric is not None and share < source.least_alphanumeric:
        return (
            f"code: letters and digits: {share * 100:.4g}%, at least {source.least_alphanumeric * 100:.4g}% are needed"
        )
    return None
