"""`kiloq generate`: what goes to stdout and stderr, JSON, batches. Run as a process with the EchoModel."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run, spawn
from oracles.echo_model import EchoModel

from kiloq.generate.command import _run_batch


def test_prints_the_text_and_nothing_else(tmp_path: Path) -> None:
    done = run(["generate", "echo", "1 + 1 = 你好"], tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("echo: 1 + 1 = 你好\n", "", 0)


@pytest.mark.parametrize("arguments", [["generate", "echo", "-"], ["generate", "echo"]])
@pytest.mark.parametrize(("typed", "prompt"), [("a b\n", "a b"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" ", " ")])
def test_stdin_loses_one_newline(arguments: list[str], typed: str, prompt: str, tmp_path: Path) -> None:
    done = run([*arguments, "--json"], tmp_path, typed)
    assert json.loads(done.stdout)["text"] == f"echo: {prompt}"


@pytest.mark.parametrize(
    ("arguments", "stdin", "sentence"),
    [
        (["-"], b"", "the prompt is empty"),
        ([""], b"", "the prompt is empty"),
        (["-"], b"\xff\n", "stdin is not UTF-8 (byte 0)"),
        (["x", "--system", "s"], b"", "--system needs --chat"),
        (["x", "--out", "f"], b"", "--out belongs to --batch"),
        (["x", "--logprobs", "3"], b"", "--logprobs needs --json"),
        (["x", "--batch", "-"], b"", "--batch takes its prompts from the file"),
        (["--batch", "nowhere.jsonl"], b"", "nowhere.jsonl: there is no such file"),
        (["--batch", "-"], b"\n\n", "the batch has no lines"),
        (["x", "--logit-bias", "a=b"], b"", "--logit-bias is 'a=b'"),
        (["x", "--top-p", "nan"], b"", "top_p is nan: it must be a number from 0 to 1"),
        (["x", "--stop", ""], b"", "stop has ''"),
    ],
)
def test_bad_usage(arguments: list[str], stdin: bytes, sentence: str, tmp_path: Path) -> None:
    done = run(["generate", "echo", *arguments], tmp_path, stdin)
    assert done.returncode == 2
    assert done.stderr.startswith(f"kiloq: {sentence}")
    assert done.stdout == ""


def test_json_is_one_object(tmp_path: Path) -> None:
    done = run(["generate", "echo", "你", "--json", "--verbose"], tmp_path)
    shape = json.loads(done.stdout)
    assert shape["model"] == "echo"
    assert shape["text"] == "echo: 你"
    assert shape["usage"]["total_tokens"] == 8
    assert done.stdout.count("\n") == 1
    assert done.stderr == "prefill 1 tokens in 0.50 s (2.0 tokens/s), decode 7 tokens in 2.00 s (3.5 tokens/s)\n"


def test_several_answers(tmp_path: Path) -> None:
    shape = json.loads(run(["generate", "echo", "x", "-n", "3", "--json"], tmp_path).stdout)
    assert [completion["index"] for completion in shape["completions"]] == [0, 1, 2]
    text = run(["generate", "echo", "x", "-n", "2"], tmp_path).stdout
    assert text == "--- 1 of 2\necho: x\n--- 2 of 2\necho: x\n"


def test_every_option_reaches_the_model(tmp_path: Path) -> None:
    arguments = [
        "--temperature=0.5", "--top-k=3", "--top-p=0.9", "--min-p=0.1", "--repetition-penalty=1.1",
        "--presence-penalty=0.2", "--frequency-penalty=0.3", "--logit-bias=7=-1.5", "--logit-bias=8=2", "--seed=5",
        "--stop=###", "--stop=two", "--stop-id=4", "--max-new-tokens=600", "--min-new-tokens=2", "--ntk=frozen",
        "--ignore-eos", "--device=cpu", "--weights=fp32",
    ]  # fmt: skip
    done = run(["generate", "echo", "settings?", *arguments], tmp_path)
    assert json.loads(done.stdout) == {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "logit_bias": {"7": -1.5, "8": 2.0}, "seed": 5, "stop": ["###", "two"],
        "stop_ids": [4], "max_new_tokens": 600, "min_new_tokens": 2, "ntk": "frozen", "ignore_eos": True,
    }  # fmt: skip
    assert done.stderr == "kiloq: device cpu\nkiloq: weights fp32\n"


def test_options_that_are_not_given_leave_the_models_defaults(tmp_path: Path) -> None:
    assert run(["generate", "echo", "settings?"], tmp_path).stdout == "{}\n"


def test_chat_wraps_the_prompt(tmp_path: Path) -> None:
    done = run(["generate", "echo", "messages?", "--chat", "--system", "be brief"], tmp_path)
    assert json.loads(done.stdout) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "messages?"},
    ]


def batch(lines: list[Any], tmp_path: Path, *arguments: str) -> tuple[int, list[Any], str]:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))  # fmt: skip
    done = run(["generate", "echo", "--batch", str(file), *arguments], tmp_path)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_batch_answers_in_order(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "id": 7},
        {"messages": [{"role": "user", "content": "messages?"}], "system": "short"},
        b"",
        {"prompt": "settings?", "temperature": 0, "logit_bias": {"3": 1}, "stop": "#", "id": "x"},
        {"prompt": "b", "n": 2},
    ]
    code, records, stderr = batch(lines, tmp_path, "--temperature", "0.3", "--top-k", "4")
    assert (code, stderr) == (0, "")
    assert [record["line"] for record in records] == [1, 2, 4, 5]
    assert records[0]["id"] == 7
    assert records[0]["text"] == "echo: a"
    assert json.loads(records[1]["text"])[0] == {"role": "system", "content": "short"}
    assert json.loads(records[2]["text"]) == {"temperature": 0, "top_k": 4, "logit_bias": {"3": 1}, "stop": "#"}
    assert [completion["text"] for completion in records[3]["completions"]] == ["echo: b", "echo: b"]


BAD_LINES = [
    (b"not json", "line 1: is not valid JSON"),
    (b"[1]", "line 1: holds a JSON list"),
    (b"\xff", "line 1: is not valid JSON"),
    (b"[" * 100_000, "line 1: is JSON nested 100,000 deep"),
    (b'{"prompt": "x", "temperature": NaN}', "line 1: is not valid JSON"),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "line 1: is not valid JSON"),
    ({}, "the line needs either 'prompt' or 'messages'"),
    ({"prompt": "x", "messages": []}, "the line needs either"),
    ({"prompt": ""}, "'prompt' must be a text"),
    ({"prompt": 5}, "'prompt' must be a text"),
    ({"messages": []}, "'messages' is empty"),
    ({"messages": ["hello"]}, "'messages' must be a list of objects"),
    ({"messages": [{"role": "user", "content": "x"}], "system": 4}, "'system' must be a text"),
    ({"prompt": "x", "temprature": 1}, "there is no field 'temprature': did you mean 'temperature'?"),
    ({"prompt": "x", "temperature": "hot"}, "temperature is 'hot': it must be a number"),
    ({"prompt": "x", "top_k": 1.5}, "top_k is 1.5"),
    ({"prompt": "x", "logit_bias": {"a": 1}}, "a token id in logit_bias is 'a'"),
    ({"prompt": "x", "logit_bias": {"9" * 5000: 1}}, "a token id in logit_bias is "),
    ({"prompt": "x", "logit_bias": [1]}, "logit_bias"),
    ({"prompt": "x", "stop": 5}, "stop"),
    ({"prompt": "x", "stop_ids": 5}, "stop_ids"),
    ({"prompt": "x", "stop_ids": "5"}, "stop_ids is '5'"),
    ({"prompt": "x" * 3000}, "the prompt has 3000 tokens"),
]


@pytest.mark.parametrize("line", range(len(BAD_LINES)))
def test_bad_lines_get_an_error_record(line: int) -> None:
    """In process: twenty processes would take half a minute."""
    content, sentence = BAD_LINES[line]
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    sink = io.StringIO()
    failed = _run_batch(EchoModel(), io.BytesIO(data + b'\n{"prompt": "good"}\n'), sink, {}, {})  # type: ignore[arg-type]
    records = [json.loads(record) for record in sink.getvalue().splitlines()]
    assert failed == 1
    assert sentence in records[0]["error"]
    assert "\n" not in records[0]["error"]
    assert records[1]["text"] == "echo: good"


def test_batch_with_bad_lines_goes_on_and_exits_1(tmp_path: Path) -> None:
    code, records, stderr = batch([b"junk", {"prompt": "a", "id": 1}], tmp_path)
    assert code == 1
    assert "error" in records[0]
    assert records[1]["text"] == "echo: a"
    assert stderr == 'kiloq: 1 of 2 lines could not be answered: see the records with "error"\n'


def test_batch_out_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    code, records, _ = batch([{"prompt": "\ud800 你"}], tmp_path, "--out", str(out))
    assert (code, records) == (0, [])
    assert json.loads(out.read_bytes())["text"] == "echo: \ud800 你"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "prompts.jsonl"]


def test_batch_never_overwrites_its_prompts(tmp_path: Path) -> None:
    code, _, stderr = batch([{"prompt": "a"}], tmp_path, "--out", str(tmp_path / "prompts.jsonl"))
    assert code == 2
    assert "would overwrite the prompts" in stderr
    assert (tmp_path / "prompts.jsonl").read_text() == '{"prompt": "a"}\n'


def test_control_characters_reach_a_pipe_but_no_terminal(tmp_path: Path) -> None:
    assert "\x1b[31m" in run(["generate", "echo", "escape!"], tmp_path).stdout
    child = spawn(["generate", "echo", "escape!"], tmp_path)
    child.expect_exact(r"red \x1b[31mtitle \x1b]0;owned\x07clip \x9b5n end")
    child.wait()
