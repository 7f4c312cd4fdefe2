"""What texts are compared by: the same characters as a naive reading of the definition finds, in linear time."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.naive_dedup import comparable, units

from kiloq.prepare.dedup import normal
from kiloq.prepare.dedup.minhash import units_of
from kiloq.prepare.dedup.normal import ALONE, GAP, SYMBOL, WORD, cut, fold, groups

from .samples import CHINESE, ENGLISH

TEXTS = st.text(st.one_of(st.sampled_from("aAé \n,.北がｶﾞ한ﬁ½İßΣς\u0301\u00ad\u0e33+™٣"), st.characters(max_codepoint=0x323AF, exclude_categories=["Cs", "Cn", "Co"])), max_size=30)  # fmt: skip


def plain(text: str) -> str:
    """The characters of `text` that count, decomposed as the oracle's are: Hangul alone is kept composed."""
    codes, kinds, _ = fold([text])
    return unicodedata.normalize("NFKD", "".join(map(chr, codes[kinds != GAP].tolist())))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Straße, ÉCOLE; naïve!", "strasse ecole naive"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ　１２", "full width 12"),
        ("ﬁnd Ⅷ ㈱ ½", "find viii 株 1⁄2"),
        ("so\u00adft zero\u200bwidth", "soft zerowidth"),
        ("ΟΔΟΣ ὁδός", "οδοσ οδος"),
        ("İstanbul ISTANBUL", "istanbul istanbul"),
        ("한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
        ("“北方”——的岛。", "北方的岛"),
        ("จำ", "จา"),
        ("a\n\n b\t-c", "abc"),
    ],
)
def test_what_is_the_same(text: str, same: str) -> None:
    assert plain(text) == plain(same)


@pytest.mark.parametrize(
    ("one", "other"), [("3 apples", "4 apples"), ("a+b", "a=b"), ("北方", "南方"), ("😀", "😁"), ("a", "")]
)
def test_what_is_not(one: str, other: str) -> None:
    assert plain(one) != plain(other)


@given(TEXTS)
def test_characters_agree_with_a_naive_reading(text: str) -> None:
    assert plain(text) == comparable(text)


@given(st.lists(TEXTS, max_size=4))
def test_units_agree_with_a_naive_reading(texts: list[str]) -> None:
    found = units_of(["", *texts])
    naive = [units(text) for text in ["", *texts]]
    assert found.counts.tolist() == [len(text) for text in naive]
    hashes: dict[str, int] = {}
    for unit, number in zip((unit for text in naive for unit in text), found.hashes.tolist(), strict=True):
        assert hashes.setdefault(unit, number) == number
    assert len(set(hashes.values())) == len(hashes)


@given(TEXTS)
def test_canonically_equal_texts_are_the_same(text: str) -> None:
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert plain(forms[0]) == plain(forms[1])


def test_kinds_and_bounds() -> None:
    codes, kinds, bounds = fold(["Hi, 北\u0301!", "", "+ﬁ"])
    assert kinds.tolist() == [WORD, WORD, GAP, GAP, ALONE, GAP, GAP, GAP, SYMBOL, WORD, WORD, GAP]
    assert bounds.tolist() == [0, 7, 8, 12]
    assert "".join(map(chr, codes[kinds != GAP])) == "hi北+fi"


def test_unspaced_text_is_told_by_most_of_its_letters() -> None:
    assert units_of([ENGLISH, CHINESE, "hello 北", "GPT 北方的岛", "", "!"]).unspaced.tolist() == [0, 1, 0, 1, 0, 0]


@given(st.lists(st.text(max_size=12), max_size=12))
def test_groups_and_pieces_lose_nothing(texts: list[str]) -> None:
    found = list(groups(texts))
    assert [place for start, end in found for place in range(start, end)] == list(range(len(texts)))
    assert all("".join(cut(text)) == text for text in texts)


def test_long_text_is_cut_at_a_space() -> None:
    size = normal.PIECE_CHARS
    pieces = list(cut(("word " * size)[: 2 * size]))
    assert all(len(piece) <= size for piece in pieces)
    assert all(piece.endswith(" ") for piece in pieces[:-1])
    assert list(map(len, cut("x" * (size + 1)))) == [size, 1]


@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, " " * 10**6, "\n" * 10**6, "北" * 10**6, "\u0301\u0323" * 500_000, "e" + "\u0301\uff9e" * 500_000,
     "\ufdfa" * 100_000, "\u1100\u1161" * 500_000, "\u200b" * 10**6],
    ids=["letter", "spaces", "newlines", "Han", "marks", "marks and letters that are marks", "letters of 18", "Jamo",
         "unseen"],
)  # fmt: skip
def test_hostile_text_is_folded(text: str) -> None:
    codes, kinds, bounds = fold([text, "end"])
    assert len(codes) == len(kinds) == bounds[-1]
    assert np.array_equal(kinds[bounds[1] :], [WORD, WORD, WORD, GAP])
    assert units_of([text, "end"]).counts[1] == 1
