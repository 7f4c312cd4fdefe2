"""`kiloq show` and `kiloq convert`: what a person and a program are told, and nothing raw from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from oracles.tiny_models import save, tiny

from kiloq.convert.command import convert_command, show_command
from kiloq.convert.show import describe, render
from kiloq.convert.source import open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.gguf_write import GGUFTensor, write_gguf
from kiloq.core.safetensors import write_safetensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("qwen2"), tmp_path_factory.mktemp("show") / "model", tokenizer=True)


def run(*arguments: str) -> str:
    command = {"show": show_command, "convert": convert_command}[arguments[0]]
    return CliRunner().invoke(command, list(arguments[1:]), catch_exceptions=False).stdout


def test_a_folder(folder: Path) -> None:
    record = json.loads(run("show", str(folder), "--json"))
    assert (record["what"], record["architecture"], record["format"]) == (
        "model",
        "Qwen2ForCausalLM",
        "Hugging Face folder",
    )
    assert record["parameters"] == 102_976
    assert record["size_bytes"] == (folder / "model.safetensors").stat().st_size
    assert record["stored_types"] == {"F32": 27}
    assert record["tokenizer"]["special_tokens"] == 3
    text = run("show", str(folder))
    for word in ("Qwen2ForCausalLM", "102,976", "max length: 128", "<|im_end|>"):
        assert word in text


def test_a_gguf_and_a_manifest(folder: Path, tmp_path: Path) -> None:
    run("convert", str(folder), "--to", "gguf", "--dtype", "q8_0", "--out", str(tmp_path / "a.gguf"))
    record = describe(tmp_path / "a.gguf")
    assert (record["format"], record["architecture"]) == ("GGUF file", "qwen2")
    assert record["stored_types"] == {"Q8_0": 16, "F32": 11}
    run("convert", str(tmp_path / "a.gguf"), "--to", "native", "--out", str(tmp_path / "out"))
    assert describe(tmp_path / "out")["manifest"]["counts"]["parameters"] == 102_976
    assert describe(tmp_path / "out" / "manifest.json")["kind"] == "model"
    assert describe(tmp_path / "out" / "tokenizer.json")["what"] == "tokenizer"
    assert describe(tmp_path / "out" / "model.safetensors")["tensors"]["model.norm.weight"]["shape"] == [64]


def test_control_characters_never_reach_the_terminal(tmp_path: Path) -> None:
    nasty = "\x1b]0;owned\x07\x1b[2J\r\nnext\u202e\x9b31m"
    write_gguf(
        tmp_path / "a.gguf",
        {"general.architecture": nasty, nasty: nasty, "tokenizer.chat_template": nasty},
        [GGUFTensor(nasty, "F32", (1,), lambda: np.ones(1, np.float32))],
    )
    write_safetensors(tmp_path / "a.safetensors", {nasty: np.ones(1, np.float32)}, {nasty: nasty})
    for name in ("a.gguf", "a.safetensors"):
        text = run("show", str(tmp_path / name))
        assert all(char.isprintable() or char == "\n" for char in text), ascii(text)
        assert "owned" in text


def test_what_it_is_not(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        run("show", str(tmp_path / "nothing"))
    with pytest.raises(FormatError, match="no model"):
        describe(tmp_path)
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(FormatError, match="known are"):
        describe(tmp_path / "a.docx")


def test_long_texts_are_cut() -> None:
    text = render({"what": "x", "chat_template": "t" * 10_000, "ids": list(range(500))})
    assert len(text) < 1000


def test_convert_says_what_it_did(folder: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(folder), "--to", "qwen1", "--out", str(tmp_path / "one"), "--dtype", "f32", "--json"]
    record = json.loads(run(*arguments))
    assert record["layout"] == "qwen1"
    assert record["notes"] == []
    assert open_model(tmp_path / "one").kind == "qwen1"
    result = CliRunner().invoke(
        convert_command, [str(tmp_path / "one"), "--to", "qwen2", "--out", str(tmp_path / "two")]
    )
    assert result.exit_code == 0
    assert "parameters" in result.stdout
    assert "writing" in result.stderr


def test_logn_is_said_in_one_line(tmp_path: Path) -> None:
    run("convert", str(save(tiny("qwen2"), tmp_path / "in")), "--to", "qwen1", "--out", str(tmp_path / "one"))
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    (tmp_path / "one" / "config.json").write_text(json.dumps(config | {"use_logn_attn": True, "use_dynamic_ntk": True}))
    for target in ("qwen2", "gguf"):
        out = str(tmp_path / f"out.{target}")
        result = CliRunner().invoke(
            convert_command, [str(tmp_path / "one"), "--to", target, "--out", out], catch_exceptions=False
        )
        lines = [line for line in result.stderr.splitlines() if "LogN" in line]
        assert len(lines) == 1
        assert "cannot be expressed" in lines[0]


def test_a_type_that_folders_do_not_have(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only in GGUF"):
        run("convert", str(folder), "--to", "qwen2", "--dtype", "q4_0", "--out", str(tmp_path / "x"))


def test_nan_is_a_warning_on_stderr(tmp_path: Path) -> None:
    model = tiny("qwen2")
    model.model.norm.weight.data[0] = float("nan")
    source = save(model, tmp_path / "in")
    result = CliRunner().invoke(convert_command, [str(source), "--to", "gguf", "--out", str(tmp_path / "a.gguf")])
    assert result.exit_code == 0
    assert "NaN" in result.stderr
    write_gguf_file(open_model(source), tmp_path / "b.gguf", "q4_0")
