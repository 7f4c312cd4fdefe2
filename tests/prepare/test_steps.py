"""Steps from recipe tables, and what every step promises: as many rows, no dependence on batches, no hidden state."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiloq.core.errors import UsageError
from kiloq.prepare.documents import SCHEMA, batch_of, meta_of, meta_text, texts_of
from kiloq.prepare.steps import STEPS, make_step

from .samples import CHINESE, ENGLISH

MADE_WITH_MORE = {"words", "classifier", "perplexity", "vote", "decontaminate"}  # have no defaults to be made with
ALONE = [name for name, kind in STEPS.items() if hasattr(kind, "apply") and name not in MADE_WITH_MORE]
TABLES: list[dict[str, Any]] = [{"kind": name} for name in ALONE]
TABLES += [
    {"kind": "words", "terms": ["storm", "灯塔"], "most_share": 0.01},
    {"kind": "language", "mode": "paragraph", "keep": ["en", "zh"]},
]
PIECES = st.sampled_from(
    [ENGLISH, CHINESE, "<p>", "</div>", "<title>A</title>", "a@b.org", "+44 20 7946 0958", "\ufffd", "\u200b", "\r\n",
     "AKIAABCDEFGHIJ234567", "{", "...", "...\n", "# ", "• x\n", "8.8.8.8", "", " ", "\0", "é", "4111 1111 1111 1111"]
)  # fmt: skip
TEXTS = st.one_of(st.none(), st.text(max_size=60), st.lists(PIECES, max_size=8).map("".join))
ROWS = st.fixed_dictionaries(
    {
        "text": TEXTS,
        "format": st.sampled_from(["html", "text", "code", "markdown"]),
        "language": st.sampled_from([None, "en", "zh", "fr"]),
        "meta": st.sampled_from(["{}", '{"url":"http://a.example/"}', "broken", None]),
    }
)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: "-".join(str(table[key]) for key in list(table)[:2]))
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROWS, max_size=6), cut=st.integers(0, 6))
def test_rows_stay_and_a_result_does_not_depend_on_the_batch(
    table: dict[str, Any], rows: list[dict[str, Any]], cut: int
) -> None:
    step = pickle.loads(pickle.dumps(make_step(table)))
    whole = step.apply(batch_of(rows))
    assert whole.batch.num_rows == len(whole.reasons) == len(rows)
    assert all(reason is None or (reason and "\n" not in reason) for reason in whole.reasons)
    parts = [step.apply(batch_of(part)) for part in (rows[:cut], rows[cut:])]
    assert pa.Table.from_batches([part.batch for part in parts]).equals(pa.Table.from_batches([whole.batch]))
    assert parts[0].reasons + parts[1].reasons == whole.reasons
    assert sum((part.edits for part in parts), Counter()) == whole.edits
    assert [field for field in whole.batch.schema if field.name in SCHEMA.names] == list(SCHEMA)


@pytest.mark.parametrize("name", [name for name in ALONE if name != "extract"])
@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh")])
def test_prose_is_kept_as_it_is(name: str, text: str, language: str) -> None:
    if name == "chinese" and language == "en":
        pytest.skip("leaves other languages alone, which its own test shows")
    result = make_step({"kind": name}).apply(batch_of([{"text": text, "language": language}]))
    assert (result.reasons, texts_of(result.batch)) == ([None], [text])


def test_a_table_gives_a_steps_fields() -> None:
    step: Any = make_step({"kind": "gopher", "least_words": 5, "most_words": False, "most_symbols": 1})
    assert (step.least_words, step.most_words, step.most_symbols) == (5, None, 1.0)
    lists: Any = make_step({"kind": "language", "keep": ["en", "zh"]})
    assert lists.keep == ("en", "zh")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({}, "has no kind"),
        ({"kind": 3}, "has no kind"),
        ({"kind": "gofer"}, "did you mean 'gopher'"),
        ({"kind": "gopher", "least_word": 1}, "did you mean 'least_words'"),
        ({"kind": "gopher", "zzz": 1}, "choose one of least_words"),
        ({"kind": "gopher", "least_words": "5"}, "least_words is '5': a whole number or false was expected"),
        ({"kind": "gopher", "least_words": True}, "least_words is True"),
        ({"kind": "gopher", "least_words": -1}, "least_words is -1: give 0 or more"),
        ({"kind": "gopher", "least_words": 9, "most_words": 8}, "give at most most_words, 8"),
        ({"kind": "gopher", "most_bullet_lines": 1.5}, "give a share from 0 to 1"),
        ({"kind": "gopher", "most_bullet_lines": float("nan")}, "give a share from 0 to 1"),
        ({"kind": "gopher_repetition", "most_top": [0.5]}, "give 3 shares"),
        ({"kind": "c4", "citations": 1}, "citations is 1: true or false was expected"),
        ({"kind": "language", "mode": "page"}, "choose one of document, paragraph"),
        ({"kind": "language", "mode": "paragraph"}, "name the languages to keep"),
        ({"kind": "language", "keep": "en"}, "a list or false was expected"),
        ({"kind": "words"}, "there is no list"),
        ({"kind": "words", "listed": []}, "is not known"),
        ({"kind": "words", "terms": ["x"], "most_count": False}, "both off"),
    ],
)
def test_a_wrong_table_is_answered_with_a_sentence(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make_step(table)


def test_meta_is_a_json_object_whatever_was_there() -> None:
    assert meta_of(None) == meta_of("[1]") == meta_of("{") == meta_of("[" * 100_000) == {}
    assert meta_text({"b": "ü", "a": 1}) == '{"a":1,"b":"ü"}'
