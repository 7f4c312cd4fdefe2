"""`kiloq quantize` as a user types it, and the texts that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from oracles.tiny_models import save, tiny
from support import jsonl_gz, qwen_vocabulary

from kiloq.cli import main
from kiloq.convert.source import open_model
from kiloq.core.errors import FormatError, UsageError
from kiloq.quantize.calibration import check_length, conversation_ids, conversations, read_samples, spread, windows
from kiloq.tokenize.chatml import ChatML
from kiloq.tokenize.tokenizer import Tokenizer

TALK = {"conversations": [{"from": "user", "value": "hello " * 30}, {"from": "assistant", "value": "a hell of a text"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny("qwen2"), tmp_path / "model", tokenizer=True)


def test_conversations_to_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talks = tmp_path / "talks.json"
    talks.write_text(json.dumps([TALK] * 16))
    options = ["--group", "32", "--length", "100", "--out", str(tmp_path / "out"), "--calibration", str(talks)]
    assert main(["quantize", str(folder), *options, "--json"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert record["perplexity"]["before"] > 1
    assert len(record["errors"]) == 2
    assert "layer 2 of 2" in shown.err
    assert open_model(tmp_path / "out").quantised
    kept = json.loads((tmp_path / "out" / "quantisation.json").read_text())
    assert kept["run"]["calibration"] == "talks.json, 14 samples, 1,400 tokens"
    assert kept["perplexity"]["text"] == "talks.json"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert main(["quantize", str(tmp_path / "out"), *options[:-1], str(talks)]) == 2  # it is quantised already
    assert "quantised already" in capsys.readouterr().err


def test_rounding_without_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(folder), "--method", "rtn", "--bits", "8", "--out", str(tmp_path / "out")]) == 0
    assert "MB of weights" in capsys.readouterr().out
    assert "not measured" in (tmp_path / "out" / "report.html").read_text()


def test_gptq_without_text_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "/nowhere", "--out", "x"]) == 2
    assert "give --calibration FILE" in capsys.readouterr().err


def test_a_plan_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello a text " * 200)
    options = ["--calibration", str(text), "--length", "64", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["quantize", str(folder), *options, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["peak_bytes"] == sum(record["memory_bytes"].values())
    assert record["fits"]
    assert min(record["seconds"].values()) >= 0
    assert main(["quantize", str(folder), *options]) == 0
    assert "in all" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_refused_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(folder), "--method", "rtn", "--out", str(folder)]) == 2
    assert "not written by kiloq" in capsys.readouterr().err
    assert main(["quantize", str(folder), "--method", "rtn", "--damping", "2", "--out", str(tmp_path / "out")]) == 2
    assert "damping" in capsys.readouterr().err


class Parsing:
    """Qwen's tokenizer as the original's run_gptq.py used it: names of control tokens in texts become such tokens."""

    whole_turns = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return self._tokenizer.encode(text, special="all")

    def id_of(self, name: str) -> int:
        return self._tokenizer.id_of(name)


def test_conversations_are_rendered_as_in_the_original() -> None:
    """Equal ids, except that text never becomes a control token; with that put back, all are equal."""
    tokenizer = Tokenizer.load(qwen_vocabulary())
    plain = 0
    for row in jsonl_gz("goldens", "sft", "gptq_calibration_preprocess.jsonl.gz"):
        (messages,) = conversations(json.dumps([{"conversations": row["conversations"]}]).encode(), Path("x.json"))
        segments = ChatML().segments(Parsing(tokenizer), messages, add_generation_prompt=False)
        assert [part for segment in segments for part in segment.ids][: row["max_len"]] == row["input_ids"]
        if not any(name in turn["value"] for turn in row["conversations"] for name in tokenizer.special_tokens):
            plain += 1
            assert conversation_ids(tokenizer, messages, row["max_len"]) == row["input_ids"]
    assert plain > 30


def test_both_forms_of_conversations_and_json_lines(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    other = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]}
    path = tmp_path / "talks.jsonl"
    path.write_text(f"{json.dumps(TALK)}\n\n{json.dumps(other)}\n")
    first, second = read_samples(path, tokenizer, 1000, 10)
    assert "hello hello" in tokenizer.decode(first)
    assert "system\ns" in tokenizer.decode(second)


def test_text_is_cut_into_equal_windows(folder: Path, tmp_path: Path) -> None:
    tokenizer, text = Tokenizer.load(folder), "hello a text " * 50
    ids = tokenizer.encode(text)
    cut = windows(tokenizer, text, 32)
    assert {len(part) for part in cut} == {32}
    assert [token for part in cut for token in part] == ids[: 32 * len(cut)]
    assert windows(tokenizer, "hello", 32) == [tokenizer.encode("hello")]
    path = tmp_path / "text.txt"
    path.write_text(text)
    taken = read_samples(path, tokenizer, 32, 4)
    assert taken == spread(cut, 4)
    assert taken[0] == cut[0]
    assert len({tuple(part) for part in map(tuple, taken)}) <= 4
    assert check_length(4096, 128) == 128
    with pytest.raises(UsageError, match="at least 2"):
        check_length(1, 128)


BROKEN: dict[str, tuple[str, Any, str]] = {
    "nothing": ("a.txt", b"", "no text"),
    "one letter": ("a.txt", b"h", "no text"),
    "not UTF-8": ("a.txt", b"\xff\xfe hello", "UTF-8"),
    "no list": ("a.json", b"3", "no list"),
    "an empty list": ("a.json", b"[]", "no text"),
    "no turns": ("a.json", b'[{"text": "hello"}]', "neither"),
    "turns of numbers": ("a.json", b'[{"messages": [1]}]', "a turn"),
    "an unknown role": ("a.json", b'[{"messages": [{"role": "judge", "content": "x"}]}]', "a turn"),
    "a role that is a list": ("a.json", b'[{"messages": [{"role": [], "content": "x"}]}]', "a turn"),
    "half a line": ("a.jsonl", b'{"messages": ', "line 1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_files_are_refused(case: str, folder: Path, tmp_path: Path) -> None:
    name, data, message = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        read_samples(path, Tokenizer.load(folder), 64, 4)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
