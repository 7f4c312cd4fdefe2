"""Qwen-1's prompts with tools against the original's own, and the conversations that the original does not know."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import jsonl_gz, shared

from kiloq.chat.definitions import Tool, read_tools
from kiloq.chat.react import OBSERVATION, Rendered, instruction, render, stop_words
from kiloq.core.errors import UsageError
from kiloq.tokenize.chatml import QWEN_SYSTEM, ChatML
from kiloq.tokenize.chatml import render as chatml_text

WEATHER = {"name": "get_weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}
TOOLS = read_tools(functions=[WEATHER, {"name": "传感器"}])
NAMELESS = Tool("", "", "", [], None, {})  # the original describes a function without a name; we refuse it


def golden_tools(functions: list[dict[str, Any]] | None) -> list[Tool]:
    return [NAMELESS if set(each) == {"parameters"} else read_tools([each])[0] for each in functions or []]


def golden_requests() -> list[dict[str, Any]]:
    return list(jsonl_gz("goldens", "tooluse", "openai_api_requests.jsonl.gz"))


def as_text(rendered: Rendered) -> str:
    """The prompt of a conversation whose last turn stays open, as the plain template writes it."""
    assert rendered.continues
    return chatml_text(list(ChatML().turns(rendered.messages))).removesuffix("<|im_end|>\n")


def test_the_original_gets_the_same_prompts() -> None:
    seen: Counter[str] = Counter()
    for row in golden_requests():
        if not row.get("model_calls"):
            continue
        (call,) = row["model_calls"]
        rendered = render(row["request"]["messages"], golden_tools(row["request"].get("functions")))
        if call["method"] == "generate":  # the original normalises this prompt, for us the tokenizer does
            assert unicodedata.normalize("NFC", as_text(rendered)) == unicodedata.normalize("NFC", call["prompt"])
        elif "sentinel" in call["query"]:  # a mistake of the original: it would crash
            assert rendered.continues
        else:
            system, *turns = [{"role": "system", "content": QWEN_SYSTEM}, *rendered.messages]
            if turns and turns[0]["role"] == "system":
                system = turns.pop(0)
            assert not rendered.continues
            assert system["content"] == call["system"]
            texts = [*(text for turn in call["history"] for text in turn), call["query"]]
            assert [turn["content"] for turn in turns] == texts
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * len(call["history"]) + ["user"]
        seen[call["method"]] += 1
    assert seen == {"chat": 137, "generate": 54, "chat_stream": 53}


def test_conversations_without_a_place_for_results_or_tools_are_refused_as_by_the_original() -> None:
    details: Counter[str] = Counter()
    for row in golden_requests():
        detail = str(row.get("error", {}).get("detail"))
        tools = golden_tools(row["request"].get("functions"))
        if "before role function" in detail or ("at least one user" in detail and tools):
            with pytest.raises(UsageError):
                render(row["request"]["messages"], tools)
            details[detail] += 1
    assert sorted(details.values()) == [2, 6]


def test_instructions_are_the_originals() -> None:
    rows = list(jsonl_gz("goldens", "tooluse", "react_demo.jsonl.gz"))
    instructions = [row for row in rows if row["fn"] == "build_react_instruction"]
    for row in instructions:
        assert instruction(golden_tools(row["functions"])) == row["instruction"]
    prompts = [row for row in rows if row["fn"] == "build_input_text" and "prompt" in row and row["plugins"]]
    for row in prompts:  # the demo asks for JSON where a plugin says nothing, and takes the same instruction
        tools = [replace(tool, args_format=tool.args_format or "json") for tool in golden_tools(row["plugins"])]
        assert f"{instruction(tools)}\n\nQuestion:" in row["prompt"]
    assert len(instructions) == 25
    assert len(prompts) > 20


def test_stop_words_are_the_originals() -> None:
    rows = json.loads(shared("goldens", "tooluse", "stop_words.json").read_text(encoding="utf-8"))
    for row in rows["add_extra_stop_words"]:
        assert stop_words(row["in"] or ()) == (row["out"] or [])
    assert stop_words((), TOOLS) == [OBSERVATION]
    assert stop_words(["\nx", OBSERVATION], TOOLS) == ["\nx", OBSERVATION, "x"]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def tool_call(name: str, arguments: Any, identity: str | None = None) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_tools_and_functions_are_the_same() -> None:
    old = [
        user("Paris?"),
        {"role": "assistant", "content": "I look.", "function_call": {"name": "get_weather", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "get_weather", "content": "sunny"},
    ]
    new = [
        user([{"type": "text", "text": "Paris?"}]),
        {"role": "assistant", "content": "I look.", "tool_calls": [tool_call("get_weather", {"a": 1}, "call_a")]},
        {"role": "tool", "tool_call_id": "call_a", "content": "sunny"},
    ]
    rendered = render(new, TOOLS)
    assert render(old, TOOLS) == rendered
    assert rendered.continues
    assert rendered.in_thought
    assert rendered.messages == [
        {"role": "user", "content": f"{instruction(TOOLS)}\n\nQuestion: Paris?"},
        {
            "role": "assistant",
            "content": 'Thought: I look.\nAction: get_weather\nAction Input: {"a": 1}\nObservation: sunny\nThought:',
        },
    ]


def test_several_calls_of_a_message_become_rounds_with_their_own_results() -> None:
    calls = [tool_call("f", "{}", "a"), tool_call("g", "{}", "b"), tool_call("传感器", "{}", "c"), tool_call("h", "{}")]
    results = [
        {"role": "tool", "content": "of g", "tool_call_id": "b"},
        {"role": "tool", "content": "of some call"},
        {"role": "tool", "content": "of f", "tool_call_id": "a"},
        {"role": "tool", "content": "of none", "tool_call_id": "z"},
    ]
    messages = [user("?"), {"role": "assistant", "content": None, "tool_calls": calls}, *results, user("And?")]
    assert render(messages, TOOLS).messages[1]["content"].split("\n") == [
        "Thought: ",
        "Action: f",
        "Action Input: {}",
        "Observation: of f",
        "Thought: ",
        "Action: g",
        "Action Input: {}",
        "Observation: of g",
        "Thought: ",
        "Action: 传感器",
        "Action Input: {}",
        "Observation: of some call",
        "Thought: ",
        "Action: h",
        "Action Input: {}",
        "Observation: of none",
    ]


def test_without_tools_there_is_no_instruction_and_no_form() -> None:
    messages = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    assert render(messages) == Rendered([dict(each) for each in messages], continues=False, in_thought=False)
    assert render([]) == Rendered([], continues=False, in_thought=False)


def test_an_answer_of_the_assistant_is_continued() -> None:
    rendered = render([user("a"), {"role": "assistant", "content": "The answer"}], TOOLS)
    assert rendered.continues
    assert not rendered.in_thought
    assert rendered.messages[-1]["content"] == "Thought: I now know the final answer.\nFinal Answer: The answer"


def test_the_instruction_goes_to_the_last_answered_question() -> None:
    messages = [user("a"), user("b"), {"role": "assistant", "content": "c"}, user("d"), user("e")]
    contents = [each["content"] for each in render(messages, TOOLS).messages]
    assert [text.startswith("Answer the following") for text in contents] == [False, True, False, False, False]
    contents = [each["content"] for each in render(messages[3:], TOOLS).messages]
    assert [text.startswith("Answer the following") for text in contents] == [False, True]


def test_messages_are_not_changed() -> None:
    messages = [user(" a "), {"role": "assistant", "content": "b", "tool_calls": [tool_call("f", {"x": 1})]}]
    before = json.dumps(messages)
    render(messages, TOOLS)
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": "x"}], "no message of the user"),
        ([user("a"), {"role": "tool", "content": "x"}], "the role 'tool' follows no message of the assistant"),
        ([{"role": "robot", "content": "x"}], "has the role 'robot'"),
        ([user(3)], "the content of a message is a int"),
        ([user("a"), {"role": "assistant", "tool_calls": {}}, user("b"), 3], "'messages' must be a list"),
        ([user("a"), {"role": "assistant", "tool_calls": "x"}], "tool_calls of a message is not a list"),
        ([user("a"), {"role": "assistant", "tool_calls": [{"function": {}}]}], "has no function name"),
        ([user("a"), {"role": "assistant", "function_call": "f"}], "has no function name"),
        (
            [user("a"), {"role": "assistant", "function_call": {"name": "f", "arguments": {1, 2}}}],
            "cannot be written as JSON",
        ),
    ],
)
def test_what_cannot_be_rendered_is_refused(messages: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render(messages, TOOLS)


CONTENT = st.none() | st.text(max_size=6) | st.just([{"type": "text", "text": "x"}]) | st.integers()
CALL = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b", None]),
        "function": st.fixed_dictionaries({"name": st.sampled_from(["f", 3])}, optional={"arguments": CONTENT}),
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "function", "system"]), "content": CONTENT},
    optional={
        "tool_calls": st.lists(CALL, max_size=3) | st.none(),
        "function_call": st.none() | st.just({"name": "f", "arguments": "{}"}),
        "tool_call_id": st.sampled_from(["a", "b", None]),
    },
)


@given(st.lists(MESSAGE, max_size=8), st.booleans())
def test_any_conversation_is_rendered_or_refused(messages: list[Any], with_tools: bool) -> None:
    try:
        rendered = render(messages, TOOLS if with_tools else ())
    except UsageError as error:
        assert "\n" not in str(error)
        return
    assert {each["role"] for each in rendered.messages} <= {"user", "assistant", "system"}
    everything = "\n".join(each["content"] for each in rendered.messages)
    results = [each for each in messages if each["role"] in ("tool", "function")]
    assert everything.count(OBSERVATION) - everything.count(f"{OBSERVATION} the result of the action") == len(results)
