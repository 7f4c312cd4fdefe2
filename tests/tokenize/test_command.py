"""`kiloq tokenize`: output for people, for machines and for pipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import qwen_vocabulary, shared

from kiloq.core.errors import MissingError, UsageError
from kiloq.tokenize.command import command


def run(*arguments: str, stdin: str | bytes = "", color: bool = False) -> str:
    result = CliRunner().invoke(command, arguments, input=stdin, color=color, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def vocabulary() -> str:
    return str(qwen_vocabulary())


def test_json_is_one_object(vocabulary: str) -> None:
    report = json.loads(run("text", "-t", vocabulary, "--json", " 根<|im_end|>"))
    assert report["ids"] == [51461, 117, 27, 91, 318, 6213, 91, 29]
    assert report["bytes"][:2] == ["IOag", "uQ=="] and report["pieces"][1] == "\ufffd"
    assert report["text"] == " 根<|im_end|>" and not any(report["special"])
    assert report["counts"] == {"tokens": 8, "bytes": 14, "characters": 12}
    allowed = json.loads(run("text", "-t", vocabulary, "--json", "--special", "<|im_end|>", " 根<|im_end|>"))
    assert allowed["ids"] == [51461, 117, 151645] and allowed["special"] == [False, False, True]


def test_for_people(vocabulary: str) -> None:
    text = run("text", "-t", vocabulary, "hi \x1b[2J根")
    assert "6023" in text and "5 tokens" not in text and "\x1b" not in text
    assert "\\x1b" in text and text.rstrip().endswith("bytes")
    assert run("text", "-t", vocabulary, stdin="hi\n") == run("text", "-t", vocabulary, "-", stdin="hi\n")
    assert run("text", "-t", vocabulary, stdin=b"\xff\n")


def test_decode(vocabulary: str) -> None:
    assert run("text", "-t", vocabulary, "--decode", "[151644, 9707]") == "<|im_start|>Hello\n"
    for wrong, said in (("12 x", "'x'"), ("-5", "'-5'"), ("999999", "999999")):
        with pytest.raises(UsageError, match=said):
            run("text", "-t", vocabulary, "--decode", "--", wrong)


def test_expand_and_use_it(vocabulary: str, tmp_path: Path) -> None:
    case = json.loads(shared("goldens", "tokenizer", "extra_vocab.json").read_text())[0]
    words, out = tmp_path / "words.tsv", tmp_path / "cats.tiktoken"
    words.write_text(case["input_word_tab_freq"], encoding="utf-8")
    assert f"{out}: 6 new tokens from id 151851" in run("expand", str(words), "--out", str(out), "-t", vocabulary)
    assert out.read_bytes() == shared("goldens", "tokenizer", case["output_file"]).read_bytes()
    report = json.loads(run("text", "-t", vocabulary, "--extra", str(out), "--json", "我是一只猫"))
    assert report["ids"] == [151854]
    again = json.loads(run("expand", str(words), "-o", str(out), "--start-id", "160000", "-t", vocabulary, "--json"))
    assert [token["id"] for token in again["tokens"]] == list(range(160_000, 160_006))
    assert set(again["skipped"]) == {"一只", "夸张的 比喻手法"}


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nothing\.tiktoken"):
        run("text", "-t", str(tmp_path / "nothing.tiktoken"), "x")
