"""ChatML, built from segments of ids: `<|im_start|>role`, newline, text, `<|im_end|>`, newline.

Control tokens are put in as ids and every text is encoded on its own without control tokens, so nothing that a person,
tool or document says can open or close a turn. Tools follow the Hermes convention that Qwen2 and Qwen2.5 were trained
on: signatures in the system message, calls as JSON in <tool_call>, results inside a user turn in <tool_response>.
Source of the text form: Qwen report, section 3.1.1, and the released code's make_context. What of a conversation to drop when it is too long
is in `window.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from kiloq.core.errors import UsageError
from kiloq.core.files import shown
from kiloq.core.safe_json import parse
from kiloq.tokenize.vocabulary import IM_END, IM_START

Message = Mapping[str, Any]

QWEN_SYSTEM = "You are a helpful assistant."  # the original's default system message
ROLES = ("system", "user", "assistant", "tool")

TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


class Encoder(Protocol):
    """The part of `Tokenizer` that building a conversation needs."""

    @property
    def whole_turns(self) -> bool: ...

    def encode(self, text: str, *, continues: bool = False) -> list[int]: ...

    def id_of(self, name: str) -> int: ...


@dataclass(frozen=True)
class Segment:
    """A stretch of a conversation: one control token, or text in which there is none."""

    text: str
    ids: tuple[int, ...]
    control: bool = False


class ChatFormat(Protocol):
    """A way to write conversations: ChatML, or another model's template."""

    def segments(
        self,
        tokenizer: Any,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Segment]: ...


@dataclass(frozen=True)
class Turn:
    """A role and its text: what one `<|im_start|>` ... `<|im_end|>` holds. An open turn awaits its text."""

    role: str
    text: str | None


@dataclass(frozen=True)
class ChatML:
    """ChatML with a default system message, used where a conversation has none; None for no system turn at all."""

    default_system: str | None = QWEN_SYSTEM

    def segments(
        self,
        tokenizer: Encoder,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Segment]:
        """The segments of a conversation. Raises UsageError for a message that ChatML cannot hold."""
        turns = list(self.turns(messages, tools))
        if add_generation_prompt:
            turns.append(Turn("assistant", None))
        return [segment for turn in turns for segment in turn_segments(tokenizer, turn)]

    def turns(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> Iterator[Turn]:
        """The turns of a conversation, tool results gathered in user turns."""
        system = self.default_system
        if messages and role_of(messages[0]) == "system":
            system, messages = _text(messages[0]), messages[1:]
        if tools:
            signatures = "\n".join(_json(tool) for tool in tools)
            system = (f"{system}\n\n" if system else "") + TOOLS_HEAD + signatures + TOOLS_TAIL
        if system is not None:
            yield Turn("system", system)
        results: list[str] = []
        for message in messages:
            role = role_of(message)
            if results and role != "tool":
                yield Turn("user", "\n".join(results))
                results = []
            if role == "tool":
                results.append(f"<tool_response>\n{_text(message)}\n</tool_response>")
            else:
                yield Turn(role, _with_calls(message) if role == "assistant" else _text(message))
        if results:
            yield Turn("user", "\n".join(results))


def turn_segments(tokenizer: Encoder, turn: Turn) -> list[Segment]:
    """The segments of one turn; role, newline and text are encoded separately, as in the original.

    Not so where a vocabulary encodes turns whole: SentencePiece would put a space before each part.
    """
    texts = [turn.role, "\n", turn.text or ""]
    if tokenizer.whole_turns:
        texts = ["".join(texts)]
    parts = [_control(tokenizer, IM_START), *(_plain(tokenizer, text) for text in texts)]
    if turn.text is not None:
        parts += [_control(tokenizer, IM_END), _plain(tokenizer, "\n")]
    return [part for part in parts if part.ids]


def render(turns: Sequence[Turn]) -> str:
    """The turns as text, for people and for comparing with templates."""
    closed = (f"{IM_START}{t.role}\n" + ("" if t.text is None else f"{t.text}{IM_END}\n") for t in turns)
    return "".join(closed)


def _control(tokenizer: Encoder, name: str) -> Segment:
    return Segment(name, (tokenizer.id_of(name),), control=True)


def _plain(tokenizer: Encoder, text: str) -> Segment:
    return Segment(text, tuple(tokenizer.encode(text, continues=True)))


def checked_messages(messages: object) -> Sequence[Message]:
    """A list of message dicts, which may be empty. Raises UsageError for anything else."""
    if not isinstance(messages, Sequence) or not all(isinstance(each, Mapping) for each in messages):
        raise UsageError('\'messages\' must be a list of objects such as {"role": "user", "content": "Hello"}')
    return messages


def checked_tools(tools: object) -> Sequence[Mapping[str, Any]] | None:
    """Tool descriptions as a list of dicts, or None. Raises UsageError for anything else."""
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(each, Mapping) for each in tools):
        raise UsageError('\'tools\' must be a list of objects such as {"type": "function", "function": {...}}')
    return tools


def role_of(message: Message, roles: Sequence[str] = ROLES) -> str:
    """The role of a message; UsageError for anything that is not a message with one of `roles`."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in roles:
        raise UsageError(f"a message has the role {shown(role)}: it can be one of {', '.join(roles)}")
    return str(role)


def _text(message: Message) -> str:
    """The content of a message: a string, None, or a list of text parts."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise UsageError(
            f"the content of a message is a {type(content).__name__}: it can be a string or a list of parts"
        )
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise UsageError(f"a message has a part of the type {shown(kind)}: this model reads text parts only")
    return text


def _with_calls(message: Message) -> str:
    """An assistant's text followed by its tool calls, each on lines of its own."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UsageError(f"tool_calls is a {type(calls).__name__}: it must be a list of calls")
    text = _text(message)
    return "\n".join([*([text] if text or not calls else []), *map(_call, calls)])


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError("a tool call has no function name: it needs {'function': {'name': ..., 'arguments': ...}}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # what is not JSON goes back to the model as the string that it wrote
            arguments = parse(arguments.encode(), "arguments")
    return f"<tool_call>\n{_json({'name': function['name'], 'arguments': arguments})}\n</tool_call>"


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a tool or its arguments cannot be written as JSON: {error}") from None
