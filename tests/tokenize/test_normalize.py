"""NFC equals Python's for every input, also where Python's takes minutes."""

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from kiloq.tokenize.normalize import SAMPLE_CHARS, nfc, well_formed

MARKS = "\u0301\u0316\u0327\u0344\u0345\u05b0\u0591\u0903\u20dd\u302a\u0f71\u0f73\U0001d165"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("aeAµ각" + MARKS), max_size=5 * SAMPLE_CHARS).map("".join), st.text(max_size=9))
def test_equals_the_library(marks: str, text: str) -> None:
    assert nfc(text + marks + text) == unicodedata.normalize("NFC", text + marks + text)


def test_long_runs_of_marks_equal_the_library() -> None:
    for run in (MARKS * 60, "\u0301\u0316" * 700, "e" + "\u0301" * 900, MARKS[::-1] * 30 + "x" + MARKS * 30):
        assert nfc(run) == unicodedata.normalize("NFC", run)


def test_surrogates() -> None:
    assert well_formed("a\udc00b") == "a\ufffdb"
    assert well_formed("\ud83d\ude00") == "😀"
    assert well_formed("plain") == "plain"
