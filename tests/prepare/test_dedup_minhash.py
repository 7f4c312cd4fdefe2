"""MinHash signatures: how often they agree, against exact Jaccard similarities, and that they never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.naive_dedup import jaccard, shingles

from kiloq.core.hashing import mix
from kiloq.prepare.dedup import minhash, normal
from kiloq.prepare.dedup.lsh import buckets, chance, curve
from kiloq.prepare.dedup.minhash import EMPTY, signatures

from .planted import pairs
from .samples import CHINESE, ENGLISH

PLACES, SIZE = 112, 5
PINNED = [[17889168488725240441, 5637687254027404491], [7918928453392710312, 15197927973661262408]]
CASES = [(False, 40, 200), (False, 400, 1500), (True, 10, 60), (True, 100, 400)]  # Chinese or not, characters of a text


def agreement(one: str, other: str, places: int = PLACES) -> float:
    rows = signatures([one, other], places, SIZE, SIZE)
    return float((rows[0] == rows[1]).mean())


@pytest.mark.parametrize(("chinese", "least", "most"), CASES)
def test_agreement_and_candidates_are_as_the_theory_says(chinese: bool, least: int, most: int) -> None:
    """Within four standard deviations of independent places; the sketch's places agree no less evenly than those."""
    found = pairs(chinese, 1000, least, most, seed=5)
    similar = np.array([jaccard(shingles(one, SIZE), shingles(other, SIZE)) for one, other in found])
    rows = signatures([text for pair in found for text in pair], PLACES, SIZE, SIZE)
    same = (rows[::2] == rows[1::2]).mean(axis=1)
    deviation = np.sqrt(np.sum(similar * (1 - similar)) / PLACES)
    assert abs(np.sum(same - similar)) < 4 * deviation
    assert np.sqrt(np.sum((same - similar) ** 2)) < 1.1 * deviation
    hashes = buckets(rows, 14, 8)
    met = (hashes[::2] == hashes[1::2]).any(axis=1)
    likely = np.array([chance(similarity, 14, 8) for similarity in similar])
    assert abs(np.sum(met - likely)) < 4 * np.sqrt(np.sum(likely * (1 - likely)))
    assert met[similar >= 0.8].mean() >= 0.98
    assert (similar[met] >= 0.5).mean() >= 0.98


def test_the_curve_is_that_of_fineweb() -> None:
    """Penedo et al. 2024, section 3.4: 56%, 77%, 92% and 98.8% at .7, .75, .8 and .85."""
    assert [round(chance(similarity, 14, 8), 3) for similarity in (0.7, 0.75, 0.8, 0.85)] == [
        0.565,
        0.772,
        0.924,
        0.988,
    ]
    assert [similarity for similarity, _ in curve(14, 8)] == [
        0.5,
        0.55,
        0.6,
        0.65,
        0.7,
        0.75,
        0.8,
        0.85,
        0.9,
        0.95,
        1.0,
    ]
    assert curve(14, 8)[-1][1] == 1.0


def test_signatures_are_those_of_every_version() -> None:
    """Keys on disk outlive the program that wrote them: a change of these numbers needs another name of the step."""
    found = buckets(signatures([ENGLISH, CHINESE], PLACES, SIZE, SIZE), 14, 8)
    assert found[:, [0, 13]].tolist() == PINNED


@given(st.lists(st.sampled_from(["", "a", "one two", ENGLISH, CHINESE, "北方 " * 9, "a b c d e f g", "!"]), max_size=9))
def test_a_signature_does_not_depend_on_other_texts(texts: list[str]) -> None:
    alone = [signatures([text], 16, 3, 2)[0].tolist() for text in texts]
    assert signatures(texts, 16, 3, 2).tolist() == alone


@pytest.mark.parametrize("text", [ENGLISH * 9, CHINESE * 9, "ab " * 2_000, "x " * 3 + " " * 5_000, ENGLISH[:300] * 20])
def test_a_text_of_many_pieces_has_the_signature_of_one(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = signatures([text], PLACES, SIZE, 4)
    monkeypatch.setattr(minhash, "PIECE_CHARS", 1 << 10)
    monkeypatch.setattr(normal, "PIECE_CHARS", 1 << 10)
    monkeypatch.setattr(normal, "WORD_CHARS", 1 << 7)
    assert np.array_equal(signatures([text], PLACES, SIZE, 4), whole)


def test_a_long_text_with_many_shingles_is_like_itself_without_a_page() -> None:
    text = " ".join(str(number) for number in range(100_000))
    assert agreement(text, text[: len(text) * 9 // 10]) == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / PLACES))


def test_empty_and_short_texts() -> None:
    rows = signatures(["", " \n", "!?", "one two", "Two, one", "ONE two.", "one two three"], PLACES, SIZE, SIZE)
    assert (rows[:3] == EMPTY).all()
    assert (rows[3:] != EMPTY).all()
    assert (rows[3] == rows[5]).all()
    assert not (rows[3] == rows[[4, 6]]).any()


def test_words_and_characters_have_sizes_of_their_own() -> None:
    one, other = signatures([ENGLISH, CHINESE], PLACES, 3, 7), signatures([ENGLISH, CHINESE], PLACES, 3, 6)
    assert (one[0] == other[0]).all()
    assert not (one[1] == other[1]).any()
    assert agreement(ENGLISH, ENGLISH.upper()) == 1
    assert agreement(CHINESE, CHINESE.replace("。", ".\n")) == 1


def test_more_places_than_shingles() -> None:
    rows = signatures(["one", "one two three four five six"], 1000, SIZE, SIZE)
    assert (rows != EMPTY).all()


def test_mix_is_splitmix64() -> None:
    """The first outputs for seed 0, of the reference implementation (Vigna, splitmix64.c)."""
    seeds = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(seeds).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, " " * 10**6, "a " * 500_000, "北" * 10**6, "e" + "\u0301\u0323" * 500_000, "ab" * 500_000 + " c"],
    ids=["letter", "spaces", "words", "Han", "marks", "word"],
)
def test_hostile_text_has_a_signature(text: str) -> None:
    rows = signatures([text, ENGLISH, text], PLACES, SIZE, SIZE)
    assert (rows[0] == rows[2]).all()
    assert (rows[0] != EMPTY).all() == bool(text.strip())
    assert (rows[1] == signatures([ENGLISH], PLACES, SIZE, SIZE)[0]).all()


def test_many_tiny_texts() -> None:
    rows = signatures([f"{number % 1000} x" for number in range(20_000)], PLACES, SIZE, SIZE)
    assert len(np.unique(rows[:, 0])) == 1000
