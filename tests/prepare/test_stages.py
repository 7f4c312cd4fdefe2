"""How steps become stages and keys become ranges: nothing is left out, nothing is done twice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kiloq.prepare.dedup.exact import Exact
from kiloq.prepare.dedup.fuzzy import Fuzzy
from kiloq.prepare.documents import SCHEMA, batch_of
from kiloq.prepare.pipeline.stages import GlobalStep, KeyRange, Stage, docs_of, key_ranges, numbered, stages_of
from kiloq.prepare.rules.gopher import Gopher

STEPS = st.lists(st.sampled_from([Gopher(), Exact(), Fuzzy()]), max_size=8)


def test_global_steps_are_those_that_compare_documents() -> None:
    assert [isinstance(step, GlobalStep) for step in (Gopher(), Exact(), Fuzzy())] == [False, True, True]


def test_the_last_act_of_a_step_and_the_first_of_the_next_are_one_pass() -> None:
    assert stages_of([]) == [Stage(None, (), None)]
    assert stages_of([Gopher(), Gopher()]) == [Stage(None, (0, 1), None)]
    assert stages_of([Gopher(), Exact(), Gopher(), Fuzzy()]) == [
        Stage(None, (0,), 1),
        Stage(1, (2,), 3),
        Stage(3, (), None),
    ]
    assert stages_of([Exact(), Fuzzy()]) == [Stage(None, (), 0), Stage(0, (), 1), Stage(1, (), None)]


@given(STEPS)
def test_every_step_is_done_once_in_the_order_of_the_recipe(steps: list[Any]) -> None:
    stages = stages_of(steps)
    dropped: list[int] = []
    for stage in stages:
        dropped += [*([] if stage.drop is None else [stage.drop]), *stage.local]
    assert dropped == list(range(len(steps)))
    assert stages[0].drop is None and stages[-1].keys is None
    assert all(before.keys == after.drop is not None for before, after in pairwise(stages))


@given(st.lists(st.integers(0, 500), unique=True, max_size=20), st.integers(0, 10**12), st.integers(10**6, 10**9))
def test_ranges_cover_every_bucket_of_every_band_once(bands: list[int], keys: int, most: int) -> None:
    if keys // most > 1000:
        keys = most * 1000
    ranges = list(key_ranges(bands, keys, most))
    for band in bands:
        own = [found for found in ranges if found.band == band]
        assert (own[0].low, own[-1].high) == (0, 1 << 64)
        assert all(before.high == after.low for before, after in pairwise(own))
        widths = [found.high - found.low for found in own]
        assert max(widths) - min(widths) <= 1
        assert keys * max(widths) / (1 << 64) <= most * (1 + 1e-9) or len(own) == 1
    assert len(ranges) == len(bands) * max(1, -(-keys // most))


def test_few_keys_are_one_range() -> None:
    assert list(key_ranges([3], 0, 10)) == list(key_ranges([3], 10, 10)) == [KeyRange(3, 0, 1 << 64)]


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 5), st.integers(0, 4))
def test_numbers_tell_part_and_row(part: int, row: int, count: int) -> None:
    batch = numbered(batch_of([{"text": "a"}] * count), part, row)
    assert docs_of(batch).tolist() == [(part << 32) + row + at for at in range(count)]
    assert batch.schema.names == [*SCHEMA.names, "number"]
