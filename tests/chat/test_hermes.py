"""Hermes calls: what is a call and what is text, however the text is cut, at once and in time that grows with it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiloq.chat import hermes
from kiloq.chat.calls import CallArguments, CallStart, Event, TextDelta, ToolCall, gather, parse_whole
from kiloq.chat.hermes import CLOSE, OPEN, HermesParser
from kiloq.tokenize.chatml import ChatML

KNOWN = ("f", "get_weather", "传感器")


def parser(known: Collection[str] | None = KNOWN) -> HermesParser:
    numbers = count()
    return HermesParser(known, lambda: f"call_{next(numbers)}")


def in_pieces(pieces: Iterator[str] | list[str], known: Collection[str] | None = KNOWN) -> list[Event]:
    """The events of pieces; checks what holds for every stream on the way."""
    reader = parser(known)
    events: list[Event] = []
    for piece in pieces:
        events += reader.push(piece)
        assert len(reader._unread) <= len(CLOSE), "only the start of a tag is read again"
    events += reader.finish()
    assert reader.finish() == []
    assert all(event.text for event in events if not isinstance(event, CallStart))
    return events


def whole(text: str, known: Collection[str] | None = KNOWN) -> tuple[str | None, list[tuple[str, str]]]:
    """Content and (name, arguments) of a text, checked to be the same in one piece and in single characters."""
    content, calls = gather(in_pieces([text], known))
    assert gather(in_pieces(list(text), known)) == (content, calls) == parse_whole(parser(known), text)
    assert [call.id for call in calls] == [f"call_{n}" for n in range(len(calls))]
    return content, [(call.name, call.arguments) for call in calls]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


PARIS = '{"city": "Paris"}'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (call("f", PARIS), None, [("f", PARIS)]),
        (call("传感器", '{"编号": [1, {"x": null}]}'), None, [("传感器", '{"编号": [1, {"x": null}]}')]),
        (f"Let me see.\n{call('f', PARIS)}\n", "Let me see.", [("f", PARIS)]),
        (f"  Hm,\n\n{call('f', PARIS)}\n and then \n", "  Hm,and then \n", [("f", PARIS)]),
        (f"{call('f', PARIS)}\n{call('get_weather', '{}')}", None, [("f", PARIS), ("get_weather", "{}")]),
        (f"{call('f', '{}')}{call('f', '{}')}", None, [("f", "{}"), ("f", "{}")]),
        ('<tool_call>{"name":"f","arguments":{}}</tool_call>', None, [("f", "{}")]),
        ('<tool_call>{"id": 3, "name": "f", "arguments": {}}</tool_call>', None, [("f", "{}")]),
        ('<tool_call>{"arguments": {"a": [{}]}, "name": "f"}</tool_call>', None, [("f", '{"a": [{}]}')]),
        ('<tool_call>{"name": "f", "x": {}, "arguments": { }}</tool_call>', None, [("f", "{ }")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"} "}</tool_call>', None, [("f", '{"a": "é"}')]),
        ('<tool_call>{"name": "f"}</tool_call>', None, [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', None, [("f", "{}")]),
        ('<tool_call>{"n\\u0061me": "\\u4f20感器", "arguments": {}}</tool_call>', None, [("传感器", "{}")]),
        (
            call("f", '{"a": "</tool_call> <tool_call> \\" } {"}'),
            None,
            [("f", '{"a": "</tool_call> <tool_call> \\" } {"}')],
        ),
        (
            '<tool_call>{"arguments": {"a": "</tool_call>"}, "name": "f"}</tool_call>',
            None,
            [("f", '{"a": "</tool_call>"}')],
        ),
        (call("f", '{"big": 12345678901234567890.10}'), None, [("f", '{"big": 12345678901234567890.10}')]),
    ],
)
def test_calls(text: str, content: str | None, calls: list[tuple[str, str]]) -> None:
    assert whole(text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello.\n",
        " \n",
        "a <tool_call",
        "a < b </tool_call> c",
        "Put it into <tool_call> and </tool_call>.",
        "<tool_call>",
        "<tool_call>\n \n",
        "<tool_call>\n</tool_call>",
        "<tool_call>\n[1]\n</tool_call>",
        "<tool_call>\n{}\n</tool_call>",
        "<tool_call>\n{not json}\n</tool_call> ",
        "<tool_call>\n{not {json}}\n</tool_call>",
        '<tool_call>\n{"name": "f" "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "name": "f", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": {"a": "f"}, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": "not json"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": "[1]"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": 3}\n</tool_call>',
        '<tool_call>\n{"name": "f", "argu',
        '<tool_call>\n{"name": "f", "arguments": \n</tool_call>',
        '<tool_call>\n{"arguments": {"a": 1}, "name": "f"}',
        '<tool_call>\n{"arguments": {"a": 1}, "name": "f"\n</tool_call>',
        '<tool_call>\n{"name": "f\n</tool_call>\n{"',
        '<tool_call>\n{"name": "f\\',
        call("unknown", PARIS),
        call("unknown", '"{}"'),
        call("", PARIS),
        call("F", PARIS) + "\n" + call("g", PARIS) + "\n",
    ],
)
def test_what_is_no_call_is_text_as_it_was_written(text: str) -> None:
    assert whole(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (call("f", "{}")[:-12], None, [("f", "{}")]),  # no closing tag
        (call("f", "{}")[:-14], None, [("f", "{}")]),  # nor the last brace
        (call("f", '{"a": "b'), None, [("f", '{"a": "b}')]),  # an open string ends where a line begins with a tag
        ('<tool_call>{"name": "f", "arguments": {', None, [("f", "{")]),
        ('<tool_call>{"name": "f", "arguments": {"a": [1</tool_call> x', "x", [("f", '{"a": [1')]),
        ('<tool_call>{"name": "f", "arguments": {"a\\', None, [("f", '{"a\\')]),
        ('<tool_call>{"name": "f", "arguments": {}}} oh </tool_call>', None, [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {}, "id": {"a": 3}}</tool_call>', None, [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {}} \n And so on.', "And so on.", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {}} \n' + call("f", "{}"), None, [("f", "{}"), ("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"a": ' + call("f", "{}"), None, [("f", '{"a": '), ("f", "{}")]),
        ('<tool_call>\n{"name": "f' + "\n" + call("f", "{}"), '<tool_call>\n{"name": "f', [("f", "{}")]),
        ("<tool_call>" + call("f", "{}"), "<tool_call>", [("f", "{}")]),
        (call("g", "{}") + "\n" + call("f", "{}"), call("g", "{}"), [("f", "{}")]),
        (call("f", "{}") + "\n" + call("g", "{}") + "\n", call("g", "{}") + "\n", [("f", "{}")]),
    ],
)
def test_calls_that_break_off_keep_what_was_written(
    text: str, content: str | None, calls: list[tuple[str, str]]
) -> None:
    content_is, calls_are = whole(text)
    assert content_is == content
    assert [(name, arguments.rstrip("\n")) for name, arguments in calls_are] == calls


def test_any_name_may_be_called_where_none_is_known() -> None:
    assert whole(call("unheard_of", PARIS), known=None) == (None, [("unheard_of", PARIS)])
    assert whole(call("", PARIS), known=None) == (call("", PARIS), [])
    assert whole(call("f", PARIS), known=()) == (call("f", PARIS), [])


def test_a_call_is_sent_as_it_comes() -> None:
    reader = parser()
    assert reader.push("Let me see.\n<tool") == [TextDelta("Let me see.")]
    assert reader.push('_call>\n{"name": "f", "argu') == []
    assert reader.push('ments": {"ci') == [CallStart(0, "call_0", "f"), CallArguments(0, "{"), CallArguments(0, '"ci')]
    assert reader.push('ty": "Par') == [CallArguments(0, 'ty": "Par')]
    assert reader.push('is"}') == [CallArguments(0, 'is"}')]
    assert reader.push("}\n</tool_call>\n<tool_call>\n") == []
    assert reader.push('{"name": "f", "arguments": {}')[0] == CallStart(1, "call_1", "f")
    assert reader.finish() == []


def test_text_is_held_back_only_while_it_may_be_a_tag() -> None:
    reader = parser()
    assert reader.push("a <tool_cal") == [TextDelta("a")]
    assert reader.push("m> b") == [TextDelta(" <tool_calm> b")]
    assert reader.push(" <tool_call> is ") == [TextDelta(" <tool_call>"), TextDelta(" is")]
    assert reader.finish() == [TextDelta(" ")]
    reader = parser()
    reader.push('<tool_call>{"name": "unknown", "arguments": {')
    assert reader.push('"a": 1') == [TextDelta('"a": 1')]


def test_what_chatml_renders_is_read_back() -> None:
    calls = [
        {"function": {"name": "f", "arguments": '{"a": "\\n</tool_call>", "b": ["é", 1.5, null]}'}},
        {"function": {"name": "传感器", "arguments": {"编号": 3}}},
    ]
    message = {"role": "assistant", "content": "I look.", "tool_calls": calls}
    (turn,) = ChatML(default_system=None).turns([message])
    assert turn.text is not None
    content, read = whole(turn.text)
    assert content == "I look."
    assert [(name, json.loads(arguments)) for name, arguments in read] == [
        ("f", {"a": "\n</tool_call>", "b": ["é", 1.5, None]}),
        ("传感器", {"编号": 3}),
    ]


# Property tests: texts made of pieces that matter, cut anywhere.

SCRAPS = st.lists(
    st.sampled_from(
        [
            OPEN,
            CLOSE,
            call("f", PARIS),
            call("g", "{}"),
            call("f", '"{}"'),
            '{"name": "f", "arguments": {',
            "}}",
            "\n",
            " ",
        ]
    )
    | st.sampled_from(
        ['"', "\\", "{", "}", "[", "]", "<", "name", ":", ",", "<tool_", f"\n{CLOSE}", f"\n{OPEN}", "é", "答"]
    )
    | st.text(max_size=4),
    max_size=25,
).map("".join)


@st.composite
def cut(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> tuple[str, list[str]]:
    """A text and its pieces."""
    text = draw(texts)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@given(cut(SCRAPS))
@settings(max_examples=500)
def test_the_cut_of_a_text_does_not_matter(example: tuple[str, list[str]]) -> None:
    text, pieces = example
    expected = gather(in_pieces([text]))
    assert gather(in_pieces(pieces)) == expected
    assert gather(in_pieces(list(text))) == expected


@given(SCRAPS)
@settings(max_examples=300)
def test_without_a_call_the_content_is_the_text(text: str) -> None:
    assert parse_whole(parser(known=()), text) == (text, [])
    content, calls = parse_whole(parser(), text)
    if not calls:
        assert content == text
    else:  # nothing is made up: the arguments are in the text, and so is the content, with gaps
        assert all(call.arguments in text or call.arguments == "{}" for call in calls)
        letters = iter(text)
        assert all(letter in letters for letter in content or "")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from([CLOSE, OPEN, '"}', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def well_formed(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, Any]]]:
    """A text with calls, its content, and its calls."""
    text, content, calls = "", "", []
    for _ in range(draw(st.integers(1, 3))):
        words = draw(st.sampled_from(["", "Let me see.", "好的"]))
        name = draw(st.sampled_from(KNOWN))
        arguments = draw(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
        layout: dict[str, Any] = {"ensure_ascii": draw(st.booleans()), "indent": draw(st.sampled_from([None, 1]))}
        members: dict[str, Any] = {"name": name, "arguments": arguments}
        if draw(st.booleans()):
            members["arguments"] = json.dumps(arguments)
        if draw(st.booleans()):
            members = dict(reversed(members.items()))
        text += f"{words}\n<tool_call>\n{json.dumps(members, **layout)}\n</tool_call>\n"
        content += words
        calls.append((name, arguments))
    return text, content, calls


@given(well_formed(), st.data())
@settings(max_examples=200)
def test_well_formed_calls_are_read_exactly(
    example: tuple[str, str, list[tuple[str, Any]]], data: st.DataObject
) -> None:
    text, content, expected = example
    _, pieces = data.draw(cut(st.just(text)))
    content_is, calls = gather(in_pieces(pieces))
    assert (content_is or "") == content
    assert [(each.name, json.loads(each.arguments)) for each in calls] == expected


# Hostile texts. Work is counted in characters: those that patterns look at, that are joined, and that are parsed.


class Work:
    """Counts the characters that the parser's patterns, joins and JSON reader go through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.characters = 0
        for name in ("_OUTSIDE_STRING", "_INSIDE_STRING", "_SPACE", "_END_OF_CALL"):
            monkeypatch.setattr(hermes, name, CountedPattern(getattr(hermes, name), self))
        take, parse, held_from = hermes._Call.take, hermes.parse, hermes.held_from

        def counted_take(call: hermes._Call) -> str:
            text = take(call)
            self.characters += len(text)
            return text

        def counted_parse(data: bytes, where: str) -> Any:
            self.characters += len(data)
            return parse(data, where)

        def counted_held_from(text: str, at: int, tags: tuple[str, ...]) -> int:
            self.characters += len(text) - at
            return held_from(text, at, tags)

        monkeypatch.setattr(hermes._Call, "take", counted_take)
        monkeypatch.setattr(hermes, "parse", counted_parse)
        monkeypatch.setattr(hermes, "held_from", counted_held_from)


class CountedPattern:
    def __init__(self, pattern: re.Pattern[str], work: Work) -> None:
        self._pattern, self._work = pattern, work

    def search(self, text: str, at: int) -> re.Match[str] | None:
        found = self._pattern.search(text, at)
        self._work.characters += (found.end() if found else len(text)) - min(at, len(text))
        return found

    def match(self, text: str, at: int = 0) -> re.Match[str] | None:
        found = self._pattern.match(text, at)
        self._work.characters += found.end() - at if found else 0
        return found


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


HOSTILE = {
    "opening tags": OPEN * 10_000,
    "opening tags and braces": (OPEN + "{") * 8_000,
    "opening tags and strings": (OPEN + '{"') * 8_000,
    "opening tags, strings never closed": (OPEN + '{\\"') * 8_000,
    "opening tags on lines of a string": OPEN + '{"' + ("\n" + OPEN[:-1]) * 8_000,
    "calls that are not closed": '<tool_call>{"name": "f", "arguments": {' * 2_000,
    "unknown calls": call("unknown", PARIS) * 1_500,
    "closing tags": OPEN + '{"x": "' + CLOSE * 8_000,
    "deep arguments": call("f", deep(10_000)),
    "deep arguments before the name": f'<tool_call>{{"arguments": {deep(10_000)}, "name": "f"}}</tool_call>',
    "deep brackets": OPEN + "{" + "[" * 100_000,
    "braces": OPEN + "{" * 100_000 + CLOSE,
    "many members": OPEN + "{" + ", ".join(f'"{n}": {{}}' for n in range(8_000)),
    "spaces": OPEN + " " * 100_000 + "x",
    "spaces outside": "x" + " " * 100_000 + call("f", "{}") + " " * 10_000,
    "a long name": f'<tool_call>{{"name": "{"f" * 100_000}", "arguments": {{}}}}</tool_call>',
    "backslashes": OPEN + '{"' + "\\" * 100_001,
    "beginnings of tags": "<tool_cal" * 10_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("size", [1, 4096, 1 << 30], ids=["characters", "pieces", "whole"])
def test_work_grows_with_the_text_and_no_faster(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text, work = HOSTILE[kind], Work(monkeypatch)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    content, calls = gather(in_pieces(pieces))
    if not calls:
        assert content == text
    # A tag's start, up to 12 characters, may be looked at again with every piece; the rest 4 times: by a pattern, when
    # it is joined, when it is parsed and when it is searched for the next tag.
    assert work.characters <= 4 * len(text) + 2 * len(CLOSE) * len(pieces)


def test_a_megabyte_of_arguments_is_sent_as_it_comes() -> None:
    arguments = json.dumps({"text": 'say "hi" {[\\ \n' * 60_000})
    assert len(arguments) > 1_000_000
    text = call("f", arguments)
    events = in_pieces([text[at : at + 100] for at in range(0, len(text), 100)])
    assert gather(events) == (None, [ToolCall("call_0", "f", arguments)])
    assert len(events) > 10_000
