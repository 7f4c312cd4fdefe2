"""Tool calls as Qwen2 and later models write them, the Hermes convention, read while the text comes.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Calls may stand anywhere in the text, several in a row; whitespace around calls is not part of the answer. The rules:

* A call begins as soon as it is certain to be one: its name is a known function's and the object of its arguments has
  been opened. From then on the arguments are sent as they come, exactly as the model wrote them, to the bracket that
  closes them. A call cannot be unsaid: where the model breaks off or closes the tag too early, it stays a call whose
  arguments are what the model wrote.
* Where the arguments come before the name, or as a JSON string that holds an object (which is unwrapped), or are null
  or not there (then they are {}), the call is sent as a whole at its closing tag.
* Everything else in a <tool_call>, such as broken JSON, an unknown name or no closing tag, is text, as it was written.
* A tag inside a JSON string is text of that string, unless it begins a line: no JSON string goes over a line's end, so
  there the model has left a string open. What stands between the arguments and the closing tag is dropped; where no
  tag closes the call, what is more than a brace there is text.

Every character is looked at a bounded number of times, whatever the text. Source of the format: the chat template of
Qwen2.5; the rendering is in `tokenize/chatml.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from kiloq.chat.calls import CallArguments, CallStart, Event, IdMaker, TextDelta, may_be_called, new_call_id
from kiloq.chat.held import TrailingSpace, held_from
from kiloq.core.errors import FormatError
from kiloq.core.safe_json import parse

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_TAGS = (OPEN, CLOSE)

_SPACE = re.compile(r"[ \t\r\n]*")
_OUTSIDE_STRING = re.compile(r'["{}\[\]<]')
_INSIDE_STRING = re.compile(r'["\\\n]')
_BETWEEN_MEMBERS = re.compile(r"[ \t\r\n,:]*")
_END_OF_CALL = re.compile(r"\s*\}?\s*")


class _JsonScan:
    """Follows JSON, well formed or not, over pieces of text: which brackets are open and whether a string is."""

    def __init__(self) -> None:
        self._in_string = False
        self._depth = 0

    def step(self, text: str, at: int, final: bool) -> tuple[int, str]:
        """Reads on from `at` to the next place of note: gives where it stopped and what is there.

        A bracket just read, if it opens the second level or closes it; a tag that comes next; or nothing, where the
        text ends or its last characters must wait for more (not if it is `final`).
        """
        while found := (_INSIDE_STRING if self._in_string else _OUTSIDE_STRING).search(text, at):
            place, sign = found.start(), found.group()
            at = place + 1
            if sign == '"':
                self._in_string = not self._in_string
            elif sign == "\\":
                if at == len(text) and not final:
                    return place, ""
                at += text[at : at + 1] != "\n"  # what is escaped is skipped; not a line's end, which may precede a tag
            elif sign in "{[":
                self._depth += 1
                if self._depth == 2:
                    return at, sign
            elif sign in "}]":
                self._depth -= 1
                if self._depth <= 1:
                    return at, sign
            else:  # '<' outside a string, or the end of a line inside one: a tag may begin here
                start = place if sign == "<" else at
                for tag in _TAGS:
                    if text.startswith(tag, start):
                        return start, tag
                if not final and len(text) - start < len(CLOSE) and any(t.startswith(text[start:]) for t in _TAGS):
                    return place, ""
        return len(text), ""


class _Part(Enum):
    """Where in a <tool_call> the parser is."""

    HEAD = auto()  # before the first inner bracket, which decides
    WHOLE = auto()  # only the end will tell what it is
    ARGUMENTS = auto()  # a call that has begun
    TAIL = auto()  # after its arguments
    REJECTED = auto()  # no call, but text


@dataclass
class _Call:
    """A <tool_call> that is open."""

    part: _Part = _Part.HEAD
    empty: bool = True  # nothing but whitespace so far
    held: list[str] = field(default_factory=list)
    scan: _JsonScan = field(default_factory=_JsonScan)

    def take(self) -> str:
        text, self.held = "".join(self.held), []
        return text


class HermesParser:
    """Events of Hermes text; `known` are the functions that may be called (None: any)."""

    def __init__(self, known: Collection[str] | None = None, make_id: IdMaker = new_call_id) -> None:
        self._known, self._make_id = known, make_id
        self._calls = 0
        self._call: _Call | None = None  # the <tool_call> that is open
        self._unread = ""  # at most the start of a tag, or half an escape
        self._space = TrailingSpace()
        self._after_call = False  # whitespace that follows belongs to a call
        self._events: list[Event] = []

    def push(self, text: str) -> list[Event]:
        """The events that are certain now that `text` has come, too."""
        return self._read(text, final=False)

    def finish(self) -> list[Event]:
        """The events that were held back, when no more text will come."""
        events = self._read("", final=True)
        if self._call is not None:
            self._end_call(self._call, "")
            self._call = None
        events += self._taken()
        rest = self._space.flush()
        return [*events, TextDelta(rest)] if rest else events

    def _read(self, text: str, final: bool) -> list[Event]:
        text, at, waits = self._unread + text, 0, False
        while at < len(text) and not waits:
            if self._call is None:
                at, waits = self._read_text(text, at, final)
            elif self._call.empty:
                at = self._read_start(self._call, text, at)
            else:
                at, waits = self._read_call(self._call, text, at, final)
        self._unread = text[at:]
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _read_text(self, text: str, at: int, final: bool) -> tuple[int, bool]:
        """Says text up to the next call; gives where it stopped and whether it must wait for more text there."""
        place = text.find(OPEN, at)
        if place >= 0:
            self._say(text[at:place])
            self._call = _Call()
            return place + len(OPEN), False
        end = len(text) if final else held_from(text, at, (OPEN,))
        self._say(text[at:end])
        return end, True

    def _read_start(self, call: _Call, text: str, at: int) -> int:
        """Reads up to the brace that a call begins with; what begins otherwise, such as a mention of the tag, is text."""
        match = _SPACE.match(text, at)
        assert match is not None, "the pattern matches nothing, too"
        call.held.append(match.group())
        if match.end() < len(text):
            call.empty = False
            if text[match.end()] != "{":
                self._call = None
                self._say(OPEN + call.take())
        return match.end()

    def _read_call(self, call: _Call, text: str, at: int, final: bool) -> tuple[int, bool]:
        """Reads a call up to the next place of note; gives where it stopped and whether it must wait there."""
        end, sign = call.scan.step(text, at, final)
        self._feed(call, text[at:end])
        if sign in _TAGS:
            self._end_call(call, sign)
            self._call = _Call() if sign == OPEN else None
            return end + len(sign), False
        if call.part is _Part.HEAD and sign in ("{", "["):
            self._begin_call(call, sign)
        elif call.part is _Part.ARGUMENTS and sign in ("}", "]"):
            call.part = _Part.TAIL
        return end, not sign

    def _feed(self, call: _Call, text: str) -> None:
        if call.part is _Part.REJECTED:
            self._say(text)
        elif call.part is not _Part.ARGUMENTS:
            call.held.append(text)
        elif text:
            self._events.append(CallArguments(self._calls - 1, text))

    def _begin_call(self, call: _Call, bracket: str) -> None:
        """Decides at the first bracket inside the call: it begins, it is no call, or only its end will tell."""
        call.part = _Part.WHOLE
        if bracket == "[":
            return
        head = call.take()
        value = _object(head + "}}")
        if value is None or ("name" in value and not may_be_called(value["name"], self._known)):
            call.part = _Part.REJECTED
            self._say(OPEN + head)
        elif "name" in value and next(reversed(value)) == "arguments":
            call.part = _Part.ARGUMENTS
            self._start(value["name"], "{")
        else:
            call.held.append(head)

    def _end_call(self, call: _Call, tag: str) -> None:
        """Ends a call at its closing tag, at another call, or at the end of the text (no tag)."""
        text, closing = call.take(), tag if tag == CLOSE else ""
        if call.part is _Part.REJECTED:
            self._say(closing)
        elif call.part is _Part.TAIL and not closing:
            brace = _END_OF_CALL.match(text)
            assert brace is not None, "the pattern matches nothing, too"
            self._say(text[brace.end() :])
        elif call.part in (_Part.HEAD, _Part.WHOLE):
            found = _whole_call(text, self._known) if closing else None
            if found is None:
                self._say(OPEN + text + closing)
            else:
                self._start(*found)

    def _start(self, name: str, arguments: str) -> None:
        self._space.flush()  # not content: it stands before a call
        self._after_call = True
        self._events += [CallStart(self._calls, self._make_id(), name), CallArguments(self._calls, arguments)]
        self._calls += 1

    def _say(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        if shown := self._space.push(text):
            self._events.append(TextDelta(shown))


def _whole_call(text: str, known: Collection[str] | None) -> tuple[str, str] | None:
    """Name and arguments of what stands in a closed <tool_call>; None if it is no call."""
    value = _object(text)
    if value is None or not may_be_called(value.get("name"), known):
        return None
    arguments = value.get("arguments")
    if arguments is None:
        return value["name"], "{}"
    if isinstance(arguments, dict):
        return value["name"], _member(text, "arguments")
    if isinstance(arguments, str) and _object(arguments) is not None:
        return value["name"], arguments.strip()
    return None


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or None."""
    try:
        value = parse(text.encode("utf-8", "surrogatepass"), "call")
    except FormatError:
        return None
    return value if isinstance(value, dict) else None


def _member(text: str, key: str) -> str:
    """The text of a member's value in a JSON object that is known to be well formed and to have the member."""
    decoder = json.JSONDecoder()
    at = text.index("{") + 1
    while True:
        name, at = decoder.raw_decode(text, _skip(text, at))
        start = _skip(text, at)
        _, at = decoder.raw_decode(text, start)
        if name == key:
            return text[start:at]


def _skip(text: str, at: int) -> int:
    match = _BETWEEN_MEMBERS.match(text, at)
    assert match is not None, "the pattern matches nothing, too"
    return match.end()
