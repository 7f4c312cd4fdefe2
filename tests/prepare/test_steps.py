"""Steps from recipe tables, and what every step promises: as many rows, no dependence on batches, no hidden state."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiloq.core.errors import UsageError
from kiloq.prepare.documents import SCHEMA, Result, batch_of, meta_of, meta_text, texts_of
from kiloq.prepare.models.classifier import save_classifier
from kiloq.prepare.models.linear import Shape, train
from kiloq.prepare.models.scorer import PERCENTILES, Scorer, estimate_scorer, save_scorer, vocabulary
from kiloq.prepare.steps import STEPS, make_step

from .samples import CHINESE, ENGLISH

MADE_WITH_MORE = {"words", "classifier", "perplexity", "vote", "decontaminate"}  # have no defaults to be made with
TRAINED = ("classifier", "perplexity", "vote", "decontaminate")
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
    check_rows_and_batches([make_step(table)], rows, cut)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Steps that need models or an index, each with the steps before it that it needs, made of the two samples."""
    folder = tmp_path_factory.mktemp("models")
    examples = [(line, side) for text, side in ((ENGLISH, True), (CHINESE, False)) for line in text.split("\n")]
    model = train(lambda: examples, (5, 6), Shape(bits=12), epochs=3, rate=0.1, decay=1e-5, seed=0)
    save_classifier(model, folder / "classifier", {})
    texts = [ENGLISH, CHINESE]
    scorer = estimate_scorer(texts, vocabulary(texts, 200), 3, 1 << 16)
    save_scorer(Scorer(**{**vars(scorer), "percentiles": np.linspace(1, 8, PERCENTILES, dtype=np.float32)}),
                folder / "perplexity", {})  # fmt: skip
    (folder / "tests.jsonl").write_text(json.dumps({"question": ENGLISH.split("\n")[1]}) + "\n")
    tables: dict[str, dict[str, Any]] = {
        "classifier": {"path": str(folder / "classifier"), "least": 0.3, "languages": ["en", "zh"]},
        "perplexity": {"path": str(folder / "perplexity"), "most_percentile": 60.0},
        "vote": {"columns": ["quality", "perplexity"], "thresholds": [0.5, 6.0], "low": ["perplexity"], "least": 0.6},
        "decontaminate": {"paths": [str(folder / "tests.jsonl")], "mode": "cut", "margin": 20, "least_piece": 10},
    }
    steps: dict[str, Any] = {name: make_step({"kind": name, **table}) for name, table in tables.items()}
    steps["decontaminate"] = steps["decontaminate"].prepared(folder)
    before = {"vote": [steps["classifier"], steps["perplexity"]]}
    return {name: [*before.get(name, []), step] for name, step in steps.items()}


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROWS, max_size=6), cut=st.integers(0, 6))
def test_trained_steps_promise_the_same(
    trained: dict[str, list[Any]], name: str, rows: list[dict[str, Any]], cut: int
) -> None:
    check_rows_and_batches(trained[name], rows, cut)


def test_trained_steps_find_something(trained: dict[str, list[Any]]) -> None:
    """The property above would hold for steps that do nothing."""
    rows = batch_of([{"text": text, "language": "en"} for text in (ENGLISH, CHINESE, "q9 #" * 40)])
    for name in TRAINED:
        assert (
            any(apply_all(trained[name], rows).reasons) or texts_of(apply_all(trained[name], rows).batch)[0] != ENGLISH
        )


def test_every_step_is_in_the_property() -> None:
    alone = {name for name, kind in STEPS.items() if hasattr(kind, "apply")}
    assert alone == {*TRAINED, *(table["kind"] for table in TABLES)}


def apply_all(steps: list[Any], batch: Any) -> Result:
    """The last of `steps` on `batch` with the columns that the others add."""
    for step in steps[:-1]:
        batch = step.apply(batch).batch
    result: Result = steps[-1].apply(batch)
    return result


def check_rows_and_batches(steps: list[Any], rows: list[dict[str, Any]], cut: int) -> None:
    steps = pickle.loads(pickle.dumps(steps))
    whole = apply_all(steps, batch_of(rows))
    assert whole.batch.num_rows == len(whole.reasons) == len(rows)
    assert all(reason is None or (reason and "\n" not in reason) for reason in whole.reasons)
    parts = [apply_all(steps, batch_of(part)) for part in (rows[:cut], rows[cut:])]
    assert pa.Table.from_batches([part.batch for part in parts]).equals(pa.Table.from_batches([whole.batch]))
    assert parts[0].reasons + parts[1].reasons == whole.reasons
    assert sum((part.edits for part in parts), Counter()) == whole.edits
    assert [field for field in whole.batch.schema if field.name in SCHEMA.names] == list(SCHEMA)


@pytest.mark.parametrize(
    ("name", "text", "language"),
    [(name, ENGLISH, "en") for name in ALONE if name not in ("extract", "chinese")]
    + [(name, CHINESE, "zh") for name in ALONE if name != "extract"],
)
def test_prose_is_kept_as_it_is(name: str, text: str, language: str) -> None:
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
        ({"kind": "gopher", "most_bullet_lines": float("nan")}, "most_bullet_lines is nan"),
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
