"""Each published rule on a text that just passes and one that just fails, and the sentence that says why."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiloq.prepare.rules.c4 import C4
from kiloq.prepare.rules.chinese import Chinese
from kiloq.prepare.rules.fineweb import FineWeb
from kiloq.prepare.rules.gopher import Gopher, GopherRepetition
from kiloq.prepare.rules.text import Repeats, Text, repeated, sentences

from .samples import CHINESE, ENGLISH, edited, reason, run

LINE = "The keeper of the tower and that of the harbour have tea with us."
OFF: dict[str, Any] = dict(
    least_words=None, most_words=None, least_mean_chars=None, most_mean_chars=None, most_symbols=None,
    most_bullet_lines=None, most_ellipsis_lines=None, least_letter_words=None, least_stop_words=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "limit", "keep", "drop", "sentence"),
    [
        ("least_words", 3, "one, two - three!", "one - two!", "words: 2, at least 3 are needed"),
        ("least_words", 3, "北方的岛上", "北方岛", "words: 2, at least 3 are needed"),
        ("most_words", 2, "one two", "one two three", "words: 3, at most 2 may be"),
        ("least_mean_chars", 3.0, "abc (def)", "ab cde", "mean characters of a word: 2.5, at least 3 are needed"),
        ("most_mean_chars", 10.0, "a" * 10, "a" * 11, "mean characters of a word: 11, at most 10 may be"),
        ("most_mean_chars", 10.0, "北" * 30, "b" * 30, "mean characters of a word: 30"),
        ("most_symbols", 0.5, "# a b", "# # a b c", "hash signs per word: 0.666667, at most 0.5 may be"),
        ("most_symbols", 0.5, "a... b", "a... b…", "ellipses per word: 1, at most 0.5 may be"),
        ("most_bullet_lines", 0.5, "• a\nb", "• a\n- b\nc", "begin with a bullet: 66.67%, at most 50% may be"),
        ("most_ellipsis_lines", 0.5, "a...\nb", "a…\nb...\nc", "end with an ellipsis: 66.67%, at most 50% may be"),
        ("least_letter_words", 0.5, "a 1", "a 1 2", "words with a letter: 33.33%, at least 50% are needed"),
        ("least_stop_words", 2, "The cat AND dog", "the the cat", "stop words: 1, at least 2 are needed"),
        ("least_stop_words", 2, "我的岛上", "岛的北方", "stop words: 1, at least 2 are needed"),
    ],
)
def test_gopher(field: str, limit: Any, keep: str, drop: str, sentence: str) -> None:
    step = Gopher(**{**OFF, field: limit})
    assert reason(step, keep) is None
    assert sentence in (reason(step, drop) or "")
    assert reason(Gopher(**OFF), drop) is None


def test_gopher_asks_stop_words_of_english_and_chinese_only() -> None:
    step = Gopher(**{**OFF, "least_stop_words": 2})
    assert reason(step, "le vieux phare", language="fr") is None
    assert reason(step, "le vieux phare", language="en") is not None
    assert reason(step, "老灯塔", language="en") is not None


def test_gopher_gives_the_papers_reason() -> None:
    assert reason(Gopher(), "far too short") == "gopher: words: 3, at least 50 are needed"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "\n".join([LINE] * 3 + ["One other line.", "And the last of them."]),
            "repeated lines: 40%, at most 30% may be",
        ),
        ("\n".join([LINE * 3] * 2 + [f"Line {n} here." for n in range(6)]), "characters in repeated lines"),
        ("a b\n\na b\n\na b\n\nc d\n\ne f\n\ng h", "repeated lines: 33.33%"),
        ("ding dong " * 5 + " ".join(f"word{n}" for n in range(10)), "characters in the top 2-gram"),
        ((sample := " ".join(f"w{n}" for n in range(40))) + " " + sample, "characters in repeated 5-grams"),
        (CHINESE.replace("\n", "") * 2, "characters in repeated 5-grams: 50%, at most 15% may be"),
    ],
)
def test_gopher_repetition(text: str, sentence: str) -> None:
    assert sentence in (reason(GopherRepetition(), text) or "")
    off = GopherRepetition(
        most_lines=None,
        most_paragraphs=None,
        most_line_chars=None,
        most_paragraph_chars=None,
        most_top=(),
        most_duplicate=(),
    )
    assert reason(off, text) is None


def test_repeated_paragraphs_are_found_where_lines_are_not_asked() -> None:
    step = GopherRepetition(most_lines=None, most_line_chars=None)
    assert reason(step, "a b\n\na b\n\na b\n\nc d") == "gopher: repeated paragraphs: 50%, at most 30% may be"
    chars = GopherRepetition(most_lines=None, most_line_chars=None, most_paragraphs=None)
    assert "characters in repeated paragraphs" in (reason(chars, "a b\n\na b\n\na b\n\nc d") or "")


def naive_duplicate(units: list[str], n: int) -> float:
    """Oracle: mark the characters of every n-gram that stood before, with sets and loops."""
    seen, marked = set(), set()
    for start in range(len(units) - n + 1):
        gram = tuple(units[start : start + n])
        if gram in seen:
            marked |= set(range(start, start + n))
        seen.add(gram)
    return sum(len(units[place]) for place in marked) / max(1, sum(map(len, units)))


def naive_top(units: list[str], n: int) -> float:
    grams = [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]
    best = max((grams.count(gram) * sum(map(len, gram)) for gram in grams if grams.count(gram) > 1), default=0)
    return min(1.0, best / max(1, sum(map(len, units))))


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), max_size=24), st.integers(1, 6))
def test_repeats_agree_with_a_naive_count(units: list[str], n: int) -> None:
    assert Repeats(units).duplicate(n) == pytest.approx(naive_duplicate(units, n))
    assert Repeats(units).top(n) == pytest.approx(naive_top(units, n))


def test_repeated_counts_what_comes_after_the_first() -> None:
    assert repeated(["aa", "b", "aa", "aa"]) == (0.5, 4 / 7)
    assert repeated([]) == (0.0, 0.0)


C4_OFF = C4(
    punctuated_lines=False, least_line_words=None, most_word_chars=None, script_lines=False, policy_lines=False,
    citations=False, placeholder=False, curly_bracket=False, least_sentences=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "edit"),
    [
        ("A line that just stops", "lines without terminal punctuation removed"),
        ("A line that was cut...", "lines without terminal punctuation removed"),
        ("没有标点的一行文字", "lines without terminal punctuation removed"),
        ("Two words.", "lines with too few words removed"),
        ("登录。", "lines with too few words removed"),
        ("A word: " + "x" * 1_001 + ".", "lines with too long a word removed"),
        ("Please enable Javascript in your browser.", "lines about javascript removed"),
        ("This site uses cookies to know you better.", "lines about policies removed"),
        ("请先阅读我们的隐私政策。", "lines about policies removed"),
    ],
)
def test_c4_cuts_lines(line: str, edit: str) -> None:
    text = ENGLISH + "\n" + line
    result = run(C4(), text)
    assert (result.reasons, dict(result.edits)) == ([None], {edit: 1})
    assert edited(C4(), text) == ENGLISH
    assert edited(C4_OFF, text) == text


def test_c4_removes_citation_marks() -> None:
    text = ENGLISH.replace("island", "island[12][citation needed]").replace("story", "story[edit]")
    assert edited(C4(), text) == ENGLISH
    assert run(C4(), text).edits == {"citation marks removed": 3}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ENGLISH + "\nLorem ipsum dolor sit amet.", "c4: times lorem ipsum: 1, at most 0 may be"),
        (ENGLISH + "\nif (x) { y; }", "c4: curly brackets: 2, at most 0 may be"),
        ("Only one sentence here.\nAnd another one here!", "c4: sentences: 2, at least 5 are needed"),
        ("Home\nAbout\nContact", "c4: lines left: 0, at least 1 is needed"),
    ],
)
def test_c4_drops_pages(text: str, sentence: str) -> None:
    assert reason(C4(), text) == sentence
    assert edited(C4(), text) == text
    assert reason(C4_OFF, text) is None


def test_sentences_end_in_both_scripts() -> None:
    assert sentences("One. Two! Three? Mr.X is 3.5 m tall") == 3
    assert sentences("第一句。第二句！“第三句？”还有") == 3
    assert sentences('He said "no." Then he left.') == 2


@pytest.mark.parametrize(
    ("field", "limit", "keep", "drop", "sentence"),
    [
        ("least_punctuated", 0.5, "a.\nb.\nc", "a.\nb", "lines that end in punctuation: 50%, more than 50% are needed"),
        ("least_punctuated", 0.5, "北。", "北", "lines that end in punctuation: 0%"),
        ("most_short", 0.5, "x" * 30 + "\nb", "x" * 29, "lines under 30 characters: 100%, at most 50% may be"),
        ("most_short", 0.5, "北" * 10, "北" * 9, "lines under 30 characters: 100%"),
        ("most_repeated", 0.4, "ab\nab\ncdefgh", "ab\nab", "characters in repeated lines: 50%, at most 40% may be"),
        ("most_newlines", 0.5, "a b\nc d\ne f", "a\nb\nc", "line ends per word: 0.666667, at most 0.5 may be"),
    ],
)
def test_fineweb(field: str, limit: float, keep: str, drop: str, sentence: str) -> None:
    off: dict[str, Any] = dict(least_punctuated=None, most_short=None, most_repeated=None, most_newlines=None)
    step = FineWeb(**{**off, field: limit})
    assert reason(step, keep) is None
    assert sentence in (reason(step, drop) or "")
    assert reason(FineWeb(**off), drop) is None


@pytest.mark.parametrize(
    ("field", "limit", "keep", "drop", "sentence"),
    [
        ("least_han", 2, "北方", "北 x", "Han characters: 1, at least 2 are needed"),
        ("least_chars", 4, "北方 的岛", "北方 x", "characters: 3, at least 4 are needed"),
        (
            "least_line_chars",
            2.0,
            "北方\n的岛",
            "北\n方的\nx",
            "mean characters of a line: 1.33333, at least 2 are needed",
        ),
        ("least_han_share", 0.5, "北方ab", "北abc", "Han characters: 25%, at least 50% are needed"),
        ("least_sentences", 1, "北方。", "北方,岛", "sentence marks: 0, at least 1 are needed"),
        ("most_repeated", 0.3, CHINESE, CHINESE + CHINESE, "characters in repeated 13-grams: 50%, at most 30% may be"),
    ],
)
def test_chinese(field: str, limit: Any, keep: str, drop: str, sentence: str) -> None:
    off: dict[str, Any] = dict(
        least_han=None, least_chars=None, least_line_chars=None, least_han_share=None, least_sentences=None,
        most_repeated=None,
    )  # fmt: skip
    step = Chinese(**{**off, field: limit})
    assert reason(step, keep) is None
    assert reason(step, drop) == f"chinese: {sentence}"
    assert reason(Chinese(**off), drop) is None


def test_chinese_rules_leave_other_languages_alone() -> None:
    assert reason(Chinese(), ENGLISH, language="en") is None
    assert reason(Chinese(), ENGLISH) == "chinese: Han characters: 0, at least 10 are needed"


@pytest.mark.parametrize(
    ("text", "words", "unspaced"),
    [
        ("one two", 2, False),
        ("北方的岛", 2, True),
        ("北方的", 2, True),
        ("GPT 北方的岛很好", 4, True),
        ("hello 北", 2, False),
        ("สวัสดี", 2, True),  # the two vowel signs are marks on letters
        ("... - !", 0, False),
        ("", 0, False),
    ],
)
def test_words_are_counted_in_every_script(text: str, words: int, unspaced: bool) -> None:
    found = Text(text)
    assert (found.words, found.unspaced) == (words, unspaced)


@pytest.mark.parametrize("text", ["北" * 300_000, "# " * 300_000, "...\n" * 200_000, "[1" * 300_000, '."' * 300_000])
def test_hostile_text_ends(text: str) -> None:
    for step in (Gopher(), GopherRepetition(), C4(), FineWeb(), Chinese()):
        assert len(run(step, text).reasons) == 1


def test_a_longer_repeat_is_never_counted_less() -> None:
    shares = [Repeats(list("abcabcabcabc")).duplicate(n) for n in range(1, 12)]
    assert all(longer <= shorter for shorter, longer in pairwise(shares))
