"""Items of every evaluation set that lies here are found in prose, and nothing is found in text that is about other things."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import naive_grams
from support import jsonl_gz, shared

from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.safetensors import SafetensorsFile, write_safetensors
from kiloq.prepare.decontaminate import COLUMN, Decontaminate, contamination
from kiloq.prepare.documents import batch_of, texts_of
from kiloq.prepare.models import windows
from kiloq.prepare.models.items import Item, read_items
from kiloq.prepare.models.overlap import build_index, load_index
from kiloq.tokenize.texts import read_texts

from .samples import CHINESE, ENGLISH, run

SETS = (
    "bbh", "bfcl", "gsm8k/test.jsonl.gz", "humaneval", "ifeval", "mbpp", "mmlu", "flores200", "noncommercial/ceval",
    "noncommercial/cmmlu", "noncommercial/math", "noncommercial/wmt22",
)  # fmt: skip
QUESTION = (
    "A baker sells forty loaves in the morning and half as many after lunch; how many loaves does the baker sell?"
)
SHORT = "Which river flows through the city of Bremen?"  # 8 words
HAN = "某商店上午卖出四十个面包，下午卖出的只有上午的一半，请问这家商店一共卖出多少个面包？"
LONG = " ".join(f"word{n}" for n in range(400))  # 200 characters are some 27 words


@pytest.fixture(scope="module")
def all_sets(tmp_path_factory: pytest.TempPathFactory) -> Decontaminate:
    paths = tuple(str(shared("data", *name.split("/"))) for name in SETS)
    return Decontaminate(paths=paths).prepared(tmp_path_factory.mktemp("index"))


def prepared(tmp_path: Path, *rows: Any, **fields: Any) -> Decontaminate:
    """The step with an index of rows of a set called "bench/quiz"."""
    folder = tmp_path / "bench"
    folder.mkdir(exist_ok=True)
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Decontaminate(paths=(str(folder / "quiz.jsonl"),), **fields).prepared(tmp_path)


def found(step: Decontaminate, text: str) -> list[str]:
    """The items found in one text."""
    return [one for _, one in json.loads(run(step, text).batch.column(COLUMN)[0].as_py() or "[]")]


def test_every_item_is_found_in_prose(all_sets: Decontaminate) -> None:
    """All 36,000 of them, but for those that have fewer than 8 words or nothing that is theirs alone."""
    texts: dict[tuple[str, str], list[str]] = {}
    for item in read_items(all_sets.paths):
        texts.setdefault((item.set, item.id), []).extend([*item.texts, item.whole])
    (before, after), (vor, nach) = ENGLISH.split("\n", 1), CHINESE.split("\n", 1)
    pages = [
        "\n".join([before, " ".join(text).upper(), after] if place % 2 else [vor, "\n\n".join(text), nach])
        for place, text in enumerate(texts.values())
    ]
    own: Counter[str] = Counter()
    named: list[str | None] = []
    for start in range(0, len(pages), 1_000):
        result = all_sets.apply(batch_of([{"text": page} for page in pages[start : start + 1_000]]))
        column = result.batch.column(COLUMN).to_pylist()
        assert [reason is not None for reason in result.reasons] == [items is not None for items in column]
        named += column
    for (name, one), items in zip(texts, named, strict=True):
        own[name] += [name, one] in json.loads(items or "[]")
    report = contamination(named, str(all_sets.index_path))
    assert {name: (row["searchable"], row["hit"]) for name, row in report.items()} == {
        n: (own[n], own[n]) for n in report
    }
    whole = Counter({name: row["items"] - row["searchable"] for name, row in report.items()})
    assert +whole == {
        "bbh/test": 266, "wmt22/generaltest2022": 43, "ceval/subject_mapping": 155, "ceval/submission_example": 52
    }  # fmt: skip
    assert sum(row["hit"] for row in report.values()) > 34_000


def pages_of(*parts: str) -> list[str]:
    return [text.text[start : start + 3_000] for text in read_texts([shared("data", *parts)]) for start in range(0, len(text.text), 3_000)]  # fmt: skip


def test_nothing_is_found_in_other_text(all_sets: Decontaminate) -> None:
    """The one hit in 4 MB is a title of eight words, "The Legend of Zelda: …", which an item has as a whole text."""
    pages = [
        *pages_of("pretrain_text", "tinyshakespeare.txt.zst"),
        *pages_of("pretrain_text", "c4_demo.jsonl.zst"),
        *pages_of("pretrain_text", "wiki_demo.txt.zst"),
        *pages_of("long_documents", "zh_honglou_meng.txt.zst"),
        ENGLISH,
        CHINESE,
        " ".join(map(str, range(1, 200))),
        "1 " * 200,
    ]
    reasons = [reason for reason in run(all_sets, *pages).reasons if reason]
    assert len(pages) > 1_300
    assert reasons == [
        "decontaminate: has the item 'simple_python_352' of bfcl/bfcl: 'The Legend of Zelda: Breath of the Wild'"
    ]


def test_quotations_are_found_where_items_quote(all_sets: Decontaminate) -> None:
    """Mencius and the Declaration of Independence are in test items; what is found is there to be read."""
    pages = [text.text for text in read_texts([shared("data", "long_documents", "state_of_the_union.jsonl.zst")])]
    reasons = [reason for reason in run(all_sets, *pages).reasons if reason]
    assert len(reasons) == 3
    assert sum("We hold these truths to be self-evident" in reason for reason in reasons) == 2


def test_the_train_part_of_gsm8k_shares_phrases_with_its_test_part(all_sets: Decontaminate) -> None:
    rows = list(jsonl_gz("data", "gsm8k", "train.jsonl.gz"))
    result = run(all_sets, *(f"{row['question']}\n{row['answer']}" for row in rows))
    assert (len(rows), result.edits["hits of gsm8k/test"]) == (7_473, 7)


TEXTS = st.lists(st.sampled_from(["ab", "Ｃc", "d1", "2", "北", "方", "的", "岛", ",", "\n", " "]), max_size=60).map(
    "".join
)


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.lists(TEXTS, min_size=1, max_size=3))
def test_hits_are_those_of_a_loop(
    tmp_path_factory: pytest.TempPathFactory, learned: list[str], asked: list[str]
) -> None:
    words, least = 3, 2
    path = tmp_path_factory.mktemp("index") / "index"
    build_index([Item("s", str(n), [text], text) for n, text in enumerate(learned)], path, words, least, most_items=2)
    owners: dict[tuple[str, ...], set[str]] = {}
    for n, text in enumerate(learned):
        units = naive_grams.units(text)
        weight = sum(unit[3] for unit in units)
        grams = set(naive_grams.runs(units, 2 * words).values())
        if 2 * least <= weight < 2 * words:
            grams = {tuple(unit[2] for unit in units)}
        for gram in {gram for gram in grams if not "".join(gram).isdecimal()} or grams:
            owners.setdefault(gram, set()).add(str(n))
    kept = {gram: items for gram, items in owners.items() if len(items) <= 2}
    index = load_index(str(path))
    for text, hits in zip(asked, index.hits(asked), strict=True):
        units = naive_grams.units(text)
        expected = {
            (place, gram)
            for weight in range(2 * least, 2 * words + 1)
            for place, gram in naive_grams.runs(units, weight, exact=weight < 2 * words).items()
            if gram in kept
        }
        assert list(zip(hits.starts.tolist(), hits.ends.tolist(), strict=True)) == sorted(
            place for place, _ in expected
        )
        items = {index.name(number)[1] for number in index.items_of(hits.slots)}
        assert items == {item for _, gram in expected for item in kept[gram]}


def test_case_punctuation_and_layout_do_not_hide_an_item(tmp_path: Path) -> None:
    step = prepared(tmp_path, {"id": "q1", "question": QUESTION}, {"id": "q2", "question": HAN, "answer": SHORT})
    words = QUESTION.split()
    assert found(step, f"{ENGLISH} {QUESTION.upper()}") == ["q1"]
    assert found(step, "\n".join(words).replace(";", " -- ")) == ["q1"]
    assert found(step, " ".join(words[3:16])) == ["q1"]
    assert found(step, " ".join(words[3:15])) == []
    assert found(step, CHINESE + HAN.replace("，", " ,\n")) == ["q2"]
    assert found(step, HAN[:28]) == ["q2"]  # 26 characters and two commas
    assert found(step, HAN[:27]) == []
    assert found(step, f"Well: {SHORT.lower()} Tell me.") == ["q2"]
    assert found(step, SHORT.replace("city", "town")) == []


def test_short_items_count_as_a_whole_and_numbers_alone_where_there_is_nothing_else(tmp_path: Path) -> None:
    rows = [{"id": "parts", "question": "Name the capital of Peru.", "A": "Lima", "B": "Quito", "answer": "A"}, {"id": "tiny", "q": "No."},
            {"id": "sum", "q": "(1 + 2 - 3 * 44 - 5) + (6 * 7 - 8) ="}, {"id": 7, "q": QUESTION, "test": "9 8 7 6 5 4 3 2 1"}]  # fmt: skip
    step = prepared(tmp_path, *rows, least_words=8)
    assert found(step, "Name the capital of Peru: (A) Lima? (B) Quito?") == ["parts"]
    assert found(step, "1 2 3 44 5 6 7 8") == ["sum"]
    assert found(step, "9 8 7 6 5 4 3 2 1") == []
    assert found(step, QUESTION) == ["quiz:7"]
    report = contamination([None, '[["bench/quiz","sum"]]'], str(step.index_path))
    assert report == {"bench/quiz": {"items": 4, "searchable": 3, "hit": 1, "ids": ["sum"]}}


def test_instructions_that_many_items_share_do_not_count(tmp_path: Path) -> None:
    told = "Answer the following multiple choice question with one of the letters A, B, C or D and nothing else."
    rows = [{"id": "0", "q": f"{told} {QUESTION}"}]
    rows += [{"id": str(n), "q": f"{told} Item number {n} is about something else."} for n in range(1, 11)]
    step = prepared(tmp_path, *rows)
    assert found(step, told) == []
    assert found(step, QUESTION) == ["0"]
    assert len(found(prepared(tmp_path, *rows, most_items=11), told)) == 11


def test_drop_names_the_item_and_the_words(tmp_path: Path) -> None:
    step = prepared(tmp_path, {"id": "q1", "question": QUESTION})
    result = run(step, ENGLISH, f"{ENGLISH}\n{QUESTION}")
    assert result.reasons == [
        None,
        "decontaminate: has the item 'q1' of bench/quiz: 'A baker sells forty loaves in the morning and half as many after'",
    ]
    assert result.edits == {"hits of bench/quiz": 1}
    assert result.batch.column(COLUMN).to_pylist() == [None, '[["bench/quiz", "q1"]]']
    assert texts_of(result.batch)[1].endswith(QUESTION)


def test_cut_takes_the_margin_and_leaves_the_rest(tmp_path: Path) -> None:
    step = prepared(tmp_path, {"id": "q1", "question": QUESTION}, mode="cut")
    text = f"{LONG} {QUESTION} {LONG}"
    result = run(step, text, LONG)
    place = text.index(QUESTION)
    assert texts_of(result.batch) == [text[: place - 200].strip() + "\n\n" + text[place + len(QUESTION) - 1 + 200 :].strip(), LONG]  # fmt: skip
    assert (result.reasons, dict(result.edits)) == (
        [None, None],
        {"hits of bench/quiz": 1, "cuts around test items": 1},
    )
    assert run(step, texts_of(result.batch)[0]).batch.column(COLUMN).to_pylist() == [None]
    beside = run(step, f"{ENGLISH[:300]} {QUESTION}")
    assert beside.reasons == ["decontaminate: no piece of 200 characters is left beside test items"]
    many = run(step, f"{LONG} {QUESTION} " * 11)
    assert many.reasons == ["decontaminate: places with test items: 11, at most 10 may be"]
    assert run(step, f"{LONG} {QUESTION} " * 10).reasons == [None]
    assert run(step, f"{QUESTION} " * 50 + LONG).edits["cuts around test items"] == 1


def test_fields_choose_what_is_looked_for(tmp_path: Path) -> None:
    row = {"id": "q", "question": QUESTION, "answer": SHORT, "url": f"https://example.org/{QUESTION.replace(' ', '-')}"}
    assert found(prepared(tmp_path, row), SHORT) == ["q"]
    assert found(prepared(tmp_path, row, fields=("question",)), SHORT) == []
    assert found(prepared(tmp_path, row, skip_fields=("answer",)), SHORT) == []
    assert found(prepared(tmp_path, row, skip_fields=("question",)), QUESTION) == []


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    asked = [" ".join(f"{name}{n}" for n in range(14)) for name in "abcdefgh"]
    sets = tmp_path / "sets"
    for name in ("jsonl", "json", "data", "csv", "tsv", "parquet", "text", "packed"):
        (sets / name).mkdir(parents=True)
    deep = {"id": "deep", "turns": [[{"role": "user", "content": asked[0]}]]}
    (sets / "jsonl" / "a.jsonl.zst").write_bytes(zstandard.compress(json.dumps(deep).encode()))
    (sets / "json" / "a.json").write_text(json.dumps([{"q": asked[1]}]), encoding="utf-8-sig")
    (sets / "data" / "a.json").write_text(json.dumps({"version": 1, "data": [{"q": asked[2]}]}))
    with (sets / "csv" / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "A"], [asked[3], "9"]])
    (sets / "tsv" / "a.tsv").write_text(f"{asked[4]}\t1\n")
    table = io.BytesIO()
    pq.write_table(pa.table({"question": [asked[5]], "choices": [["a", "b"]]}), table)
    (sets / "parquet" / "a.parquet").write_bytes(table.getvalue())
    (sets / "text" / "a.txt").write_text(f"One paragraph.\n\n{asked[6][:50]}\n{asked[6][50:]}\n")
    (sets / "packed" / "a.parquet.gz").write_bytes(gzip.compress(table.getvalue()))
    (sets / "README.md").write_text(asked[7])
    step = Decontaminate(paths=(str(sets),)).prepared(tmp_path)
    named = [json.loads(items or "[]") for items in run(step, *asked).batch.column(COLUMN).to_pylist()]
    assert named == [
        [["jsonl", "deep"]], [["json", "a:1"]], [["data", "a:1"]], [["csv", "a:1"]], [["tsv", "a:1"]],
        [["packed", "a:1"], ["parquet", "a:1"]], [["text", "a:2"]], [],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl", b'{"q": "x"}\n{"q": ', "line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.json", b"{", "is not JSON"),
        ("a.csv", b"a,b\n" + b"x" * 200_000, "cannot be read as a table"),
        ("a.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 100)[:-9], "cannot be read"),
        ("a.zip", b"", "of no known kind"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises((FormatError, UsageError), match=sentence):
        Decontaminate(paths=(str(tmp_path / name),)).prepared(tmp_path)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        Decontaminate(paths=(str(tmp_path / "none.jsonl"),)).prepared(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no file with items"):
        Decontaminate(paths=(str(tmp_path / "empty"),)).prepared(tmp_path)
    with pytest.raises(UsageError, match="index is not built"):
        run(Decontaminate(paths=("x",)), "a")


def test_the_same_sets_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"id": str(n), "q": f"{QUESTION} {n}"} for n in range(30)]
    one = Path(str(prepared(tmp_path, *rows).index_path)).read_bytes()
    assert Path(str(prepared(tmp_path, *rows).index_path)).read_bytes() == one


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("items", np.zeros(0, np.uint32)),
        ("items", np.full(5_000, 7, np.uint32)),
        ("begins", "most"),
        ("counts", np.zeros(3, np.uint8)),
        ("names", np.frombuffer(b"[" * 9_000, np.uint8)),
        ("names", np.frombuffer(b'{"sets": ["a"], "items": [[3, "b"]], "found": [1]}', np.uint8)),
        ("lengths", "[1e9]"),
        ("lengths", "[true]"),
        ("words", "0"),
        ("bits", "1"),
    ],
)
def test_a_hostile_index_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = Path(str(prepared(tmp_path, {"id": "q1", "question": QUESTION}).index_path))
    file = SafetensorsFile(path)
    arrays = {one: file.array(one).copy() for one in file.names()}
    metadata = dict(file.metadata)
    if name in metadata:
        metadata[name] = value
    else:
        arrays[name] = np.full(len(arrays[name]), 2**32 - 1, np.uint32) if isinstance(value, str) else value
    write_safetensors(path, arrays, metadata)
    with pytest.raises(FormatError, match=str(path)):
        load_index(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 3_000_000,
        " " * 3_000_000,
        "北" * 2_000_000,
        "\u0301" * 2_000_000,
        ("x" * 40_000 + " ") * 80,
    ],
    ids=["letter", "spaces", "han", "marks", "long words"],
)
def test_hostile_text_ends(tmp_path: Path, text: str) -> None:
    step = prepared(tmp_path, {"id": "q1", "question": QUESTION})
    assert found(step, text) == []
    assert found(step, f"{text}\n{QUESTION}\n{text}") == ["q1"]


def test_a_text_in_parts_has_the_hits_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = prepared(tmp_path, {"id": "q1", "question": QUESTION}, {"id": "q2", "question": HAN, "answer": SHORT})
    text = " ".join([ENGLISH, QUESTION, CHINESE, HAN, QUESTION, SHORT, ENGLISH, QUESTION] * 3)
    index = load_index(str(step.index_path))
    (whole,) = index.hits([text])
    for size in (300, 333, 1_000, 2_500):
        monkeypatch.setattr(windows, "PART_CHARS", size)
        for hits in index.hits([text, text]):
            assert [column.tolist() for column in hits] == [column.tolist() for column in whole]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "there are no test sets"),
        ({"paths": ("a",), "mode": "mask"}, "mode is 'mask'"),
        ({"paths": ("a",), "words": 7}, "words is 7: give least_words, 8, to 100"),
        ({"paths": ("a",), "words": 101}, "words is 101"),
        ({"paths": ("a",), "most_items": 256}, "most_items is 256"),
        ({"paths": ("a",), "least_words": 0}, "least_words is 0"),
        ({"paths": ("a",), "margin": -1}, "margin is -1"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Decontaminate(**fields)
