"""NFC equals Python's for every input, also where Python's takes minutes."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiloq.tokenize import normalize
from kiloq.tokenize.normalize import SAMPLE_CHARS, nfc, nfc_batch, well_formed

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


# Batches


def by_the_library(text: str) -> str:
    return well_formed(unicodedata.normalize("NFC", text))


def check_batch(texts: list[str]) -> None:
    """As the library has each text: both stretch by stretch and, where they are dense, whole."""
    wanted = [by_the_library(text) for text in texts]
    for dense in (0, normalize.DENSE):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(normalize, "DENSE", dense)
            assert nfc_batch(texts) == wanted


def test_every_character_by_itself_and_after_a_letter_and_a_mark_is_as_the_library_has_it() -> None:
    """All code points, 64 to a text, on lines of their own: those above the table's end too."""
    for before in ("", "a", "\u09c7", "a\u0323", "\u1100", "\uac00"):
        texts = [
            "\n".join(before + chr(code) for code in range(begin, begin + 64)) for begin in range(0, sys.maxunicode, 64)
        ]
        check_batch(texts)


def test_all_pairs_of_characters_that_normalisation_knows() -> None:
    known = [code for code in range(0x30000) if normalize._kinds().kind[code] & 3] + [0x61, 0x4E00, 0x0A, 0x20]
    letters = sorted({int(pair) >> 32 for pair in normalize._kinds().pairs})
    texts = ["\n".join(chr(one) + chr(other) for other in known) for one in letters + known[::9]]
    check_batch(texts)


@given(
    st.lists(
        st.text(
            st.sampled_from("aeoé\u0300\u0301\u0323\u0327\u0345\u05b0\u09c7\u09be\u0958\u1100\u1161\u11a8가각\u2126\ufb1d"
                            "\U0001d15e\U000e0101\ud800\udc00\n\r\u2028 猫"), max_size=12,
        ), max_size=5,
    )
)  # fmt: skip
def test_batches_are_as_the_library_has_each_text(texts: list[str]) -> None:
    check_batch(texts)


def test_a_batch_with_a_long_run_of_marks_stays_linear() -> None:
    marks = "\u0316\u0301" * 100_000  # the library alone takes minutes
    assert nfc_batch(["x", "a" + marks]) == ["x", nfc("a" + marks)]


def test_what_is_in_form_c_is_not_given_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    given_to: list[str] = []
    real = normalize.nfc
    monkeypatch.setattr(normalize, "nfc", lambda text: given_to.append(text) or real(text))
    texts = ["été\n猫 हिन्दी שָׁלוֹם\nune e\u0301tude 한국어 et encore du texte", "кот", "plain", "e\u0301"]
    assert nfc_batch(texts) == [text.replace("e\u0301", "é") for text in texts]
    assert given_to == ["e\u0301", "e\u0301"]
    dense = "e\u0301a" * 100
    assert nfc_batch([dense]) == [real(dense)] and given_to[2:] == [dense]
