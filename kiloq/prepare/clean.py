"""Unicode clean-up: one normal form, no invisible characters, plain line ends; what is broken beyond repair goes.

Everything is linear in the text, marks that a hostile page stacks included (kiloq.tokenize.normalize). Joiners
(U+200C, U+200D) stay: Persian, Indic scripts and emoji need them. Two things count as broken: the replacement
character, which a decoder writes for bytes it could not read, and the pairs that UTF-8 leaves when it is read as
Latin-1 or Windows-1252. Sources: Unicode Standard Annex 15 (NFC), section 23 (controls, zero-width characters).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from kiloq.prepare.documents import Outcome, Result, each_outcome, strings_of, texts_of
from kiloq.prepare.settings import check_counts, check_shares
from kiloq.tokenize.normalize import nfc, well_formed

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# C0 without tab and newline, DEL, C1, noncharacters
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufdd0-\ufdef\ufffe\uffff]")
# soft hyphen, zero-width space, marks and orders of direction, word joiner, byte order mark
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_MOJIBAKE = re.compile("\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\u00ef\u00bf\u00bd")


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Normal form, controls, zero-width characters, line ends, trailing space and runs of blank lines."""

    name: ClassVar[str] = "clean"

    nfc: bool = True  # composed characters, as the tokenizer wants them (Qwen normalises to NFC)
    most_broken: float | None = 0.01  # broken characters as a share of all; more: dropped. Ours
    most_blank_lines: int | None = 1  # in a row; what is more is cut. Ours; code keeps two (PEP 8)
    least_chars: int = 1  # left after the clean-up; fewer: dropped

    def __post_init__(self) -> None:
        check_shares(self, "most_broken")
        check_counts(self, "most_blank_lines", "least_chars")

    def apply(self, batch: Any) -> Result:
        pairs = zip(texts_of(batch), strings_of(batch, "format"), strict=True)
        return each_outcome(batch, [self._text(text, kind or "text") for text, kind in pairs])

    def _text(self, text: str, kind: str) -> Outcome:
        reason = self._broken(text)
        if reason:
            return Outcome(text, reason)
        edits: dict[str, int] = {}
        text, edits["line ends changed"] = _LINE_ENDS.subn("\n", text)
        text, edits["control characters removed"] = _CONTROLS.subn("", text)
        text, edits["invisible characters removed"] = _INVISIBLE.subn("", text)
        if self.nfc:
            normal = nfc(well_formed(text))
            edits["texts normalised"] = int(normal != text)
            text = normal
        text = self._lines(text, kind, edits)
        if len(text.strip()) < self.least_chars:
            reason = f"clean: {len(text.strip())} characters are left, at least {self.least_chars} are needed"
        return Outcome(text, reason, edits)

    def _broken(self, text: str) -> str | None:
        if self.most_broken is None or not text:
            return None
        count = sum(1 for _ in _MOJIBAKE.finditer(text))
        share = count / len(text)
        if share <= self.most_broken:
            return None
        return f"clean: {count} broken characters are {share:.1%} of the text, at most {self.most_broken:.1%} may be"

    def _lines(self, text: str, kind: str, edits: dict[str, int]) -> str:
        """Trailing space (two spaces that end a Markdown line are a line break, and stay) and blank lines."""
        before = text.split("\n")
        lines = before if kind == "markdown" else [line.rstrip() for line in before]
        edits["lines stripped"] = sum(1 for old, new in zip(before, lines, strict=True) if len(old) != len(new))
        if self.most_blank_lines is None:
            return "\n".join(lines)
        allowed = max(self.most_blank_lines, 2) if kind == "code" else self.most_blank_lines
        kept, blank = [], 0
        for line in lines:
            blank = 0 if line.strip() else blank + 1
            if blank <= allowed:
                kept.append(line)
        edits["blank lines removed"] = len(lines) - len(kept)
        return "\n".join(kept).strip("\n") + ("\n" if kind == "code" else "")
