"""Tool calls in a stream of model text: the events that parsers give, and what the events add up to.

A parser takes text in pieces of any size and gives events as early as they are certain. An answer that is not streamed
is `gather` of the same events, so the two cannot differ. The rules for the stream are those of OpenAI's chat
completions: a call begins once, with its id and name, and then only grows; its arguments are JSON text in fragments.
The parsers are `hermes.py` (Qwen2 and later) and `react.py` (Qwen-1); what may be called is in `definitions.py`.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Protocol

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 24  # as in OpenAI's ids; 62 ** 24 of them, so that two are never equal

IdMaker = Callable[[], str]


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer's text; never empty."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins: calls are numbered 0, 1, ... and none begins before the one before it has ended."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A fragment of a call's arguments; never empty."""

    index: int
    text: str


Event = TextDelta | CallStart | CallArguments


class ToolParser(Protocol):
    """Turns model text, which comes in pieces, into events. How the text is cut never matters to what they add up to."""

    def push(self, text: str) -> list[Event]:
        """The events that are certain now that `text` has come, too."""
        ...

    def finish(self) -> list[Event]:
        """The events that were held back, when no more text will come."""
        ...


@dataclass(frozen=True)
class ToolCall:
    """A whole call. `arguments` is the JSON text of an object, as far as the model wrote one."""

    id: str
    name: str
    arguments: str


def new_call_id() -> str:
    """A new id such as call_ZfQ3..., 24 random letters and digits."""
    return "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


def gather(events: Iterable[Event]) -> tuple[str | None, list[ToolCall]]:
    """The text and the calls that events add up to; the text is None where there are calls and no text."""
    texts: list[str] = []
    starts: list[CallStart] = []
    arguments: list[list[str]] = []
    for event in events:
        if isinstance(event, TextDelta):
            texts.append(event.text)
        elif isinstance(event, CallStart):
            assert event.index == len(starts), "calls are numbered as they begin"
            starts.append(event)
            arguments.append([])
        else:
            assert event.index == len(starts) - 1, "only the latest call grows"
            arguments[-1].append(event.text)
    calls = [ToolCall(start.id, start.name, "".join(parts)) for start, parts in zip(starts, arguments, strict=True)]
    return "".join(texts) if texts or not calls else None, calls


def parse_whole(parser: ToolParser, text: str) -> tuple[str | None, list[ToolCall]]:
    """The text and the calls of an answer that is there as a whole, from a parser that has seen nothing yet."""
    return gather([*parser.push(text), *parser.finish()])


def may_be_called(name: object, known: Container[str] | None) -> bool:
    """Whether a model may call `name`: one of the known functions, or any name where they are not known."""
    return isinstance(name, str) and (name in known if known is not None else name != "")
