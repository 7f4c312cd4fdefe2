"""The conversation's state: what is sent, what is left out when the context is full, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.echo_model import EchoTokenizer

from kiloq.chat.session import Session, Turn
from kiloq.core.errors import ContextError, FormatError, MissingError


def test_messages_carry_system_turns_and_question() -> None:
    session = Session(system="s", turns=[Turn("a", "b"), Turn("c", "half", interrupted=True)])
    assert session.messages("q") == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "half"},
        {"role": "user", "content": "q"},
    ]
    assert Session().messages() == []


def test_interrupted_answers_stay_unless_empty() -> None:
    session = Session()
    session.record("a", "", interrupted=True)
    assert session.turns == []
    session.record("b", "ha", interrupted=True)
    session.record("c", "", interrupted=False)
    assert session.turns == [Turn("b", "ha", interrupted=True), Turn("c", "")]
    assert session.undo() == Turn("c", "")
    assert session.undo() is not None
    assert session.undo() is None


def test_settings_override_the_seed_field() -> None:
    assert Session().sampling() == {"seed": 1234}
    assert Session(seed=7, settings={"top_k": 3}).sampling() == {"seed": 7, "top_k": 3}


@given(
    turns=st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=8),
    system=st.none() | st.text(max_size=20),
    question=st.text(max_size=30),
    context=st.integers(1, 300),
    answer_tokens=st.integers(1, 300),
)
def test_fit_is_the_naive_rule(
    turns: list[tuple[str, str]], system: str | None, question: str, context: int, answer_tokens: int
) -> None:
    """Naive: leave out turns one by one from the oldest until the rest fits."""
    session = Session(system=system, turns=[Turn(*turn) for turn in turns])
    tokenizer: Any = EchoTokenizer()
    budget = context - min(answer_tokens, context // 2)
    rests = [Session(system=system, turns=session.turns[skip:]).messages(question) for skip in range(len(turns) + 1)]
    fits = [skip for skip, rest in enumerate(rests) if len(tokenizer.chat(rest)) <= budget]
    if not fits:
        with pytest.raises(ContextError, match=f"there is room for {budget}"):
            session.fit(question, tokenizer, context, answer_tokens)
        return
    assert session.fit(question, tokenizer, context, answer_tokens) == (rests[fits[0]], fits[0])
    assert len(session.turns) == len(turns)  # the history itself keeps everything


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    settings = {"top_p": 0.5, "stop": ["#"], "logit_bias": {5: -1.0}, "stop_ids": [1]}
    session = Session("系统", 5, settings, [Turn("你好\n\ud800", "a\x1b", interrupted=True), Turn("", "")])
    path = tmp_path / "talk.json"
    for _ in range(2):  # a conversation may be overwritten
        session.save(path)
        assert Session.load(path) == session
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_save_overwrites_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("my thesis")
    with pytest.raises(FormatError, match="^" + str(path)):
        Session().save(path)
    assert path.read_text() == "my thesis"
    with pytest.raises(MissingError, match="there is no folder"):
        Session().save(tmp_path / "nowhere" / "talk.json")


GOOD: dict[str, Any] = {
    "kind": "kiloq conversation", "version": 1, "system": None, "seed": 1, "settings": {}, "turns": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "else"},
        {"version": 2},
        {"system": 5},
        {"seed": -1},
        {"seed": None},
        {"seed": 1.5},
        {"seed": True},
        {"settings": None},
        {"settings": {"top_q": 1}},
        {"settings": {"n": 2}},
        {"settings": {"seed": 2}},
        {"settings": {"top_p": "x"}},
        {"settings": {"logit_bias": {"9" * 30: 1}}},
        {"settings": {"logit_bias": {"\x1b": 1}}},
        {"turns": {}},
        {"turns": ["x"]},
        {"turns": [{"question": "a"}]},
        {"turns": [{"question": "a", "answer": None}]},
        {"turns": [{"question": "a", "answer": "b", "interrupted": 1}]},
    ],
)
def test_load_refuses_what_it_did_not_write(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(FormatError) as caught:
        Session.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"kind": 1e999}', b'{"a": 1, "a": 2}'])
def test_load_refuses_bytes_that_are_no_conversation(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="^" + str(path)):
        Session.load(path)


def test_load_of_a_missing_file_or_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        Session.load(tmp_path / "nowhere.json")
    with pytest.raises(FormatError):
        Session.load(tmp_path)
