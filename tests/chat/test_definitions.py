"""Functions of requests in their three forms, the choice among them, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiloq.chat.definitions import MAX_NAME, MAX_TOOLS, ToolChoice, offered_tools, read_choice, read_tools
from kiloq.core.errors import UsageError
from kiloq.tokenize.chatml import ChatML

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA, "strict": True}
SEARCH = {
    "name_for_human": "谷歌搜索",
    "name_for_model": "google_search",
    "description_for_model": "搜索",
    "parameters": [
        {"name": "query", "description": "关键词", "required": True, "schema": {"type": "string"}},
        {"name": "page", "schema": {"type": "integer"}},
    ],
    "args_format": "json",
}


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_the_three_forms_are_read() -> None:
    (tool,) = read_tools([{"type": "function", "function": WEATHER}])
    assert (tool.name, tool.title, tool.description, tool.args_format) == (
        "get_weather",
        "get_weather",
        "The weather.",
        None,
    )
    assert read_tools(functions=[WEATHER]) == (tool,)
    (search,) = read_tools(functions=[SEARCH])
    assert (search.name, search.title, search.description) == ("google_search", "谷歌搜索", "搜索")
    assert search.args_format == "json"
    assert read_tools([SEARCH]) == (search,)
    assert read_tools() == read_tools([]) == ()


def test_templates_get_openai_form_as_it_came() -> None:
    given = {"type": "function", "function": WEATHER}
    (tool,) = read_tools([given])
    assert tool.openai() == given
    assert read_tools([{"type": "function", **WEATHER}])[0].openai() == given
    turns = list(ChatML().turns([{"role": "user", "content": "?"}], [tool.openai()]))
    assert turns[0].text is not None
    assert json.dumps(given) in turns[0].text


def test_templates_get_a_schema_for_a_list_of_parameters() -> None:
    (tool,) = read_tools(functions=[SEARCH])
    assert tool.openai()["function"] == {
        "name": "google_search",
        "description": "搜索",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "关键词"}, "page": {"type": "integer"}},
            "required": ["query"],
        },
    }


@pytest.mark.parametrize("name", ["f", "a" * MAX_NAME, "get-it_2", "传感器", "हिन्दी", "погода"])
def test_names_of_every_script_are_taken(name: str) -> None:
    assert read_tools([named(name)])[0].name == name


@pytest.mark.parametrize("name", ["", "a" * (MAX_NAME + 1), "a b", "a.b", "a\n", "<x>", "a\u200b", None, 3, ["f"]])
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(UsageError, match=r"tools\[0\] has the name .* it must be 1 to 64"):
        read_tools([named(name)])


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("x", "'tools' is a str: it must be a list"),
        ({}, "'tools' is a dict"),
        ([1], r"tools\[0\] is a int"),
        ([named("f"), {"type": "retrieval"}], r"tools\[1\]\.type is 'retrieval'"),
        ([{"type": "function", "function": "f"}], r"tools\[0\]\.function is a str"),
        ([{"type": "function", "function": None}], r"tools\[0\]\.function is a NoneType"),
        ([{"name": "f", "description": 3}], r"tools\[0\]\.description is a int"),
        ([{"name": "f", "parameters": "{}"}], r"tools\[0\]\.parameters is a str"),
        ([{"name": "f", "parameters": [{"schema": {}}]}], r"tools\[0\]\.parameters is a list"),
        ([{"name": "f", "parameters": {"x": float("nan")}}], r"tools\[0\]\.parameters cannot be written as JSON"),
        ([{"name": "f", "args_format": "xml"}], r"tools\[0\]\.args_format is 'xml': it can be json or code"),
        ([named("f"), named("g"), named("f")], r"tools\[2\] has the name 'f' of another function"),
        ([named(f"f{n}") for n in range(MAX_TOOLS + 1)], "has 129 functions: at most 128"),
    ],
)
def test_what_cannot_be_offered_is_refused_with_its_place(tools: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_tools(tools)


def test_as_many_functions_as_openai_takes() -> None:
    assert len(read_tools([named(f"f{n}") for n in range(MAX_TOOLS)])) == MAX_TOOLS


def test_a_schema_too_deep_to_write_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    try:
        with pytest.raises(UsageError, match="cannot be written as JSON"):
            read_tools([{"name": "f", "parameters": schema}])
    finally:  # level by level, for Python frees nested dictionaries by recursion
        while schema:
            schema = schema.pop("items")


def test_both_lists_or_both_choices_are_refused() -> None:
    with pytest.raises(UsageError, match="both given"):
        read_tools([], [])
    with pytest.raises(UsageError, match="both given"):
        read_choice((), "auto", "auto")


def test_choices() -> None:
    tools = read_tools([named("f"), named("传感器")])
    f, sensor = tools
    cases: list[tuple[dict[str, Any], ToolChoice, tuple[Any, ...]]] = [
        ({}, ToolChoice("auto"), tools),
        ({"tool_choice": "auto"}, ToolChoice("auto"), tools),
        ({"function_call": "auto"}, ToolChoice("auto"), tools),
        ({"tool_choice": "none"}, ToolChoice("none"), ()),
        ({"function_call": "none"}, ToolChoice("none"), ()),
        ({"tool_choice": "required"}, ToolChoice("required"), tools),
        ({"tool_choice": named("传感器")}, ToolChoice("named", "传感器"), (sensor,)),
        ({"function_call": {"name": "f"}}, ToolChoice("named", "f"), (f,)),
    ]
    for fields, choice, offered in cases:
        assert read_choice(tools, **fields) == choice
        assert offered_tools(tools, choice) == offered
    for fields in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"function_call": "auto"}):
        assert read_choice((), **fields) == ToolChoice("none")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": named("g")}, r"'tool_choice' names 'g': it must be one of the functions given \(f\)"),
        ({"function_call": {"name": "g"}}, "'function_call' names 'g'"),
        ({"tool_choice": "f"}, "'tool_choice' is 'f': it can be 'none', 'auto', 'required' or"),
        ({"function_call": "required"}, "'function_call' is 'required': it can be 'none', 'auto' or"),
        ({"tool_choice": {"type": "function", "function": {}}}, "'tool_choice' is "),
        ({"tool_choice": 3}, "'tool_choice' is '3'"),
    ],
)
def test_choices_that_there_are_not(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_choice(read_tools([named("f")]), **fields)


def test_nothing_can_be_required_without_tools() -> None:
    with pytest.raises(UsageError, match="there are no tools"):
        read_choice((), "required")
    with pytest.raises(UsageError, match=r"\(none\)"):
        read_choice((), named("f"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "function", "name", "parameters", "name_for_model", "description", "args_format"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_any_json_is_read_or_refused(tools: Any, choice: Any) -> None:
    try:
        read = read_tools(tools)
        json.dumps([tool.openai() for tool in read])
        read_choice(read, choice)
    except UsageError as error:
        assert "\n" not in str(error)
