"""What a typed line means, and what the commands do to the chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.echo_model import EchoModel

from kiloq.chat.commands import COMMANDS, NAMES, Call, Chat, Outcome, read_line, run_command
from kiloq.chat.messages import CHINESE, ENGLISH, LANGUAGES, Texts
from kiloq.chat.session import SETTINGS, Session, Turn
from kiloq.core.errors import FormatError, KiloqError, UsageError


def make_chat(texts: Texts = ENGLISH, **start: Any) -> Chat:
    return Chat(EchoModel(), Session(settings=dict(start)), texts, start)  # type: ignore[arg-type]


def do(chat: Chat, line: str) -> Outcome:
    call = read_line(line)
    assert isinstance(call, Call)
    return run_command(chat, call)


@pytest.mark.parametrize(
    ("line", "call"),
    [
        (":help", Call(":", "help", "")),
        ("/help", Call("/", "help", "")),
        ("  :help  ", Call(":", "help", "")),
        ("：help", Call("：", "help", "")),
        (":conf top_p=1  top_k=2", Call(":", "conf", "top_p=1  top_k=2")),
        ("/system You are\nmulti-line", Call("/", "system", "You are\nmulti-line")),
        (":unknown x", Call(":", "unknown", "x")),
        ("/tmp", Call("/", "tmp", "")),
        (":", Call(":", "", "")),
        ("/", Call("/", "", "")),
    ],
)
def test_commands_are_recognised(line: str, call: Call) -> None:
    assert read_line(line) == call


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("hello", "hello"),
        (" : help", " : help"),
        (":)", ":)"),
        (":-)", ":-)"),
        (":3", ":3"),
        ("/usr/bin is a folder", "/usr/bin is a folder"),
        ("/路径", "/路径"),
        ("： 你好", "： 你好"),
        (":root {\n color: red }", ":root {\n color: red }"),
        ("::help", ":help"),
        ("//help me", "/help me"),
        ("::", ":"),
        ("// a comment", "// a comment"),
        ("//usr/bin", "//usr/bin"),
        (":::help", ":::help"),
        ("::root {\n}", "::root {\n}"),
        ("?:help", "?:help"),
    ],
)
def test_text_is_sent(line: str, text: str) -> None:
    assert read_line(line) == text


@given(st.text(alphabet=st.sampled_from(list(":/：ahelpx \n1.你"))))
def test_every_line_can_be_sent_or_is_a_command(line: str) -> None:
    """Doubling the sign of whatever is a command sends exactly the line."""
    if isinstance(read_line(line), Call):
        text = line.strip()
        assert read_line(text[0] + text) == text


@pytest.mark.parametrize("line", [":nonsense", "/xyzzy", ":D", "/tmp", "：qqqqq"])
@pytest.mark.parametrize("texts", LANGUAGES.values())
def test_unknown_commands_are_answered_not_sent(line: str, texts: Texts) -> None:
    with pytest.raises(UsageError, match=line):
        do(make_chat(texts), line)


def test_unknown_commands_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean /history"):
        do(make_chat(), "/histroy")
    with pytest.raises(UsageError, match=":help lists them"):
        do(make_chat(), ":")


@pytest.mark.parametrize("line", [":help me", ":exit now", ":clear x", ":clh x", ":undo 2", ":save", ":load"])
def test_wrong_arguments(line: str) -> None:
    with pytest.raises(UsageError):
        do(make_chat(), line)


def test_qwens_own_names_all_exist() -> None:
    qwen = {"help", "h", "exit", "quit", "q", "clear", "cl", "clear-his", "clh", "history", "his", "seed", "conf"}
    assert qwen | {"reset-conf"} <= set(NAMES)


@pytest.mark.parametrize("texts", LANGUAGES.values())
def test_help_names_every_command(texts: Texts) -> None:
    text = do(make_chat(texts), ":HELP").text
    assert set(texts.help) == {command.names[0] for command in COMMANDS}
    assert all(f":{name}" in text for name in NAMES)


def test_conf_changes_what_the_model_gets() -> None:
    chat = make_chat(top_k=5)
    do(chat, ':conf temperature=0.2, top-p=.5 stop=["a b"] seed=9')
    assert chat.session.sampling() == {"seed": 9, "top_k": 5, "temperature": 0.2, "top_p": 0.5, "stop": ["a b"]}
    listed = do(chat, ":conf").text
    assert "* temperature = 0.2" in listed
    assert "  min_p = 0.0" in listed
    do(chat, "/reset-conf")
    assert chat.session.sampling() == {"seed": 9, "top_k": 5}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (":conf temperture=1", "did you mean 'temperature'"),
        (":conf n=2", "there is no setting 'n' in a chat"),
        (":conf temperature=hot", "temperature is 'hot': it must be a number from 0 to 100"),
        (":conf temperature=-1", "temperature is -1: it must be a number from 0 to 100"),
        (":conf temperature=nan", "temperature is nan: it must be a number"),
        (":conf temperature=1e999", "temperature is inf"),
        (":conf temperature=__import__('os').getcwd()", "temperature is \"__import__('os').getcwd()\""),
        (":conf top_k=1.5", "top_k is 1.5: it must be a whole number"),
        (":conf top_k=true", "top_k is True"),
        (":conf temperature", "'temperature' is not a setting"),
        (":conf =5", "'=5' is not a setting"),
        (":conf stop=[", "unfinished value"),
        (":conf stop=" + "[" * 100_000, "unfinished value"),
        (":conf seed=-1", "the seed is '-1'"),
        (":conf top_p=0.5 top_k=-1", "top_k is -1"),
        (":seed x", "the seed is 'x'"),
        (":seed 99999999999999999999", "the seed is '9"),
        (":seed ١", "the seed is"),
    ],
)
def test_bad_settings_change_nothing(line: str, sentence: str) -> None:
    chat = make_chat(min_p=0.1)
    with pytest.raises(UsageError) as caught:
        do(chat, line)
    assert sentence in str(caught.value)
    assert chat.session == Session(settings={"min_p": 0.1})


def test_seed_shows_and_sets() -> None:
    chat = make_chat()
    assert do(chat, ":seed").text == "seed = 1234"
    assert do(chat, "/seed 7").text == "seed = 7"
    assert chat.session.seed == 7


def test_history_undo_and_clear() -> None:
    chat = make_chat()
    assert do(chat, ":his").text == "No turns yet."
    chat.session.turns = [Turn("a", "b"), Turn("c", "d", interrupted=True)]
    assert do(chat, ":history").text == "you> a\necho> b\nyou> c\necho> d [stopped]"
    assert do(chat, ":undo").text == "Taken back: c"
    do(chat, ":clear-his")
    assert chat.session.turns == []


def test_system_message() -> None:
    chat = make_chat(CHINESE)
    do(chat, "/system 你是诗人")
    assert chat.session.messages("x")[0] == {"role": "system", "content": "你是诗人"}
    assert do(chat, ":system").text == "系统消息：你是诗人"
    do(chat, "/system -")
    assert chat.session.system is None


def test_tokens_counts_the_conversation() -> None:
    chat = make_chat()
    assert do(chat, ":tokens").text.startswith("0 of 1000")
    chat.session.turns = [Turn("abc", "de")]
    assert do(chat, ":tokens").text == ("13 of 1000 tokens are used by 1 turn(s) and the system message; 987 are free.")


def test_save_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    chat = make_chat()
    chat.session.turns = [Turn("a", "b")]
    do(chat, "/save ~/my talk.json")
    saved, chat.session = chat.session, Session()
    do(chat, "/load ~/my talk.json")
    assert chat.session == saved
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FormatError):
        do(chat, "/load ~/bad.json")
    assert chat.session == saved


@given(st.text(max_size=40))
def test_no_argument_of_conf_breaks_it(rest: str) -> None:
    chat = make_chat()
    try:
        do(chat, f":conf {rest}")
    except KiloqError as error:
        assert chat.session == Session()
        assert str(error)


@given(name=st.sampled_from((*SETTINGS, "seed")), value=st.text(max_size=20))
def test_no_value_of_conf_breaks_it(name: str, value: str) -> None:
    chat = make_chat()
    try:
        do(chat, f":conf {name}={value}")
    except KiloqError:
        assert chat.session == Session()
    else:
        chat.model.defaults.override(**chat.session.sampling())
