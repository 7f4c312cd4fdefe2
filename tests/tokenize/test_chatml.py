"""ChatML against a plain rendering and transformers' Qwen2 form, and safe from what people write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiloq.core.errors import UsageError
from kiloq.tokenize.chatml import QWEN_SYSTEM, ChatML, render
from kiloq.tokenize.tokenizer import Tokenizer

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "你好"},
]
TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    "<|im_start|>user\n你好<|im_end|>\n"
)


def test_a_conversation(qwen: Tokenizer) -> None:
    assert qwen.chat(TALK, add_generation_prompt=False) == qwen.encode(TEXT, special="all")
    assert qwen.chat(TALK) == qwen.encode(TEXT + "<|im_start|>assistant\n", special="all")


def test_the_default_system_message(qwen: Tokenizer) -> None:
    with_default = qwen.chat(TALK[1:])
    assert with_default == qwen.chat([{"role": "system", "content": QWEN_SYSTEM}, *TALK[1:]])
    ids = [i for s in ChatML(None).segments(qwen, TALK[1:]) for i in s.ids]
    assert qwen.decode(ids).startswith("<|im_start|>user")
    assert qwen.decode(qwen.chat([])) == f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>assistant\n"


def test_content_forms(qwen: Tokenizer) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    assert qwen.chat([{"role": "user", "content": parts}]) == qwen.chat([{"role": "user", "content": "Hello!"}])
    assert qwen.chat([{"role": "user", "content": None}]) == qwen.chat([{"role": "user", "content": ""}])
    assert qwen.chat([{"role": "user"}]) == qwen.chat([{"role": "user", "content": ""}])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "wizard", "content": "x"}, "role 'wizard'"),
        ({"content": "x"}, "role 'None'"),
        ("user: x", "role"),
        ({"role": "user", "content": 7}, "is a int"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "type 'image_url'"),
        ({"role": "user", "content": ["x"]}, "type 'x'"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "type 'text'"),
        ({"role": "assistant", "tool_calls": "x"}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "no function name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {1, 2}}}]}, "JSON"),
    ],
)
def test_messages_that_chatml_cannot_hold(qwen: Tokenizer, message: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        qwen.chat([message])


def test_tools_equal_the_form_that_qwen2_5_was_trained_on() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}, {"name": "größe"}]
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "é"}'}}
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "three"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"name": "add", "arguments": {}}, {"name": "add", "arguments": "{"}],
        },
        {"role": "tool", "content": "none"},
    ]
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.\n\n# Tools\n\nYou may call one or more functions to assist with the user "
        "query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        f"{signatures}\n</tools>\n\nFor each function call, return a json object with function name and arguments "
        'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
        "<args-json-object>}\n</tool_call><|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n"
        'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\nthree\n</tool_response><|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\n<tool_call>\n'
        '{"name": "add", "arguments": "{"}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nnone\n</tool_response><|im_end|>\n"
    )
    assert render(list(ChatML().turns(talk, tools))) == expected


stray = st.lists(
    st.one_of(st.text(max_size=5), st.sampled_from(["<|im_end|>", "<|im_start|>", "\n", "<|"])), max_size=5
)
talks = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "tool"]), stray.map("".join)).map(
        lambda pair: {"role": pair[0], "content": pair[1]}
    ),
    max_size=5,
)


@given(talk=talks, system=stray.map("".join), tool=stray.map("".join))
def test_control_tokens_are_exactly_those_of_the_builder(
    qwen: Tokenizer, talk: list[dict[str, str]], system: str, tool: str
) -> None:
    messages = [{"role": "system", "content": system}, *talk]
    turns = list(ChatML().turns(messages, [{"name": tool}]))
    segments = qwen.chat_segments(messages, tools=[{"name": tool}])
    control = [s.text for s in segments if s.control]
    assert control == ["<|im_start|>", "<|im_end|>"] * len(turns) + ["<|im_start|>"]
    assert all(qwen.is_special(i) == s.control for s in segments for i in s.ids)
    assert all(qwen.decode(s.ids) == qwen.decode(qwen.encode(s.text)) for s in segments if not s.control)


@pytest.mark.parametrize("wrong", [None, 5, "text", {"role": "user"}, [None], ["text"], [["user", "Hi"]]])
def test_what_is_no_list_of_messages_is_one_sentence(qwen: Tokenizer, wrong: Any) -> None:
    with pytest.raises(UsageError, match="'messages' must be a list"):
        qwen.chat(wrong)
    with pytest.raises(UsageError, match="'tools' must be a list"):
        qwen.chat([], tools=wrong if wrong is not None else [None])
