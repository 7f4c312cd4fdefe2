"""How much of each source: against a naive oracle, at the limits of temperature and repetition, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kiloq.core.errors import UsageError
from kiloq.core.mixture import BLOCK, Mixture, places_of
from kiloq.prepare.mix import MAX_TEMPERATURE, Mix, Size, mix_record, mixed

SIZES = {"web": Size(900, 9_000_000), "code": Size(90, 900_000), "books": Size(1, 100_000)}


def epochs_of(mix: Mix, sizes: dict[str, Size] = SIZES) -> dict[str, float]:
    return {part.source: part.epochs for part in mixed(mix, sizes)}


def naive(mix: Mix, sizes: dict[str, Size]) -> dict[str, float]:
    """Water-filling by bisection: the level at which min(level * mass, limit) adds up to what is wanted."""
    given_ = {name: mix.epochs[name] * size.bytes for name, size in sizes.items() if name in mix.epochs}
    rest = {name: size for name, size in sizes.items() if name not in given_}
    wanted = sum(given_.values()) + sum(size.bytes for size in rest.values())
    wanted = mix.megabytes * 1e6 if mix.megabytes is not None else wanted
    masses = {name: mix.weights.get(name, 1.0) * size.bytes ** (1 / mix.temperature) for name, size in rest.items()}
    largest = max(masses.values(), default=0.0)
    if not largest or wanted <= sum(given_.values()):
        return {**dict.fromkeys(rest, 0.0), **given_}

    def poured(level: float) -> dict[str, float]:
        return {name: min(level * masses[name] / largest, mix.most_epochs * size.bytes) for name, size in rest.items()}

    low, high = 0.0, 1e30
    for _ in range(400):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(poured(middle).values()) < wanted - sum(given_.values()) else (low, middle)
    return {**poured(high), **given_}


SOURCES = st.dictionaries(
    st.sampled_from("abcdef"), st.builds(Size, st.integers(1, 10**6), st.integers(1, 10**9)), min_size=1
)


@given(SOURCES, st.data())
@settings(max_examples=150, deadline=None)
def test_amounts_are_those_of_the_oracle(sizes: dict[str, Size], data: st.DataObject) -> None:
    names = st.sampled_from(sorted(sizes))
    epochs = data.draw(st.dictionaries(names, st.floats(0, 4), max_size=2))
    weights = data.draw(st.dictionaries(names, st.sampled_from([0.0, 0.1, 1.0, 2.5, 30.0])))
    mix = Mix(
        megabytes=data.draw(st.one_of(st.none(), st.floats(1e-3, 1e4))),
        temperature=data.draw(st.sampled_from([0.5, 1.0, 2.0, 5.0, 100.0])),
        weights={name: weight for name, weight in weights.items() if name not in epochs},
        epochs=epochs,
    )
    fixed = sum(count * sizes[name].bytes for name, count in epochs.items())
    if mix.megabytes is not None and fixed > mix.megabytes * 1e6:
        with pytest.raises(UsageError, match="more than megabytes"):
            mixed(mix, sizes)
        return
    expected = naive(mix, sizes)
    assume(sum(expected.values()) > 1e-3)
    parts = mixed(mix, sizes)
    assert [(part.source, part.size) for part in parts] == list(sizes.items())
    for part in parts:
        assert part.epochs * part.size.bytes == pytest.approx(expected[part.source], rel=1e-6, abs=1e-3)
        assert part.epochs <= mix.most_epochs * (1 + 1e-12)
    assert sum(part.share for part in parts) == pytest.approx(1)
    wanted = places_of([part.epochs * part.size.documents for part in parts])
    assert sum(part.places for part in parts) == sum(wanted)
    assert all(
        abs(part.places - place) <= 1 for part, place in zip(parts, wanted, strict=True)
    )  # ties round either way


def test_without_settings_every_source_is_read_once() -> None:
    assert epochs_of(Mix()) == pytest.approx({"web": 1, "code": 1, "books": 1})
    assert epochs_of(Mix(megabytes=5)) == pytest.approx({"web": 0.5, "code": 0.5, "books": 0.5})
    assert [part.share for part in mixed(Mix(), SIZES)] == pytest.approx([0.9, 0.09, 0.01])


def test_temperature_goes_from_size_to_all_alike() -> None:
    mix = Mix(megabytes=0.3, temperature=MAX_TEMPERATURE)
    assert [part.share for part in mixed(mix, SIZES)] == pytest.approx([1 / 3] * 3, rel=0.03)
    shares = [mixed(Mix(megabytes=0.1, temperature=at), SIZES)[0].share for at in (0.5, 1.0, 2.0, 10.0, 100.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1:3] == pytest.approx([0.9, 30 / (30 + 10**0.5 * 3 + 10**0.5 * 1)], rel=0.02)


def test_what_a_full_source_gives_up_goes_to_the_others_in_their_proportion() -> None:
    epochs = epochs_of(Mix(megabytes=12, weights={"books": 1000.0}, most_epochs=2.0))
    assert epochs == pytest.approx({"books": 2, "web": 11.8 / 9.9, "code": 11.8 / 9.9})
    assert epochs_of(Mix(megabytes=1000, most_epochs=3.0)) == pytest.approx(dict.fromkeys(SIZES, 3))  # shorter


def test_given_epochs_are_kept_and_the_rest_is_shared() -> None:
    epochs = epochs_of(Mix(megabytes=9, epochs={"books": 4.0, "code": 0.0}))
    assert epochs == pytest.approx({"books": 4, "code": 0, "web": 8.6 / 9})
    assert mixed(Mix(epochs={"code": 0.0}), SIZES)[1].places == 0


def test_places_count_documents_and_shares_bytes() -> None:
    parts = mixed(Mix(), {"long": Size(1, 1_000_000), "short": Size(3, 1_000_000)})
    assert [part.share for part in parts] == pytest.approx([0.5, 0.5])
    assert [part.places for part in parts] == [BLOCK // 4, BLOCK * 3 // 4]


def test_an_empty_source_has_no_places() -> None:
    parts = mixed(Mix(weights={"none": 5.0}), {"none": Size(0, 0), "web": SIZES["web"]})
    assert [(part.epochs, part.share, part.places) for part in parts] == [(0, 0, 0), (1, 1, BLOCK)]
    assert mixed(Mix(epochs={"none": 2.0}), {"none": Size(0, 0), "web": SIZES["web"]})[0].places == 0


@pytest.mark.parametrize(
    ("mix", "sizes"),
    [
        (Mix(), {}),
        (Mix(), {"a": Size(0, 0)}),
        (Mix(weights={"a": 0.0}), {"a": Size(1, 1)}),
        (Mix(epochs={"a": 0.0}), {"a": Size(1, 1)}),
    ],
)
def test_nothing_to_mix_is_said(mix: Mix, sizes: dict[str, Size]) -> None:
    with pytest.raises(UsageError, match="there is no text to mix"):
        mixed(mix, sizes)


@pytest.mark.parametrize(
    ("settings_", "sentence"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: give a number above 0, at most 100"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 100.5}, "temperature is 100.5"),
        ({"megabytes": 0.0}, "megabytes is 0.0: give a number above 0"),
        ({"megabytes": float("inf")}, "megabytes is inf"),
        ({"most_epochs": float("nan")}, "most_epochs is nan"),
        ({"weights": {"a": -1.0}}, "a has -1.0: give a number from 0"),
        ({"epochs": {"a": float("nan")}}, "a has nan"),
        ({"weights": {"a": 1.0}, "epochs": {"a": 1.0}}, "a has a weight and epochs: give one of them"),
        ({"epochs": {"a": 5.0}}, "epochs of a are 5, above most_epochs, 4: give fewer, or raise the limit"),
    ],
)
def test_settings_that_are_refused(settings_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Mix(**settings_)


def test_a_source_that_the_recipe_does_not_have() -> None:
    Mix(weights={"web": 2.0}, epochs={"code": 1.0}).check_names(list(SIZES))
    for mix in (Mix(weights={"bokos": 2.0}), Mix(epochs={"bokos": 2.0})):
        with pytest.raises(UsageError, match="the source 'bokos' is not known: did you mean 'books'"):
            mix.check_names(list(SIZES))


def test_the_record_makes_the_mixture() -> None:
    mix = Mix(megabytes=12, temperature=2.0)
    parts = mixed(mix, SIZES)
    record = json.loads(json.dumps(mix_record(mix, parts, 5)))
    sources = record["sources"]
    mixture = Mixture([source["documents"] for source in sources], [source["places"] for source in sources], 5)
    assert mixture.draw(0).source in range(3)
    assert (record["seed"], record["block"], record["temperature"]) == (5, BLOCK, 2.0)
    assert record["bytes"] == pytest.approx(12e6, abs=1)
    assert record["documents"] == round(sum(part.epochs * part.size.documents for part in parts))
    assert [source["name"] for source in sources] == list(SIZES)
