"""Votes over columns of scores: shares of weight, abstentions, and the sentence that names every voter."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from kiloq.core.errors import UsageError
from kiloq.prepare.documents import batch_of, with_column
from kiloq.prepare.models.vote import Vote

THREE = dict(columns=("quality", "perplexity", "toxicity"), thresholds=(0.5, 6.0, 0.2), low=("perplexity", "toxicity"))


def judged(step: Vote, *rows: tuple[float | None, ...]) -> list[str | None]:
    batch = batch_of([{"text": "a"} for _ in rows])
    for at, name in enumerate(step.columns):
        batch = with_column(batch, name, [row[at] for row in rows], pa.float32())
    return step.apply(batch).reasons


def test_a_majority_of_the_weight_keeps() -> None:
    step = Vote(**THREE, weights=(2.0, 1.0, 1.0))
    good, half, one = (0.5, 6.0, 0.125), (0.5, 7.0, 0.5), (0.25, 6.0, 0.5)
    assert judged(step, good, half, one) == [
        None,
        None,
        "vote: good say 0.25 of the weight, at least 0.5 are needed: "
        "quality 0.25 says bad, perplexity 6 says good, toxicity 0.5 says bad",
    ]
    assert [reason is None for reason in judged(Vote(**THREE, least=0.6), good, half, one)] == [True, False, False]


def test_null_abstains() -> None:
    step = Vote(**THREE, least=0.6)
    assert judged(step, (None, None, None), (None, 1.0, 0.0), (float("nan"), None, 0.0)) == [None, None, None]
    assert judged(step, (0.9, None, 0.9)) == [
        "vote: good say 0.5 of the weight, at least 0.6 are needed: "
        "quality 0.9 says good, perplexity abstains, toxicity 0.9 says bad"
    ]


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    step = Vote(columns=("quality",), thresholds=(0.5,))
    with pytest.raises(UsageError, match=r"no column 'quality'.*id, source, format, text, language, meta"):
        step.apply(batch_of([{"text": "a"}]))
    with pytest.raises(UsageError, match="the column text has no numbers"):
        Vote(columns=("text",), thresholds=(0.5,)).apply(batch_of([{"text": "a"}]))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "columns are none"),
        ({"columns": ("a", "a"), "thresholds": (1.0, 1.0)}, "each once"),
        ({"columns": ("a",)}, "0 thresholds for 1 columns"),
        ({"columns": ("a",), "thresholds": (1.0,), "weights": (1.0, 2.0)}, "2 weights for 1 columns"),
        ({"columns": ("a",), "thresholds": (1.0,), "weights": (0.0,)}, "above 0"),
        ({"columns": ("a",), "thresholds": (1.0,), "weights": (float("inf"),)}, "above 0"),
        ({"columns": ("a",), "thresholds": (1.0,), "low": ("b",)}, "'b', which is not one of columns: a"),
        ({"columns": ("a",), "thresholds": (1.0,), "least": 1.5}, "least is 1.5"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Vote(**fields)
