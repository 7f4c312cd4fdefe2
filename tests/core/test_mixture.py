"""The order of a mixed stream: exact shares in every block, whole epochs, and no memory of what was drawn before."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiloq.core.errors import UsageError
from kiloq.core.mixture import BLOCK, Mixture, _block, places_of

DOCUMENTS = (1000, 7, 0, 90_000, 1)
PLACES = (30_000, 5_000, 0, 30_535, 1)


def test_every_block_has_the_exact_places_and_every_epoch_each_document_once() -> None:
    mixture = Mixture(DOCUMENTS, PLACES, 3)
    read: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    order = []
    for block in range(3):
        draws = mixture.batch(block, BLOCK)
        order.append([draw.source for draw in draws])
        counts = Counter(order[-1])
        assert [counts[source] for source in range(len(PLACES))] == list(PLACES)
        for source, epoch, document in draws:
            read[source, epoch].append(document)
    for source, (documents, places) in enumerate(zip(DOCUMENTS, PLACES, strict=True)):
        epochs, rest = divmod(3 * places, documents) if documents else (0, 0)
        assert sum(1 for key in read if key[0] == source) == epochs + (rest > 0)
        for epoch in range(epochs):
            assert sorted(read[source, epoch]) == list(range(documents))
        assert len(set(read[source, epochs])) == len(read[source, epochs]) == rest
        assert all(0 <= document < documents for document in read[source, epochs])
    assert order[0] != order[1] != order[2] != order[0]
    assert len({tuple(read[0, epoch]) for epoch in range(90)}) == 90  # an epoch has an order of its own
    assert read[0, 0] != sorted(read[0, 0])


def test_epochs_are_read_one_after_the_other() -> None:
    epochs = [draw.epoch for draw in Mixture([100], [BLOCK], 0).batch(0, 1000)]
    assert epochs == [number // 100 for number in range(1000)]


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    numbers = [*range(BLOCK - 40, BLOCK + 40), *range(5 * BLOCK, 5 * BLOCK + 40)]
    expected = {number: Mixture(DOCUMENTS, PLACES, 3).draw(number) for number in numbers}
    random.Random(0).shuffle(numbers)
    mixture = Mixture(DOCUMENTS, PLACES, 3)
    for number in numbers:
        if number % 7 == 0:
            _block.cache_clear()
            mixture._epoch.cache_clear()
        assert mixture.draw(number) == expected[number]
    assert [Mixture(DOCUMENTS, PLACES, 4).draw(number) for number in numbers] != [expected[n] for n in numbers]


def test_batches_of_any_size_are_the_same_stream() -> None:
    mixture = Mixture(DOCUMENTS, PLACES, 3)
    stream = [mixture.draw(number) for number in range(420)]
    for size in (1, 4, 7, 60, 420):
        assert [draw for step in range(420 // size) for draw in mixture.batch(step, size)] == stream


def test_the_order_stays_what_it_was() -> None:
    """Training that was begun with an earlier kiloq goes on with the same documents."""
    mixture = Mixture([1000, 10], [BLOCK - 6000, 6000], 1)
    assert [tuple(mixture.draw(number)) for number in (0, 1, BLOCK, 10**9)] == [
        (0, 0, 461),
        (0, 0, 10),
        (0, 59, 705),
        (0, 908447, 186),
    ]


@pytest.mark.parametrize(
    ("documents", "places", "sentence"),
    [
        ([1], [BLOCK - 1], "do not add up to 65536 for 1 sources"),
        ([1, 1], [BLOCK], "for 2 sources"),
        ([], [], "for 0 sources"),
        ([1, 1], [BLOCK + 1, -1], "do not add up"),
        ([1, 0], [BLOCK - 1, 1], "a source without documents has places"),
    ],
)
def test_a_mixture_that_cannot_be(documents: list[int], places: list[int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Mixture(documents, places, 0)


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9), st.integers(1, 10**12)), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_places_are_the_nearest_whole_numbers_that_add_up(shares: list[float]) -> None:
    if not any(shares):
        shares = [*shares, 1.0]
    places = places_of(shares)
    assert sum(places) == BLOCK
    total = sum(map(Fraction, shares))
    exact = [Fraction(share) / total * BLOCK for share in shares]
    assert all((place > 0) == (share > 0) for place, share in zip(places, shares, strict=True))
    if all(value == 0 or value >= 1 for value in exact):  # no tiny share takes from a larger one
        assert all(abs(place - value) < 1 + Fraction(1, 10**6) for place, value in zip(places, exact, strict=True))


def test_places_by_largest_remainder_and_for_tiny_shares() -> None:
    third = BLOCK // 3
    assert places_of([1, 1, 1]) == [third + 1, third, third]
    assert places_of([3, 1]) == [BLOCK * 3 // 4, BLOCK // 4]
    assert places_of([1.0, 1e-12, 0.0, 1e-12]) == [BLOCK - 2, 1, 0, 1]
    assert places_of([1e-12] * 3 + [1.0, 1.0]) == [1, 1, 1, BLOCK // 2 - 2, BLOCK // 2 - 1]


@pytest.mark.parametrize("shares", [[], [0.0], [1.0, -0.5], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_shares_that_are_none(shares: list[float]) -> None:
    with pytest.raises(UsageError, match="are no shares: give numbers from 0"):
        places_of(shares)
