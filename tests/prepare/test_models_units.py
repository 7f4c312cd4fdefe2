"""Words, runs and their hashes in arrays are those of loops over strings; the table finds what was put into it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import naive_grams

from kiloq.prepare.models.table import EMPTY, MAX_PROBES, Table, fault, lay_out
from kiloq.prepare.models.units import Runs, code_points, folded, text_hash, units_of

TEXTS = st.text(st.sampled_from("ab Z9,.\n-'北方ＡｶあクสวÉé\u0301ß\U0001f600\U00020000\ud800"), max_size=40)


@settings(deadline=None)  # the first call makes tables of all Unicode
@given(TEXTS | st.text(max_size=30))
def test_units_are_those_of_a_loop(text: str) -> None:
    found = units_of(folded(text))
    expected = naive_grams.units(text)
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == [unit[:2] for unit in expected]
    assert found.single.tolist() == [unit[3] == 1 for unit in expected]
    assert found.hashes.tolist() == [naive_grams.key([ord(c) for c in unit[2]]) for unit in expected]


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 5))
def test_hashes_of_runs_are_those_of_whole_numbers(values: list[int], n: int) -> None:
    array = np.array(values, np.uint64)
    expected = [naive_grams.key(values[at : at + n]) for at in range(len(values) - n + 1)]
    assert Runs(array).grams(n).tolist() == expected


def test_folding_keeps_places() -> None:
    assert "".join(map(chr, folded("İＡＢ北ﬁÀ\ud800"))) == "İab北ﬁà\ud800"
    assert code_points("").tolist() == folded("").tolist() == []


def test_the_hash_of_a_text_is_the_same_everywhere() -> None:
    """Pinned: shares of documents that are chosen by it must not change with a version or a machine."""
    assert text_hash("kiloq") == 0x3D9800172720D6EE  # printf kiloq | b2sum -l 64, read from its end
    assert text_hash("灯塔\ud800") == 0xC910EAB0394F6EF7


@given(st.sets(st.integers(0, 2**64 - 2) | st.integers(2**63, 2**63 + 50), max_size=60), st.integers(0, 2**64 - 2))
def test_the_table_finds_its_keys_and_no_others(keys: set[int], other: int) -> None:
    ascending = np.array(sorted(keys), np.uint64)
    table, places = lay_out(ascending)
    assert fault(table.slots, table.bits) is None
    assert table.slots[places].tolist() == sorted(keys)
    assert table.find(ascending).tolist() == places.tolist()
    assert (table.find(np.array([other], np.uint64))[0] >= 0) == (other in keys)


def test_a_look_up_ends_in_any_table() -> None:
    """Slots that no one laid out: each key is looked for in a bounded number of them."""
    slots = np.zeros(1 << 16, np.uint64)
    slots[-1] = EMPTY
    assert Table(slots, 4).find(np.array([1, 2**64 - 2], np.uint64)).tolist() == [-1, -1]
    assert MAX_PROBES < 1 << 16
    assert fault(slots, 4) == "its keys are out of order"


@pytest.mark.parametrize(("length", "bits"), [(16, 4), (17, 0), (17, 64), (0, 1)])
def test_slots_that_do_not_hold_their_homes_are_refused(length: int, bits: int) -> None:
    assert fault(np.full(length, EMPTY, np.uint64), bits) is not None
    assert fault(np.zeros(17, np.uint64), 4) == "its last slot is not empty"
