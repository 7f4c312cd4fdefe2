"""The chat with the real default model, by a pipe and in a pseudo-terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import pexpect
import pytest
from command_line import KILOQ, environment, run
from support import default_model

pytestmark = pytest.mark.default_model


def test_a_line_from_stdin_is_answered(tmp_path: Path) -> None:
    done = run(["chat", str(default_model())], tmp_path, "What is the capital of France?\n", program=KILOQ)
    assert done.stdout == "The capital of France is Paris.\n"
    assert done.returncode == 0


def test_ctrl_c_stops_the_answer_and_the_next_question_is_answered(tmp_path: Path) -> None:
    child = pexpect.spawn(
        sys.executable,
        [*KILOQ[1:], "chat", str(default_model()), "--ignore-eos", "--verbose"],
        env=environment(tmp_path),
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 80),
    )
    child.expect_exact("Ctrl-D leaves.")
    child.sendline("Tell me a long story about a dragon.")
    child.expect_exact("\x1b[?2004l")  # bracketed paste goes off: the question is on its way
    child.expect(r"\w+ \w+ \w+ \w+ ")
    child.send("\x03")
    child.expect_exact("[stopped; the conversation keeps what was written]")
    child.sendline(":conf ignore_eos=false temperature=0")
    child.sendline("What is the capital of France?")
    child.expect_exact("Paris")
    child.expect(r"decode \d+ tokens in")
    child.send("\x04")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
