"""GSM8K and rejection samples: answers and equations checked against the labels that come with the real data."""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support import jsonl_gz, shared

from kiloq.core.errors import MissingError, UsageError
from kiloq.prepare.documents import meta_of
from kiloq.prepare.readers import gsm8k
from kiloq.prepare.readers.gsm8k import equations, final_answer, question_hash

from .reading import bads, reasons, rows, texts

QUESTION = "A  hen lays 3 eggs a day. How many in 6 days?"
RIGHT = "She lays 3*6 = <<3*6=18>>18 eggs.\n#### 18"
OTHER = "3+3+3+3+3+3=<<3+3+3+3+3+3=18>>18\n#### 18"


def lines(folder: Path, *found: dict[str, Any], name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_the_real_training_set() -> None:
    path = shared("data", "gsm8k", "train.jsonl.gz")
    wanted = list(jsonl_gz("data", "gsm8k", "train.jsonl.gz"))
    found = rows(path, reader="gsm8k")
    assert len(found) == len(wanted) == 7473 and bads(path, reader="gsm8k") == []
    for row, source in zip(found, wanted, strict=True):
        answer = source["answer"].rsplit("#### ", 1)[1]
        assert row["text"].startswith(source["question"].strip() + "\n")
        assert row["text"].endswith(f"\nThe answer is {answer}.") and "<<" not in row["text"]
        assert final_answer(row["text"]) == final_answer(source["answer"]) == Decimal(answer.replace(",", ""))
    kept = rows(path, reader="gsm8k", keep_marks=True, keep_final=True)
    assert [row["text"] for row in kept] == [f"{row['question'].strip()}\n{row['answer'].strip()}" for row in wanted]


def test_answers_of_models_are_judged_as_their_authors_did() -> None:
    """The oracle: is_correct of the published solutions; they and we may differ on answers that are no plain number."""
    agree = total = 0
    for row in jsonl_gz("data", "gsm8k", "model_solutions.jsonl.gz"):
        right = final_answer(row["ground_truth"])
        for solution in (value for value in row.values() if isinstance(value, dict)):
            total += 1
            agree += (final_answer(solution["solution"]) == right) == solution["is_correct"]
    assert total == 4 * 879 and agree >= total - 10


def test_model_solutions_become_documents_of_their_question() -> None:
    path = shared("data", "gsm8k", "model_solutions.jsonl.gz")
    found, bad = rows(path, reader="gsm8k"), bads(path, reader="gsm8k")
    assert len(found) + len(bad) == 4 * 879
    wrong = sum(not value["is_correct"] for row in jsonl_gz("data", "gsm8k", "model_solutions.jsonl.gz") for value in row.values() if isinstance(value, dict))  # fmt: skip
    counted = reasons(path, reader="gsm8k")
    assert counted["gsm8k: the solution is marked as wrong"] == wrong
    assert re.fullmatch(r"model_solutions\.jsonl\.gz#\d+/(6b|175b)_(finetuning|verification)", found[0]["id"])
    assert max(Counter(meta_of(row["meta"])["question"] for row in found).values()) in (2, 3, 4)
    assert set(counted) <= {
        "gsm8k: the solution is marked as wrong",
        "gsm8k: another solution of the question has the same equations",
    } | {reason for reason in counted if reason.startswith("gsm8k: the answer is wrong: ")}


def test_rejection_samples(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"query": QUESTION, "response": RIGHT},
        {"query": QUESTION.replace("  ", " "), "response": "Then 3 * 6 = <<3 * 6 = 18>>18.\n#### 18"},
        {"query": QUESTION, "response": OTHER, "answer": "18"},
        {"query": QUESTION, "response": RIGHT.replace("18", "19"), "answer": "#### 18"},
        {"query": QUESTION, "response": "I do not know."},
        {"query": QUESTION},
        {"query": "Another?", "response": RIGHT},
    )
    found = rows(path, reader="gsm8k")
    assert [row["id"] for row in found] == ["a.jsonl#1", "a.jsonl#3", "a.jsonl#7"]
    assert found[0]["text"] == f"{QUESTION}\nShe lays 3*6 = 18 eggs.\nThe answer is 18."
    assert meta_of(found[0]["meta"])["question"] == meta_of(found[1]["meta"])["question"] == question_hash(QUESTION)
    assert [(bad.where[-1], bad.reason) for bad in bads(path, reader="gsm8k")] == [
        ("2", "read: gsm8k: another solution of the question has the same equations"),
        ("4", "read: gsm8k: the answer is wrong: 19, right is 18"),
        ("5", "read: gsm8k: the solution ends without an answer"),
        ("6", "read: gsm8k: the row has no question and solution"),
    ]


def test_a_reference_checks_rows_that_have_no_answer(tmp_path: Path) -> None:
    reference = lines(tmp_path, {"question": QUESTION, "answer": RIGHT}, name="reference.jsonl")
    (tmp_path / "in").mkdir()
    path = lines(
        tmp_path / "in",
        {"query": QUESTION, "response": OTHER},
        {"query": QUESTION, "response": "#### 17"},
        {"query": "Another?", "response": "#### 17"},
    )
    assert [text[-17:] for text in texts(path, reader="gsm8k", reference_path=str(reference))] == ["The answer is 18."]
    assert reasons(path, reader="gsm8k", reference_path=str(reference)) == {
        "gsm8k: the answer is wrong: 17, right is 18": 1, "gsm8k: the reference has no answer to the question": 1
    }  # fmt: skip
    for name, error in (
        ("none.jsonl", MissingError),
        ("empty.jsonl", UsageError),
        ("bad.jsonl", UsageError),
        ("cut.jsonl.gz", UsageError),
    ):
        (tmp_path / "empty.jsonl").write_text("\n")
        (tmp_path / "bad.jsonl").write_text("{")
        (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b")
        with pytest.raises(error, match=str(tmp_path / name)) as caught:
            rows(path, reader="gsm8k", reference_path=str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 1,234", "1234"), ("#### $5.50", "5.5"), ("x\n#### -3", "-3"), ("A: 26", "26"), ("The answer is 7.", "7"),
        ("18", "18"), ("#### 2.0", "2"), ("#### 100", "100"), ("", None), ("#### none", None), ("#### 5 eggs", "5"),
        ("so many words that this is no answer, even with a 5 in it", None), ("#### " + "9" * 400, None),
    ],
)  # fmt: skip
def test_final_answers(text: str, answer: str | None) -> None:
    found = final_answer(text)
    assert found == (None if answer is None else Decimal(answer))
    assert found is None or "E" not in str(found)


def test_equations_are_those_of_the_marks_or_of_the_text() -> None:
    assert equations("a <<1 + 1 = 2>>2, $1,000*2=2,000") == ["1+1=2"]
    assert equations("He has 1,000 * 2 = 2,000 and 5+5=10.") == ["1000*2=2000", "5+5=10."]
    assert equations("no numbers") == []


def test_what_is_remembered_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path, *({"query": f"q{n % 3}", "response": f"{n % 3} #### 1"} for n in range(9)))
    assert len(rows(path, reader="gsm8k")) == 3
    monkeypatch.setattr(gsm8k, "MAX_PATHS", 2)
    assert len(rows(path, reader="gsm8k")) > 3


def test_hostile_solutions_end(tmp_path: Path) -> None:
    """Long runs of what the expressions look for; the suite's time limit is the assertion."""
    hostile = ["<<" * 100_000, "#### " * 50_000, "1 " * 100_000 + "=", "9" * 200_000, "A: " + " " * 200_000 + "x", "=" * 200_000, "(" * 200_000]  # fmt: skip
    path = lines(tmp_path, *({"question": text, "answer": text} for text in hostile))
    assert len(rows(path, reader="gsm8k")) + len(bads(path, reader="gsm8k")) == len(hostile)
