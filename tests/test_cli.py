"""The command line itself: the table of verbs, errors as sentences, exit codes, what start-up may import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
from command_line import ECHO, KILOQ, environment, run

from kiloq.cli import VERBS, cli


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_exists(name: str) -> None:
    command = getattr(import_module(VERBS[name].module), VERBS[name].attribute)
    assert isinstance(command, click.Command)


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_and_version_import_nothing_heavy(option: str, tmp_path: Path) -> None:
    code = (
        "import sys, atexit\n"
        "from kiloq.cli import main\n"
        "assert main([sys.argv[1]]) == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'tiktoken', 'prompt_toolkit', 'jinja2', 'gguf', 'regex'}\n"
        "verbs = {'kiloq.generate', 'kiloq.chat', 'kiloq.convert', 'kiloq.tokenize', 'kiloq.model'}\n"
        "found = (heavy | verbs) & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)\n"
    )
    done = run([option], tmp_path, program=[sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_lists_the_verbs_and_completion(tmp_path: Path) -> None:
    text = run(["--help"], tmp_path, program=KILOQ).stdout
    for name, verb in VERBS.items():
        assert name in text
        assert verb.help in text
    assert "_KILOQ_COMPLETE=bash_source" in text


def test_no_verb_prints_help_and_fails(tmp_path: Path) -> None:
    done = run([], tmp_path)
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["chatt", "echo"], 2, "kiloq: there is no command 'chatt': did you mean 'chat'? (see kiloq --help)\n"),
        (["generate", "echo", "x", "--temperature", "warm"], 2, "kiloq generate: Invalid value for '--temperature'"),
        (["generate", "echo", "x", "--temperature", "200"], 2, "kiloq: temperature is 200.0: it must be a number"),
        (["generate", "missing", "x"], 1, "kiloq: missing: there is no such model: run kiloq get smollm2\n"),
        (["generate", "broken", "x"], 1, "kiloq: this should not have happened (ZeroDivisionError: a bug of ours)"),
        (["generate", "echo", "x" * 2000], 1, "kiloq: the prompt has 2000 tokens"),
    ],
)
def test_errors_are_one_sentence(arguments: list[str], code: int, sentence: str, tmp_path: Path) -> None:
    done = run(arguments, tmp_path)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--debug", "generate", "broken", "x"], {}),
        (["generate", "broken", "x", "--debug"], {}),
        (["generate", "broken", "x"], {"KILOQ_DEBUG": "1"}),
    ],
)
def test_debug_shows_the_traceback(arguments: list[str], more: dict[str, str], tmp_path: Path) -> None:
    done = run(arguments, tmp_path, **more)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("kiloq: ")


def test_unwritable_output_names_the_file(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    done = run(["generate", "echo", "--batch", str(prompts), "--out", "/nowhere/out.jsonl"], tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "kiloq: /nowhere/out.jsonl: there is no folder /nowhere: make it first, or choose another place\n"
    )


@pytest.mark.parametrize("arguments", [["generate", "echo", "long!", "--max-new-tokens", "600"], ["--help"]])
def test_closed_pipe_is_quiet(arguments: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(
            [*ECHO, *arguments], stdout=out, stderr=subprocess.PIPE, env=environment(tmp_path), timeout=60, check=False
        )
    assert done.stderr == b""
    assert done.returncode == 141


def test_head_ends_a_stream_quietly(tmp_path: Path) -> None:
    command = f"{' '.join(ECHO)} generate echo long! --max-new-tokens 600 | head -c 20"
    env = environment(tmp_path, ECHO_DELAY="0.005")
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=env, timeout=60, check=False)
    assert done.stdout == b"0 1 2 3 4 5 6 7 8 9 "
    assert done.stderr == b""


@pytest.mark.parametrize("arguments", [["generate", "echo", "long!"], ["chat", "echo"]])
def test_interrupt_exits_130_without_traceback(arguments: list[str], tmp_path: Path) -> None:
    env = environment(tmp_path, ECHO_DELAY="0.02")
    with subprocess.Popen(
        [*ECHO, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"long!\n")
        process.stdin.flush()
        assert process.stdout.read(4) == b"0 1 "
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130  # the whole answer would take far longer
        assert process.stderr.read() == b"\n"


def test_shell_completion_of_verbs_and_options(tmp_path: Path) -> None:
    def complete(words: str, at: int) -> str:
        more = {"_KILOQ_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return run([], tmp_path, program=KILOQ, **more).stdout

    assert complete("kiloq ch", 1) == "plain,chat\n"
    assert "plain,--temperature" in complete("kiloq chat --tem", 2)


def test_terminal_without_utf8_shows_question_marks(tmp_path: Path) -> None:
    done = subprocess.run(
        [*ECHO, "generate", "echo", "你好"],
        capture_output=True,
        timeout=60,
        check=False,
        env=environment(tmp_path, PYTHONIOENCODING="latin-1", PYTHONUTF8="0"),
    )
    assert done.stdout == b"echo: ??\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [("chat echo <&-", 0), ("generate echo <&-", 2), ("generate echo x >&-", 0), ("generate missing x 2>&-", 1)],
)
def test_closed_streams_are_like_empty_ones(command: str, code: int, tmp_path: Path) -> None:
    script = f"{' '.join(ECHO)} {command}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, env=environment(tmp_path), timeout=60, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_debug_option_is_added_once() -> None:
    ctx = click.Context(cli)
    for _ in range(2):
        command = cli.get_command(ctx, "doctor")
        assert command is not None
    assert [param.name for param in command.params].count("debug") == 1


def test_the_users_setting_of_blas_threads_is_kept(tmp_path: Path) -> None:
    code = "import os; from kiloq.cli import main; main(['--version']); print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    program = [sys.executable, "-c", code]
    assert run([], tmp_path, program=program).stdout.splitlines()[1] == "4"
    assert run([], tmp_path, program=program, OPENBLAS_THREAD_TIMEOUT="20").stdout.splitlines()[1] == "20"
