"""C4's rules: lines that are not sentences are cut, pages that are placeholders, code or too short are dropped.

Source: Raffel et al. 2020, section 2.2. Its list of bad words is the step "words", its English-only rule the step
"language", its removal of repeated three-sentence spans belongs to deduplication. Chinese full stops, question and
exclamation marks end sentences as well; a word is CHARS_PER_WORD characters where a script has no spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from kiloq.prepare.documents import Outcome, Result, each_text
from kiloq.prepare.rules.text import Text, ends_sentence, over, sentences, under
from kiloq.prepare.settings import check_counts

_CITATION = re.compile(r"\[(?:\d{0,4}|edit|citation needed)\]")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
POLICIES_ZH = (
    "使用条款",
    "隐私政策",
    "隐私权政策",
    "使用cookie",
    "使用 cookie",
    "隱私權政策",
)  # ours: the same in Chinese


@dataclass(frozen=True, kw_only=True)
class C4:
    """Cuts lines, then judges what is left. None or False switches a rule off."""

    name: ClassVar[str] = "c4"

    punctuated_lines: bool = True  # keep only lines that end in terminal punctuation, section 2.2
    least_line_words: int | None = 3  # shorter lines are cut, section 2.2
    most_word_chars: int | None = 1_000  # lines with a longer word are cut; the authors' code, not the paper
    script_lines: bool = True  # cut lines with the word "javascript", section 2.2
    policy_lines: bool = True  # cut lines with phrases of POLICIES, section 2.2
    citations: bool = True  # remove "[1]", "[edit]" and "[citation needed]", section 2.2
    placeholder: bool = True  # drop pages with "lorem ipsum", section 2.2
    curly_bracket: bool = True  # drop pages with one: they are code, section 2.2
    least_sentences: int | None = 5  # section 2.2

    def __post_init__(self) -> None:
        check_counts(self, "least_line_words", "least_sentences")
        check_counts(self, "most_word_chars", least=1)

    def apply(self, batch: Any) -> Result:
        return each_text(batch, self.judge)

    def judge(self, text: str) -> Outcome:
        """`text` without the lines that go, and the first reason against it. A dropped text is left as it was."""
        reason = next(filter(None, self._page_reasons(text)), None)
        if reason:
            return Outcome(text, reason)
        kept: list[str] = []
        edits: dict[str, int] = {}
        if self.citations:
            unmarked, edits["citation marks removed"] = _CITATION.subn("", text)
        else:
            unmarked = text
        for line in unmarked.split("\n"):
            why = self._line_reason(line.strip())
            if why is None:
                kept.append(line)
            else:
                edits[why] = edits.get(why, 0) + 1
        left = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
        if not left.strip():
            return Outcome(text, "c4: lines left: 0, at least 1 is needed")
        reason = under("c4", "sentences:", sentences(left), self.least_sentences, percent=False)
        return Outcome(text, reason) if reason else Outcome(left, None, edits)

    def _page_reasons(self, text: str) -> Iterator[str | None]:
        if self.placeholder:
            yield over("c4", "times lorem ipsum:", text.lower().count("lorem ipsum"), 0, percent=False)
        if self.curly_bracket:
            yield over("c4", "curly brackets:", text.count("{") + text.count("}"), 0, percent=False)

    def _line_reason(self, line: str) -> str | None:
        """What a line is cut for, as an edit is called; None: it stays. Blank lines stay."""
        if not line:
            return None
        if self.punctuated_lines and not ends_sentence(line):
            return "lines without terminal punctuation removed"
        found = Text(line)
        if self.least_line_words is not None and found.words < self.least_line_words:
            return "lines with too few words removed"
        if self.most_word_chars is not None and max(map(len, found.tokens)) > self.most_word_chars:
            return "lines with too long a word removed"
        low = line.lower()
        if self.script_lines and "javascript" in low:
            return "lines about javascript removed"
        if self.policy_lines and any(phrase in low for phrase in (*POLICIES, *POLICIES_ZH)):
            return "lines about policies removed"
        return None
