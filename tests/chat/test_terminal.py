"""`kiloq chat` in a pseudo-terminal, driven as a person would."""

from __future__ import annotations

import re
import stat
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest
from command_line import spawn

CTRL_C, CTRL_D, UP, ALT_ENTER, TAB = "\x03", "\x04", "\x1b[A", "\x1b\r", "\t"
READY = "Ctrl-D leaves."
PROMPT = "\x1b[?2004h"  # bracketed paste goes on: the prompt is about to be drawn


def start(home: Path, *arguments: str, ready: str = READY, **more: Any) -> Any:
    child = spawn(["chat", "echo", *arguments], home, **more)
    child.expect_exact(ready)
    child.expect_exact(PROMPT)
    return child


def ask(child: Any, text: str) -> str:
    """Types a line and returns the line that follows its echo."""
    child.sendline(text)
    child.expect_exact("\r\n")
    child.expect(r"([^\r\n]+)\r\n")
    return str(child.match[1])


def leave(child: Any) -> None:
    """Ctrl-D until it ends: between two prompts the terminal itself swallows one."""
    for _ in range(4):
        child.send(CTRL_D)
        if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=2) == 0:
            break
    child.close()
    assert child.exitstatus == 0


def test_answers_stream_and_the_chat_goes_on(tmp_path: Path) -> None:
    child = start(tmp_path, ECHO_DELAY="0.1")
    child.sendline("abcdefgh")
    child.expect_exact("echo: ab")  # eight of fourteen pieces
    began = time.monotonic()
    child.expect_exact("cdefgh\r\n")
    assert time.monotonic() - began > 0.3  # the rest was not there yet
    child.sendline("xy")
    child.expect_exact("echo: xy\r\n")
    leave(child)


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(tmp_path: Path) -> None:
    child = start(tmp_path, ECHO_DELAY="0.01")
    child.sendline("long!")
    child.expect_exact("10 11 12 ")
    child.send(CTRL_C + CTRL_C)  # an impatient second press does not leave
    child.expect_exact("[stopped; the conversation keeps what was written]")
    child.expect_exact(PROMPT)
    child.sendline(":history")
    child.expect(r"0 1 2 [\d ]*\[stopped\]\r\n")
    child.sendline("hi")
    child.expect_exact("echo: hi\r\n")
    leave(child)


def test_ctrl_c_before_the_first_piece_takes_the_question_back(tmp_path: Path) -> None:
    child = start(tmp_path, ECHO_DELAY="5")
    child.sendline("long!")
    time.sleep(0.5)
    child.send(CTRL_C)
    child.expect_exact("[stopped before the answer began; the question was taken back]")
    child.expect_exact(PROMPT)
    child.sendline(":history")
    child.expect_exact("No turns yet.")
    leave(child)


def test_ctrl_c_at_the_prompt(tmp_path: Path) -> None:
    child = start(tmp_path)
    child.send("half a question" + CTRL_C)
    child.sendline("whole")
    child.expect_exact("echo: whole\r\n")
    child.send(CTRL_C)
    child.expect_exact("Press Ctrl-C once more or Ctrl-D to leave.")
    child.sendline("still here")
    child.expect_exact("echo: still here\r\n")
    child.expect_exact(PROMPT)
    child.send(CTRL_C)
    child.expect_exact("once more")
    child.expect_exact(PROMPT)
    child.send(CTRL_C)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_exit_command_leaves(tmp_path: Path) -> None:
    child = start(tmp_path)
    child.sendline(":q")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_history_file_is_private_and_outlives_the_session(tmp_path: Path) -> None:
    child = start(tmp_path)
    child.sendline("remember me 记住")
    child.expect_exact("echo: remember me 记住\r\n")
    leave(child)
    file = tmp_path / "state" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    child = start(tmp_path)
    child.send(UP)
    child.expect_exact("记住")
    child.sendline("")
    child.expect_exact("echo: remember me 记住\r\n")
    leave(child)


def test_home_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    child = spawn(["chat", "echo"], tmp_path / "file")
    child.expect_exact("The input history is not kept")
    child.sendline("hi")
    child.expect_exact("echo: hi\r\n")
    leave(child)


@pytest.mark.parametrize("key", [ALT_ENTER, "\\\r"])
def test_several_lines(key: str, tmp_path: Path) -> None:
    child = start(tmp_path)
    child.send("one" + key + "two")
    child.sendline("")
    child.expect_exact("echo: one\r\ntwo\r\n")
    leave(child)


def test_pasted_newlines_stay_in_one_question(tmp_path: Path) -> None:
    child = start(tmp_path)
    child.send("\x1b[200~:root {\r  第二行\r}\x1b[201~")
    child.sendline("")
    child.expect_exact("echo: :root {\r\n  第二行\r\n}\r\n")
    leave(child)


@pytest.mark.parametrize("columns", [20, 80])
def test_chinese_in_any_width(columns: int, tmp_path: Path) -> None:
    question = "你好，世界！这是一个很长的问题，需要换行显示。"
    child = start(tmp_path, columns=columns)
    child.sendline(question)
    child.expect(
        r"(\r\n)?".join(map(re.escape, f"echo: {question}")) + "\r\n"
    )  # a line may end anywhere, no cell is lost
    leave(child)


def test_chinese_messages(tmp_path: Path) -> None:
    child = start(tmp_path, "--lang", "zh", ready="Ctrl-D 退出。")
    child.sendline(":hepl")
    child.expect_exact("没有命令 :hepl，该行未发送：是否想用 :help？")
    leave(child)


def test_conf_takes_effect_and_unknown_commands_are_not_sent(tmp_path: Path) -> None:
    child = start(tmp_path)
    child.sendline(":conf temperature=0.25")
    child.expect_exact("* temperature = 0.25")
    child.sendline("settings?")
    child.expect_exact('{"seed": 1234, "temperature": 0.25}')
    child.sendline(":conf temperature=hot")
    child.expect_exact("temperature is 'hot': it must be a number from 0 to 100")
    child.sendline("/nope")
    child.expect_exact("there is no command /nope, and it was not sent")
    child.sendline("//help")
    child.expect_exact("echo: /help\r\n")
    leave(child)


def test_commands_are_completed(tmp_path: Path) -> None:
    child = start(tmp_path)
    child.send(":tok" + TAB)
    child.expect_exact("tokens")
    child.sendline("")
    child.expect_exact("0 of 1000 tokens are used")
    leave(child)


def test_escape_sequences_of_the_model_do_not_reach_the_terminal(tmp_path: Path) -> None:
    child = start(tmp_path)
    child.sendline("escape!")
    child.expect_exact(r"red \x1b[31mtitle \x1b]0;owned\x07clip \x9b5n end")
    child.sendline(":history")
    child.expect_exact(r"echo> red \x1b[31mtitle \x1b]0;owned\x07clip \x9b5n end")
    leave(child)


def test_typing_while_the_answer_streams_waits_for_the_prompt(tmp_path: Path) -> None:
    child = start(tmp_path, ECHO_DELAY="0.05")
    child.sendline("abcdefgh")
    child.expect_exact("echo: a")
    child.send("early")
    child.expect_exact("bcdefgh\r\n")  # not mixed with "early"
    child.sendline("")
    child.expect_exact("echo: early\r\n")
    leave(child)


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_they_are_not_wanted(variable: dict[str, str], tmp_path: Path) -> None:
    child = spawn(["chat", "echo", "--verbose"], tmp_path, **variable)
    shown = ""
    for line, answer in ((":nope", "not sent"), ("hi", "decode 8 tokens")):
        child.sendline(line)
        child.expect_exact(answer)
        shown += child.before + child.after
    leave(child)
    shown += child.before
    colours = [code for code in re.findall(r"\x1b\[([\d;]*)m", shown) if code not in ("", "0")]
    assert colours == []


def test_dumb_terminal_gets_no_escape_sequences_in_answers(tmp_path: Path) -> None:
    child = spawn(["chat", "echo"], tmp_path, TERM="dumb")
    child.sendline("hello")
    child.expect_exact("echo: hello\r\n")
    child.sendline(":clear")
    leave(child)
    assert "\x1b[2J" not in child.before


def test_full_context_is_said(tmp_path: Path) -> None:
    child = start(tmp_path, "--max-new-tokens", "20", ECHO_CONTEXT="100")
    child.sendline("a" * 30)
    child.expect_exact("[cut at 20 tokens: :conf max_new_tokens=40 allows more]")
    child.sendline("b" * 30)
    child.expect_exact("[the context is full: the model does not see the oldest 1 turn(s)]")
    child.expect_exact("echo: " + "b" * 14 + "\r\n")
    child.sendline("b" * 200)
    child.expect_exact("the system message and the current turn take 204 tokens")
    leave(child)
