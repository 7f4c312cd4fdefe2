"""Reads Qwen-1's Thought / Action / Action Input / Final Answer while it comes, and gives calls and answer as events.

What counts is what the original's parse_response says of a whole text, with marks only at the beginning of a line:

* The first `Action:` and the first `Action Input:` after it make a call, if a function's name stands between them. The
  text before, from its first `Thought: ` on, is the content; the arguments go to the next `Observation:`, trimmed, and
  are sent as they come and as the model wrote them, JSON or not. What follows an `Observation:` is dropped: it is not
  the model's to say.
* Otherwise what follows `Final Answer: ` is the content, sent as it comes; without that mark, all of the text is.

A stream cannot take back what it has sent, so we differ from the original in this: the first `Final Answer: ` counts
and not the last, and what comes after it is the answer, whatever it is. And where a turn that begins with a thought
would be held back until its answer, a turn that begins otherwise is an answer without form: it is sent as it comes,
as it is written, up to a call if there is one. A prompt that ends in `Thought:` begins inside a thought (`in_thought`).
The original also adds an `Observation:` to texts that are no calls, and finds no arguments behind an `Observation:`
before the action; both are mistakes, and not taken over. Rendering is in `react.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from enum import Enum, auto

from kiloq.chat.calls import CallArguments, CallStart, Event, IdMaker, TextDelta, may_be_called, new_call_id
from kiloq.chat.held import TrailingSpace, held_from

ACTION, INPUT, ANSWER, RESULT = _MARKS = "\nAction:", "\nAction Input:", "\nFinal Answer: ", "\nObservation:"
_THOUGHT = "Thought: "
_OPENING = "thought:"  # in any case: the model is not strict about it at the beginning of a turn
_ANY_MARK = re.compile("|".join(map(re.escape, _MARKS)))


class _State(Enum):
    OPENING = auto()  # too little text to tell what the turn begins with
    THINKING = auto()  # all text is held until a call, an answer or the end
    PLAIN = auto()  # text is sent as it comes
    ANSWER = auto()  # text and marks are sent as they come
    ARGUMENTS = auto()
    OVER = auto()  # a result made up by the model


class ReactParser:
    """Events of ReAct text; `known` are the functions that may be called (None: any). There is at most one call."""

    def __init__(
        self, known: Collection[str] | None = None, make_id: IdMaker = new_call_id, *, in_thought: bool = False
    ) -> None:
        self._known, self._make_id = known, make_id
        self._state = _State.THINKING if in_thought else _State.OPENING
        self._unread = ""  # at most the start of a mark
        self._opening = ""  # the first visible characters
        self._held: list[str] = []  # text that is not sent yet
        self._before: str | None = None  # what was held when `Action:` came; what is held since then is the name
        self._no_call = False  # an `Action Input:` has come that makes no call
        self._space = TrailingSpace()
        self._arguments_begun = False

    def push(self, text: str) -> list[Event]:
        """The events that are certain now that `text` has come, too."""
        return [event for piece in self._pieces(text, final=False) for event in self._read(piece)]

    def finish(self) -> list[Event]:
        """The events that were held back, when no more text will come."""
        events = [event for piece in self._pieces("", final=True) for event in self._read(piece)]
        rest = ""
        if self._state in (_State.OPENING, _State.THINKING, _State.PLAIN):
            rest = self._space.flush() + self._take()
        self._state = _State.OVER
        return [*events, TextDelta(rest)] if rest else events

    def _pieces(self, text: str, final: bool) -> Iterator[str]:
        """The text cut into marks and what is between them; the start of a mark waits for the rest of it."""
        text, at = self._unread + text, 0
        for found in _ANY_MARK.finditer(text):
            if found.start() > at:
                yield text[at : found.start()]
            yield found.group()
            at = found.end()
        end = len(text) if final else held_from(text, at, _MARKS)
        self._unread = text[end:]
        if end > at:
            yield text[at:end]

    def _read(self, piece: str) -> list[Event]:
        """The events of one mark or one piece of text without marks."""
        if self._state is _State.OVER or (self._state is _State.ARGUMENTS and piece == RESULT):
            self._state = _State.OVER
            return []
        if self._state is _State.ARGUMENTS:
            return self._arguments(piece)
        if self._state is _State.ANSWER:
            return [TextDelta(piece)]
        if piece in _MARKS:
            return self._mark(piece)
        return self._text(piece)

    def _mark(self, mark: str) -> list[Event]:
        """A mark while nothing is decided yet."""
        if self._state is _State.OPENING:
            self._state = _State.THINKING
        if mark == ANSWER and self._state is _State.THINKING:
            self._state = _State.ANSWER
            self._take()
            return []
        if mark == ACTION and self._before is None and not self._no_call:
            self._before = self._take()
            return []
        if mark == INPUT and not self._no_call:
            name = "".join(self._held).strip()
            if self._before is not None and may_be_called(name, self._known):
                return self._begin_call(name)
            self._no_call = True
        return self._text(mark)

    def _text(self, text: str) -> list[Event]:
        """Text while nothing is decided yet."""
        if self._state is _State.OPENING:
            self._opening = (self._opening + text).lstrip()[: len(_OPENING)]
            start = self._opening.lower()
            if start == _OPENING:
                self._state = _State.THINKING
            elif not _OPENING.startswith(start):
                self._state = _State.PLAIN
        self._held.append(text)
        if self._state is not _State.PLAIN or (self._before is not None and not self._no_call):
            return []
        shown = self._space.push(self._take())
        return [TextDelta(shown)] if shown else []

    def _begin_call(self, name: str) -> list[Event]:
        content = _thought(self._before or "") if self._state is _State.THINKING else ""
        self._state = _State.ARGUMENTS
        self._before, self._held = None, []
        self._space.flush()  # trimmed off the content
        start = CallStart(0, self._make_id(), name)
        return [TextDelta(content), start] if content else [start]

    def _arguments(self, text: str) -> list[Event]:
        if not self._arguments_begun:  # whitespace is trimmed off here, and off the end by never being sent
            text = text.lstrip()
            self._arguments_begun = text != ""
        shown = self._space.push(text)
        return [CallArguments(0, shown)] if shown else []

    def _take(self) -> str:
        """All that is held, which is then no longer held."""
        before = "" if self._before is None else self._before + ACTION
        self._before, text = None, before + "".join(self._held)
        self._held = []
        return text


def _thought(text: str) -> str:
    """The text from its first `Thought: ` on, without it."""
    _, mark, after = text.partition(_THOUGHT)
    return (after if mark else text).strip()
