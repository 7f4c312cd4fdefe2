"""ReAct text read as the original reads it, in any pieces, and sent as soon as it is certain."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import jsonl_gz

from kiloq.chat import react_parser
from kiloq.chat.calls import CallArguments, CallStart, Event, TextDelta, gather
from kiloq.chat.definitions import read_tools
from kiloq.chat.react import render, stop_words
from kiloq.chat.react_parser import ANSWER, ReactParser
from kiloq.generate.stop import StopMatcher

Read = tuple[str, tuple[str, str] | None]


def in_pieces(
    pieces: list[str], known: Collection[str] | None = None, in_thought: bool = False
) -> tuple[Read, list[Event]]:
    """Content and call of a text that comes in pieces, and its events."""
    reader = ReactParser(known, lambda: "call_0", in_thought=in_thought)
    events: list[Event] = []
    for piece in pieces:
        events += reader.push(piece)
        assert len(reader._unread) < len(ANSWER), "only the start of a mark is read again"
    events += reader.finish()
    assert reader.finish() == []
    assert all(event.text for event in events if not isinstance(event, CallStart))
    content, calls = gather(events)
    assert len(calls) < 2
    return (content or "", (calls[0].name, calls[0].arguments) if calls else None), events


def whole(text: str, known: Collection[str] | None = None, in_thought: bool = False) -> Read:
    """The same for a text in one piece, checked against the text in single characters."""
    result, _ = in_pieces([text], known, in_thought)
    assert in_pieces(list(text), known, in_thought)[0] == result
    return result


def golden_result(message: dict[str, Any]) -> Read:
    call = message["function_call"]
    return message["content"], (call["name"], call["arguments"]) if call else None


def expected(text: str, golden: Read) -> Read:
    """What the original reads, less what a stream cannot do and two mistakes of the original."""
    content, call = golden
    if call is None and text.count(ANSWER) > 1:
        return text.split(ANSWER, 1)[1], None  # the first answer is not taken back
    if call is None and content.endswith("\nObservation:") and not text.endswith("\nObservation:"):
        return content.removesuffix("\nObservation:"), None  # not the model's
    observation, action_input = text.find("\nObservation:"), text.find("\nAction Input:")
    if call is not None and 0 <= observation < action_input:
        return content, (call[0], text[action_input + len("\nAction Input:") :].strip())
    return golden


def test_texts_are_read_as_by_the_original() -> None:
    rows = list(jsonl_gz("goldens", "tooluse", "parse_response.jsonl.gz"))
    differing = 0
    for row in rows:
        golden = golden_result(row["result"]["message"])
        assert whole(row["text"], in_thought=True) == expected(row["text"], golden)
        differing += expected(row["text"], golden) != golden
    assert (len(rows), differing) == (240, 10)


def test_turns_that_begin_with_a_thought_are_read_the_same_from_their_beginning() -> None:
    for row in jsonl_gz("goldens", "tooluse", "parse_response.jsonl.gz"):
        text, golden = row["text"], golden_result(row["result"]["message"])
        if text.lstrip().lower().startswith("thought:"):
            assert whole(text) == expected(text, golden)
        else:  # without form: the content is the text up to a call, or all of it
            content, call = whole(text)
            assert call == expected(text, golden)[1]
            assert content.strip() == golden[0] if call else content in (text, golden[0], golden[0] + text)


def test_replies_of_the_original_server() -> None:
    replies = 0
    for row in jsonl_gz("goldens", "tooluse", "openai_api_requests.jsonl.gz"):
        request = row["request"]
        functions = [each for each in request.get("functions") or [] if set(each) != {"parameters"}]
        if "response" not in row or not functions:
            continue
        tools = read_tools(functions=functions)
        stops = stop_words(request.get("stop") or [], tools)
        rendered = render(request["messages"], tools)
        stop = StopMatcher([*stops, "<|im_end|>"] if rendered.continues else stops)
        text = stop.push(row["model_reply"]) + stop.flush()
        golden = golden_result(row["response"]["choices"][0]["message"])
        assert whole(text, in_thought=True) == expected(text, golden)
        if rendered.in_thought or text.startswith("Thought:"):
            assert whole(text, in_thought=rendered.in_thought) == expected(text, golden)
        replies += 1
    assert replies > 90


CALL_TEXT = 'Thought: Let me look.\nAction: 传感器\nAction Input: {"编号": 3}\n'


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (CALL_TEXT, ("Let me look.", ("传感器", '{"编号": 3}'))),
        (CALL_TEXT + "Observation: 25\nThought: so\nFinal Answer: 25", ("Let me look.", ("传感器", '{"编号": 3}'))),
        ("Hello!", ("Hello!", None)),
        (" Hello! \n", (" Hello! \n", None)),
        ("Let me look.  \n\nAction: f\nAction Input: {}", ("Let me look.", ("f", "{}"))),
        ("Thought: x\nAction: f\nAction Input:", ("x", ("f", ""))),
        ("Thought: x\nAction: f\nAction Input: not JSON: {", ("x", ("f", "not JSON: {"))),
        ("Thought: x\nAction: unknown\nAction Input: {}", ("Thought: x\nAction: unknown\nAction Input: {}", None)),
        ("Thought: x\nAction: unknown\nAction Input: {}\nFinal Answer: y", ("y", None)),
        ("Thought: x\nAction: f\n", ("Thought: x\nAction: f\n", None)),
        ("Thought: x\nFinal Answer: y \n", ("y \n", None)),
        ("Thought: x\nFinal Answer: y" + CALL_TEXT, ("y" + CALL_TEXT, None)),
        ("\nFinal Answer: y", ("y", None)),
        ("Final Answer: y", ("Final Answer: y", None)),
        ("Well.\nAction: look\naround.\nBye.", ("Well.\nAction: look\naround.\nBye.", None)),
        (
            "Well.\nAction Input: x\nAction: f\nAction Input: {}",
            ("Well.\nAction Input: x\nAction: f\nAction Input: {}", None),
        ),
        ("Well.\nAction: g\nAction Input: x\nBye.", ("Well.\nAction: g\nAction Input: x\nBye.", None)),
        ("Thou", ("Thou", None)),
        ("Though I", ("Though I", None)),
        ("Thoughts of mine.", ("Thoughts of mine.", None)),
    ],
)
def test_known_functions(text: str, read: Read) -> None:
    assert whole(text, known=("f", "传感器")) == read


def test_an_open_thought_is_the_content_of_a_call_and_not_of_an_answer() -> None:
    assert whole(" I look.\nAction: f\nAction Input: {}", in_thought=True) == ("I look.", ("f", "{}"))
    assert whole(" I now know the final answer.\nFinal Answer: done.", in_thought=True) == ("done.", None)


def test_answers_and_arguments_are_sent_as_they_come() -> None:
    reader = ReactParser(make_id=lambda: "call_0")
    assert reader.push("Thought: I now know the final answer.\nFinal Ans") == []
    assert reader.push("wer: It ") == [TextDelta("It ")]
    assert reader.push("is sunny.\n") == [TextDelta("is sunny.")]
    assert reader.push("\nFinal") == [TextDelta("\n")]
    assert reader.finish() == [TextDelta("\nFinal")]
    reader = ReactParser(make_id=lambda: "call_0")
    assert reader.push("Thought: I look.\nAction: f\nAction Inp") == []
    assert reader.push("ut:") == [TextDelta("I look."), CallStart(0, "call_0", "f")]
    assert reader.push("  ") == []
    assert reader.push('{"a": ') == [CallArguments(0, '{"a":')]
    assert reader.push("1}\nObs") == [CallArguments(0, " 1}")]
    assert reader.push("ervation: 3\nFinal Answer: 3") == []
    assert reader.finish() == []


def test_an_answer_without_form_is_sent_as_it_comes() -> None:
    reader = ReactParser()
    assert reader.push("Thought") == []
    assert reader.push("s ") == [TextDelta("Thoughts")]
    assert reader.push("are\nA") == [TextDelta(" are")]
    assert reader.push("nd these.") == [TextDelta("\nAnd these.")]


SCRAPS = st.lists(
    st.sampled_from(
        ["Thought: ", "thought:", "\n", " ", "Action", ":", " Input", "f", "g", "{}", "x y", "答", "Observation"]
    )
    | st.sampled_from(
        ["\nAction:", "\nAction Input:", "\nFinal Answer: ", "\nObservation:", "\nThought: ", "\nAction: f\n"]
    )
    | st.text(max_size=3),
    max_size=20,
).map("".join)


@st.composite
def cut(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and its pieces."""
    text = draw(SCRAPS)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@given(cut(), st.booleans(), st.sampled_from([None, ("f",), ()]))
@settings(max_examples=500)
def test_the_cut_of_a_text_does_not_matter(example: tuple[str, list[str]], in_thought: bool, known: Any) -> None:
    text, pieces = example
    assert in_pieces(pieces, known, in_thought)[0] == whole(text, known, in_thought)


def naive(text: str, known: Collection[str] | None) -> Read:
    """The rules for a text that begins in a thought, read off the whole text."""
    action, given_input = text.find("\nAction:"), text.find("\nAction Input:")
    answer = text.find(ANSWER)
    if 0 <= action < given_input and not 0 <= answer < given_input:
        name = text[action + len("\nAction:") : given_input].strip()
        if name in known if known is not None else name:
            arguments = text[given_input + len("\nAction Input:") :].split("\nObservation:")[0].strip()
            return re.sub(r"\A.*?Thought: ", "", text[:action], flags=re.DOTALL).strip(), (name, arguments)
    return (text[answer + len(ANSWER) :] if answer >= 0 else text), None


@given(SCRAPS, st.sampled_from([None, ("f",), ()]))
@settings(max_examples=500)
def test_the_stream_follows_the_rules_of_the_whole_text(text: str, known: Any) -> None:
    assert whole(text, known, in_thought=True) == naive(text, known)


@given(SCRAPS)
@settings(max_examples=300)
def test_an_answer_without_form_loses_nothing(text: str) -> None:
    content, call = whole("It is " + text, known=())
    assert (content, call) == ("It is " + text, None)


HOSTILE = {
    "actions": "\nAction:" * 12_000,
    "inputs": "\nAction Input:" * 8_000,
    "actions and inputs": "Well.\nAction:\nAction Input:" * 4_000,
    "thoughts": "Thought: " * 12_000,
    "beginnings of marks": "\nFinal Answer:" * 8_000,
    "line ends": "\n" * 100_000,
    "spaces": "It is" + " " * 100_000,
    "a long name": "\nAction: " + "f" * 100_000 + "\nAction Input: {}",
    "long arguments": "\nAction: f\nAction Input: " + '{"a": "\n"} ' * 10_000,
    "a long thought": "Thought: " + "x " * 50_000 + "\nAction: f\nAction Input: {}",
    "answers": "\nFinal Answer: " * 8_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("size", [1, 4096, 1 << 30], ids=["characters", "pieces", "whole"])
def test_work_grows_with_the_text_and_no_faster(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text, work = HOSTILE[kind], [0]
    pattern, take, mark = react_parser._ANY_MARK, ReactParser._take, ReactParser._mark

    class Counted:
        @staticmethod
        def finditer(text: str) -> Any:
            work[0] += len(text)
            return pattern.finditer(text)

    def counted_take(reader: ReactParser) -> str:
        taken = take(reader)
        work[0] += len(taken)
        return taken

    def counted_mark(reader: ReactParser, piece: str) -> list[Event]:
        if piece == react_parser.INPUT and not reader._no_call:
            work[0] += sum(map(len, reader._held))  # the name is joined where it may be one
        return mark(reader, piece)

    monkeypatch.setattr(react_parser, "_ANY_MARK", Counted)
    monkeypatch.setattr(ReactParser, "_take", counted_take)
    monkeypatch.setattr(ReactParser, "_mark", counted_mark)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    (content, call), _ = in_pieces(pieces)
    if call is None and ANSWER not in text:
        assert content == text
    assert work[0] <= 4 * len(text) + len(ANSWER) * len(pieces)


def test_a_megabyte_of_arguments_is_sent_as_it_comes() -> None:
    arguments = '{"a": "\n\nAction: "}' + ' {"b": 2}' * 120_000
    text = f"Thought: x\nAction: f\nAction Input: {arguments}\n"
    read, events = in_pieces([text[at : at + 100] for at in range(0, len(text), 100)])
    assert read == ("x", ("f", arguments))
    assert len(events) > 10_000
