"""Unicode clean-up, character by character, and what is broken beyond repair."""

from __future__ import annotations

import pytest

from kiloq.core.errors import UsageError
from kiloq.prepare.clean import Clean

from .samples import edited, reason, run


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("e\u0301", "é"),
        ("a\x00b\x07c\x7fd\x9fe", "abcde"),
        ("a\u200bb\ufeffc\u00add\u202ee", "abcde"),
        ("\ufeffstart", "start"),
        ("a\r\nb\rc\u2028d\x0be\x85f", "a\nb\nc\nd\ne\nf"),
        ("a  \t\nb\u3000\n", "a\nb"),
        ("\n\n\na\n\n\n\n\nb\n \n\t\nc\n\n", "a\n\nb\n\nc"),
        ("می\u200cخواهم 👩\u200d💻", "می\u200cخواهم 👩\u200d💻"),
        ("\ttab stays", "\ttab stays"),
        ("  indent stays", "  indent stays"),
    ],
)
def test_what_is_cleaned(text: str, cleaned: str) -> None:
    assert edited(Clean(), text) == cleaned
    assert edited(Clean(), cleaned) == cleaned


def test_formats_keep_what_means_something_in_them() -> None:
    assert edited(Clean(), "a  \nb", format="markdown") == "a  \nb"
    assert edited(Clean(), "a\n\n\n\n\nb\n\n\n", format="code") == "a\n\n\nb\n"


def test_edits_are_counted() -> None:
    edits = run(Clean(), "a\x00\u200b\r\nb \n\n\n\nc", "e\u0301").edits
    assert edits == {
        "line ends changed": 1,
        "control characters removed": 1,
        "invisible characters removed": 1,
        "lines stripped": 1,
        "blank lines removed": 2,
        "texts normalised": 1,
    }


def test_broken_text_is_dropped_with_its_share() -> None:
    text = "caf\ufffd " * 10
    assert reason(Clean(), text) == "clean: 10 broken characters are 20.0% of the text, at most 1.0% may be"
    assert reason(Clean(), "Ã©tÃ© Ã\xa0 la mer â€™") is not None
    assert reason(Clean(most_broken=None), text) is None
    assert reason(Clean(most_broken=0.2), text) is None
    assert reason(Clean(), "São Paulo à Âge") is None


def test_an_empty_text_is_dropped() -> None:
    assert reason(Clean(), " \u200b\n") == "clean: 0 characters are left, at least 1 are needed"
    assert reason(Clean(least_chars=0), "") is None


def test_rules_switch_off() -> None:
    assert edited(Clean(nfc=False, most_blank_lines=None), "e\u0301\n\n\n\nb") == "e\u0301\n\n\n\nb"
    with pytest.raises(UsageError, match="most_broken is 2: give a share"):
        Clean(most_broken=2)


@pytest.mark.parametrize("text", ["\u0301\u0316" * 200_000, " " * 1_000_000 + "x", "\n" * 1_000_000 + "x"])
def test_hostile_text_ends(text: str) -> None:
    """Sorting marks or trimming space takes hours where the time is quadratic."""
    assert run(Clean(least_chars=0), text).reasons == [None]
