"""Grade-school mathematics: GSM8K's questions with their solutions, and solutions that models wrote for them.

A document is a question and one solution. Of several solutions of a question those stay that come to the right answer
and have equations of their own: the same equations in the same order are the same reasoning. That is the rejection
sampling of RFT. Answers are compared as numbers with the row's own, or the reference's. A row that lacks both is
not checked. Sources: Cobbe et al. 2021 (GSM8K), Yuan et al. 2023 (RFT, arXiv 2308.01825).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from kiloq.core.errors import FormatError, UsageError
from kiloq.prepare.readers.jsonl import objects
from kiloq.prepare.readers.source import Bad, File, Row, Source, row_meta

QUESTIONS = ("question", "query")
SOLUTIONS = ("response", "solution", "answer")  # the first that a row has; an "answer" beside another is the right one
RIGHT = ("ground_truth", "reference", "answer")
MAX_PATHS = 1_000_000  # equations that are remembered of a file, some 100 bytes each: ours

_MARKS = re.compile(r"<<([^<>]{0,1000})>>")
_FINAL = re.compile(r"(?:####|A:|The answer is:?)[ \t]*(.{1,100}?)[ \t]*\.?\s*\Z")
_NUMBER = re.compile(r"-?(?:\d[\d,]*\.?\d*|\.\d+)")
_EQUATION = re.compile(r"[\d.,$%()+*/x×÷-][\d\s.,$%()+*/x×÷-]{0,100}=\s{0,8}[-$]{0,2}[\d.,]{1,40}")


def rows(file: File) -> Iterator[Row | Bad]:
    """Rows of format "text", a question and a solution each."""
    seen: dict[str, set[bytes]] = {}
    paths = 0
    for number, line, found in objects(file):
        if isinstance(found, Bad):
            yield found
            continue
        question = next((found[name] for name in QUESTIONS if isinstance(found.get(name), str)), None)
        solutions = _solutions(found)
        if question is None or not solutions:
            yield file.bad("gsm8k: the row has no question and solution", line, number)
            continue
        digest = question_hash(question)
        for name, solution in solutions.items():
            at = f"{number}/{name}" if name else number
            key = _path(solution["text"])
            if paths >= MAX_PATHS:
                seen, paths = {}, 0
            known = seen.setdefault(digest, set())
            if (reason := _against(file.source, found, solution, digest)) is not None:
                yield file.bad(reason, solution["text"], at)
            elif key in known:
                yield file.bad("gsm8k: another solution of the question has the same equations", solution["text"], at)
            else:
                known.add(key)
                paths += 1
                meta = {**row_meta(file.source, found), "question": digest}
                yield file.row(f"{question.strip()}\n{written(solution['text'], file.source)}", "text", meta, at)


def _solutions(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The solutions in a row by name, "" for its only one: GSM8K's model solutions have one in each of four tables."""
    for name in SOLUTIONS:
        if isinstance(text := row.get(name), str):
            return {"": {"text": text, "field": name, "right": row.get("is_correct")}}
    return {
        name: {"text": value["solution"], "field": name, "right": value.get("is_correct")}
        for name, value in row.items()
        if isinstance(value, dict) and isinstance(value.get("solution"), str)
    }


def _against(source: Source, row: Mapping[str, Any], solution: Mapping[str, Any], digest: str) -> str | None:
    """The reason against a solution, or None."""
    if solution["right"] is False:
        return "gsm8k: the solution is marked as wrong"
    right = next((final_answer(row[n]) for n in RIGHT if n != solution["field"] and isinstance(row.get(n), str)), None)
    if right is None and source.reference_path is not None:
        right = read_reference(source.reference_path).get(digest)
        if right is None:
            return "gsm8k: the reference has no answer to the question"
    answer = final_answer(solution["text"])
    if answer is None:
        return "gsm8k: the solution ends without an answer"
    return None if right is None or answer == right else f"gsm8k: the answer is wrong: {answer}, right is {right}"


def final_answer(solution: str) -> Decimal | None:
    """The number that a solution ends with ("#### 18", "A: 18", "The answer is 18."); also of a number alone."""
    text = solution.strip()[-500:]
    found = _FINAL.search(text)
    number = _NUMBER.search((found[1] if found else text if len(text) <= 40 else "").replace("$", ""))
    return Decimal(number[0].replace(",", "").rstrip(".")).normalize() + 0 if number else None


def question_hash(question: str) -> str:
    """The same for questions that differ in white space alone; 16 hexadecimal digits."""
    return hashlib.blake2b(" ".join(question.split()).encode("utf-8", "replace"), digest_size=8).hexdigest()


def equations(solution: str) -> list[str]:
    """The equations of a solution in their order: those in the calculator's marks, else those in the text."""
    found = _MARKS.findall(solution) or _EQUATION.findall(solution)
    return ["".join(equation.split()).replace("$", "").replace(",", "") for equation in found]


def written(solution: str, source: Source) -> str:
    """A solution as it is kept: without marks, its last line a sentence."""
    text = solution.strip()
    if not source.keep_marks:
        text = _MARKS.sub("", text)
    if not source.keep_final and (found := _FINAL.search(text[-500:])):
        text = text[: len(text) - len(text[-500:]) + found.start()] + f"The answer is {found[1]}."
    return text


def _path(solution: str) -> bytes:
    """What makes a way of reasoning: its equations, or all its words if it has none."""
    parts = equations(solution) or solution.split()
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=16).digest()


@lru_cache(maxsize=4)
def read_reference(path: str) -> Mapping[str, Decimal]:
    """The right answers of a file of JSON lines by the hash of the question. Raises UsageError or MissingError."""
    file = File(Source(name="reference", path=path), Path(path).parent, Path(path).name)
    answers: dict[str, Decimal] = {}
    try:
        for number, _, row in objects(file):
            if isinstance(row, Bad):
                raise UsageError(f"{path}: line {number:,} of the reference: {row.reason.removeprefix('read: ')}")
            question = next((row[name] for name in QUESTIONS if isinstance(row.get(name), str)), None)
            texts = (row[name] for name in RIGHT if isinstance(row.get(name), str))
            answer = next((found for text in texts if (found := final_answer(text)) is not None), None)
            if question is not None and answer is not None:
                answers[question_hash(question)] = answer
    except FormatError as error:  # the reader of a source would take it for damage there
        raise UsageError(str(error)) from None
    if not answers:
        raise UsageError(f"{path}: has no questions with answers: give the reference as lines of GSM8K's form")
    return answers
