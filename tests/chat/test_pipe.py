"""`kiloq chat` without a terminal: one answer for each line of stdin, nothing else on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run


def test_every_line_is_answered(tmp_path: Path) -> None:
    done = run(["chat", "echo"], tmp_path, "hello\n\n  \n你好\r\nno newline at the end")
    assert done.stdout == "echo: hello\necho: 你好\necho: no newline at the end\n"
    assert (done.stderr, done.returncode) == ("", 0)


def test_no_input_is_no_answer(tmp_path: Path) -> None:
    done = run(["chat", "echo"], tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_turns_are_one_conversation(tmp_path: Path) -> None:
    done = run(["chat", "echo", "--system", "s"], tmp_path, "hi\nmessages?\n")
    assert json.loads(done.stdout.splitlines()[1]) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "echo: hi"},
        {"role": "user", "content": "messages?"},
    ]


def test_commands_work_and_conf_takes_effect(tmp_path: Path) -> None:
    done = run(
        ["chat", "echo", "--top-k", "9", "--cpu-only"], tmp_path, ":conf temperature=0.5\nsettings?\n:q\nhello\n"
    )
    assert done.stdout.splitlines()[-1] == '{"seed": 1234, "temperature": 0.5, "top_k": 9}'
    assert done.stderr == "kiloq: device cpu\n"


def test_failures_are_reported_and_the_rest_is_answered(tmp_path: Path) -> None:
    done = run(["chat", "echo"], tmp_path, b":nope\n\xff\xfe\n" + b"x" * 3000 + b"\nhello\n")
    assert done.stdout == "echo: hello\n"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("kiloq: there is no command :nope")
    assert lines[1].startswith("kiloq: line 2 is not UTF-8")
    assert lines[2].startswith("kiloq: the system message and the current turn take 3,004 tokens")
    assert done.returncode == 1


def test_unknown_command_alone_is_no_failure(tmp_path: Path) -> None:
    done = run(["chat", "echo"], tmp_path, ":nope\n")
    assert (done.stdout, done.returncode) == ("", 0)


def test_full_context_is_said(tmp_path: Path) -> None:
    done = run(["chat", "echo", "--max-new-tokens", "20"], tmp_path, "a" * 30 + "\n" + "b" * 30, ECHO_CONTEXT="100")
    assert done.stdout == "echo: " + "a" * 14 + "\necho: " + "b" * 14 + "\n"
    assert done.stderr == (
        "[cut at 20 tokens: :conf max_new_tokens=40 allows more]\n"
        "[the context is full: the model does not see the oldest 1 turn(s)]\n"
        "[cut at 20 tokens: :conf max_new_tokens=40 allows more]\n"
    )


def test_verbose_tells_speeds_on_stderr(tmp_path: Path) -> None:
    done = run(["chat", "echo", "--verbose"], tmp_path, "x\n")
    assert done.stdout == "echo: x\n"
    assert done.stderr == "prefill 5 tokens in 0.50 s (10.0 tokens/s), decode 7 tokens in 2.00 s (3.5 tokens/s)\n"


def test_load_continues_a_conversation(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    run(["chat", "echo"], tmp_path, f"hi\n:seed 5\n/save {file}\n")
    done = run(["chat", "echo", "--load", str(file)], tmp_path, ":history\nsettings?\n")
    assert done.stdout == 'you> hi\necho> echo: hi\n{"seed": 5}\n'
    done = run(["chat", "echo", "--load", str(file), "--seed", "6", "--lang", "zh"], tmp_path, ":his\nsettings?\n")
    assert done.stdout == '你> hi\necho> echo: hi\n{"seed": 6}\n'


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_load_of_a_bad_file_stops_before_the_model_is_loaded(name: str, tmp_path: Path) -> None:
    done = run(["chat", "missing-model", "--load", str(tmp_path / name)], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"kiloq: {tmp_path / name}")


def test_clear_writes_no_escape_sequence_into_a_pipe(tmp_path: Path) -> None:
    assert run(["chat", "echo"], tmp_path, ":clear\n").stdout == ""
