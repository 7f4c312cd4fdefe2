"""Qwen-1's way to call tools: the ReAct prompt, and conversations with calls written as Thought, Action, Observation.

The words are those that the model was trained on, and every space of them counts: they are taken over from the
original's openai_api.py, as are the places: the instruction stands before the last question that has been answered
(the only question, where none has been), a call and its result are text of the assistant's turn, and a turn that a
result ends is left open after `Thought:`, so that the model goes on in it. Two things are ours: an assistant's message
with several calls becomes several Thought/Action/Observation rounds, each with the result that carries its id; and
orders of messages which the original refuses (two questions in a row) are passed on, for the template can write them.
The answer is read by `react_parser.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kiloq.chat.definitions import Tool
from kiloq.core.errors import UsageError
from kiloq.tokenize.chatml import ROLES, ChatML, Message, checked_messages, role_of

OBSERVATION = "Observation:"  # where the model must stop: what follows is the tool's to say

_TOOL = (
    "{name}: Call this tool to interact with the {title} API. What is the {title} API useful for? {description}"
    " Parameters: {parameters}{suffix}"
)
_SUFFIXES = {
    None: "",
    "json": " Format the arguments as a JSON object.",
    "code": " Enclose the code within triple backticks (`) at the beginning and end of the code.",
}
_INSTRUCTION = """Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""


@dataclass(frozen=True)
class Rendered:
    """A conversation that the plain chat template takes.

    `continues`: the last message is the assistant's and its turn stays open, the model goes on in it; otherwise a
    turn of the assistant follows. `in_thought`: the model's text begins inside a thought, as `ReactParser` must know.
    """

    messages: list[dict[str, str]]
    continues: bool
    in_thought: bool


def instruction(tools: Sequence[Tool]) -> str:
    """The instruction that stands before the question; empty without tools."""
    if not tools:
        return ""
    lines = (
        _TOOL.format(
            name=tool.name,
            title=tool.title,
            description=tool.description,
            parameters=json.dumps(tool.parameters, ensure_ascii=False),
            suffix=_SUFFIXES[tool.args_format],
        )
        for tool in tools
    )
    return _INSTRUCTION.format(tools="\n\n".join(lines), names=", ".join(tool.name for tool in tools)).rstrip()


def render(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Rendered:
    """The conversation with its tools, calls and results as text.

    Roles are those of ChatML, and `function` for the results of the older API. Raises UsageError for a conversation
    that has no place for its tools or results.
    """
    turns: list[dict[str, str]] = []
    result_is_last = False
    for message in _one_call_each(checked_messages(messages)):
        role, text = str(message["role"]), _trimmed(_text(message))
        result_is_last = role in ("tool", "function")
        if result_is_last:
            if not turns or turns[-1]["role"] != "assistant":
                raise UsageError(
                    f"a message with the role '{role}' follows no message of the assistant: put it after the call"
                )
            turns[-1]["content"] += f"\n{OBSERVATION} {text}"
        elif role == "assistant":
            text = _answer(message, text, bool(tools))
            if turns and turns[-1]["role"] == "assistant":
                turns[-1]["content"] += "\n" + text
            else:
                turns.append({"role": role, "content": _trimmed(text)})
        else:
            turns.append({"role": role, "content": text})
    if result_is_last:
        turns[-1]["content"] += "\nThought:"
    continues = bool(turns) and turns[-1]["role"] == "assistant"
    if tools:
        turn = _instructed(turns)
        turn["content"] = f"{instruction(tools)}\n\nQuestion: {turn['content']}"
    for turn in turns:
        if turn["role"] == "assistant" or continues:  # the original leaves `Question: ` alone in a turn that it closes
            turn["content"] = _trimmed(turn["content"])
    return Rendered(turns, continues, result_is_last)


def stop_words(stops: Sequence[str] = (), tools: Sequence[Tool] = ()) -> list[str]:
    """The stops of a request as the original completes them: with tools, `Observation:` is one of them.

    Each that begins with line ends is there without them, too. The original needs that because it compares tokens,
    and a line end may be part of the token before; who compares text needs no more than `Observation:`.
    """
    result = list(stops)
    for stop in stops:
        shorter = stop.lstrip("\n")
        if shorter and shorter not in result:
            result.append(shorter)
    return result + ([OBSERVATION] if tools and OBSERVATION not in result else [])


def _instructed(turns: Sequence[dict[str, str]]) -> dict[str, str]:
    """The question that the instruction goes before: the last that has been answered, or the last of all."""
    asked = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
    if not asked:
        raise UsageError("there are tools and no message of the user: add one, the tools are described before it")
    answered = [place for place in asked if place + 1 < len(turns) and turns[place + 1]["role"] == "assistant"]
    return turns[(answered or asked)[-1]]


def _answer(message: Message, text: str, has_tools: bool) -> str:
    """A message of the assistant in ReAct's words."""
    call = message.get("function_call")
    if call is None:
        return f"Thought: I now know the final answer.\nFinal Answer: {text}" if has_tools else text
    name, arguments = _name_and_arguments(call)
    thought = text if text.startswith("Thought:") else f"Thought: {text}"
    return f"{thought}\nAction: {name}\nAction Input: {arguments}"


def _one_call_each(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages with every call in a `function_call`, and after each message with several calls, their results."""
    left = list(reversed(messages))
    while left:
        message = left.pop()
        role = role_of(message, (*ROLES, "function"))
        calls = (message.get("tool_calls") or []) if role == "assistant" else []
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise UsageError("tool_calls of a message is not a list of calls: write [{'function': {...}}, ...]")
        if not calls:
            yield message
            continue
        results: list[Message] = []
        while left and len(calls) > 1 and left[-1].get("role") == "tool":
            results.append(left.pop())
        for place, call in enumerate(calls):
            content = message.get("content") if place == 0 else None
            yield {"role": "assistant", "content": content, "function_call": call.get("function", call)}
            if result := _result_of(call, results):
                yield result
        yield from results


def _result_of(call: Mapping[str, Any], results: list[Message]) -> Message | None:
    """Takes the result of a call out of `results`: the one with its id, or else the first that names no call."""
    identity = call.get("id")
    for wanted in ([identity] if identity is not None else []) + [None]:
        for place, result in enumerate(results):
            if result.get("tool_call_id") == wanted:
                return results.pop(place)
    return None


def _name_and_arguments(call: Any) -> tuple[str, str]:
    name = call.get("name") if isinstance(call, Mapping) else None
    if not isinstance(name, str):
        raise UsageError("a call of a message has no function name: it needs {'name': ..., 'arguments': ...}")
    arguments = call.get("arguments")
    if arguments is None or isinstance(arguments, str):
        return name, arguments or ""
    try:
        return name, json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the arguments of a call cannot be written as JSON ({error}): send them as a text") from None


def _text(message: Message) -> str:
    """The content as text; what content may be is ChatML's to say, so ChatML is asked."""
    plain = {"role": "user", "content": message.get("content")}
    return "".join(turn.text or "" for turn in ChatML(default_system=None).turns([plain]))


def _trimmed(text: str) -> str:
    """As the original trims every text, since its training data was."""
    return text.lstrip("\n").rstrip()
