"""Bad words: whole words where words are spaced, anywhere where they are not, by count and by share."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path

import pytest

from kiloq.core.errors import FormatError, MissingError
from kiloq.prepare.words import BadWords

from .samples import CHINESE, ENGLISH, reason

ROWS = [("en", "grim word"), ("en", "darn"), ("en", "f*dge"), ("de", "mist"), ("zh", "坏话"), ("zh", "坏"), ("ja", "だめ"),
        ("en", "🖕")]  # fmt: skip


@pytest.fixture
def listed(tmp_path: Path) -> str:
    path = tmp_path / "words.jsonl.gz"
    lines = "\n".join(json.dumps({"lang": language, "term": term}) for language, term in ROWS)
    path.write_bytes(gzip.compress(lines.encode()))
    return str(path)


@pytest.mark.parametrize(
    ("text", "language", "found"),
    [
        ("Darn it", "en", 1),
        ("darned darning undarn", "en", 0),
        ("darn darn, DARN!", "en", 3),
        ("a grim word, a grim wording", "en", 1),
        ("f*dge and f dge", "en", 1),
        ("mist on the sea", "en", 0),
        ("so ein Mist", "de", 1),
        ("他说坏话了", "zh", 1),
        ("坏话坏话，坏人", "zh", 2),
        ("それはだめです", "ja", 1),
        ("darn 坏话 mist", None, 2),
        ("🖕", "en", 1),
        ("darn", "fr", 0),
        (ENGLISH, "en", 0),
        (CHINESE, "zh", 0),
    ],
)
def test_terms_are_counted(listed: str, text: str, language: str | None, found: int) -> None:
    expected = f"words: {found} bad words, at most 0 may be" if found else None
    assert reason(BadWords(path=listed), text, language=language) == expected


def test_single_characters_count_when_asked(listed: str) -> None:
    assert BadWords(path=listed, least_chars=1).judge("坏人", "zh") == "words: 1 bad words, at most 0 may be"


def test_count_and_share(listed: str) -> None:
    text = "darn " + "fine " * 49
    assert BadWords(path=listed, most_count=1).judge(text, "en") is None
    assert BadWords(path=listed, most_count=None, most_share=0.02).judge(text, "en") is None
    share = BadWords(path=listed, most_count=None, most_share=0.01)
    assert share.judge(text, "en") == "words: 2.00% of all words are bad, at most 1.00% may be"


def test_terms_in_the_recipe_hold_for_every_language(tmp_path: Path) -> None:
    step = BadWords(terms=("storm", "灯塔"))
    assert reason(step, ENGLISH, language="fr") is not None
    assert reason(step, CHINESE, language="ja") is not None
    plain = tmp_path / "list.txt"
    plain.write_text("# a comment\nstorm\n\n", encoding="utf-8")
    assert reason(BadWords(path=str(plain)), ENGLISH) is not None


def test_the_list_travels_with_the_step(listed: str) -> None:
    step = BadWords(path=listed)
    copy = pickle.dumps(step)
    Path(listed).unlink()
    assert pickle.loads(copy).judge("darn", "en") == step.judge("darn", "en") is not None


def test_a_missing_or_damaged_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"none\.jsonl: there is no such word list"):
        BadWords(path=str(tmp_path / "none.jsonl"))
    for name, data in (
        ("a.jsonl", b"[1]"),
        ("b.jsonl", b"{"),
        ("c.txt", b"\xff"),
        ("d.jsonl.gz", b"plain"),
        ("e.jsonl", b'{"lang":1}'),
        ("f.txt.gz", gzip.compress(b"darn" * 1000)[:-9]),
        ("g.txt.gz", gzip.compress(b"darn")[:10] + b"\xff" * 20),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(FormatError, match=f"{name}: "):
            BadWords(path=str(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.txt"
    os.mkfifo(path)
    with pytest.raises(FormatError, match=r"pipe\.txt: is not a regular file"):
        BadWords(path=str(path))
