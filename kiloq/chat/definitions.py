"""The functions that a request offers to the model, and whether it may or must call one: checked, in one form.

Three ways to write a function are read: OpenAI's `tools`, its older `functions`, and the plugin form of Qwen-1's
examples (name_for_model, name_for_human, description_for_model, and parameters as a list). The limits are OpenAI's:
128 functions, names of 1 to 64 letters, digits, '_' and '-'; letters of every script count, since Qwen-1's tools have
Chinese names. Errors are UsageError, and name the field as the request has it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kiloq.core.errors import UsageError
from kiloq.core.files import shown

MAX_TOOLS = 128  # OpenAI's API reference, `tools`
MAX_NAME = 64  # OpenAI's API reference, `function.name`
ARGS_FORMATS = ("json", "code")  # Qwen-1's examples/react_demo.py


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    `parameters` is a JSON schema, or Qwen-1's list of {name, description, required, schema}; `title` is the name for
    people and `args_format` the sentence about the arguments that Qwen-1's prompt ends with (None: no sentence).
    """

    name: str
    title: str
    description: str
    parameters: Mapping[str, Any] | Sequence[Any]
    args_format: str | None
    source: Mapping[str, Any]

    def openai(self) -> dict[str, Any]:
        """The tool as OpenAI writes it, which is what chat templates take; as it came where it came so."""
        if "name_for_model" not in self.source and isinstance(self.parameters, Mapping):
            return {"type": "function", "function": dict(self.source)}
        schema = self.parameters if isinstance(self.parameters, Mapping) else _schema(self.parameters)
        function = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolChoice:
    """Whether the model may call tools (auto), may not (none), must (required), or must call the one `name`."""

    mode: Literal["none", "auto", "required", "named"]
    name: str | None = None


def read_tools(tools: object = None, functions: object = None) -> tuple[Tool, ...]:
    """The tools of a request, from its `tools` or its `functions`. Raises UsageError for what cannot be offered."""
    if tools is not None and functions is not None:
        raise UsageError("'tools' and 'functions' are both given: a request can have one, so leave 'functions' out")
    field, given = ("tools", tools) if functions is None else ("functions", functions)
    if given is None:
        return ()
    if not isinstance(given, list | tuple):
        raise UsageError(f"'{field}' is a {type(given).__name__}: it must be a list of functions")
    if len(given) > MAX_TOOLS:
        raise UsageError(f"'{field}' has {len(given):,} functions: at most {MAX_TOOLS} are taken, so leave some out")
    result = tuple(_tool(each, f"{field}[{place}]") for place, each in enumerate(given))
    seen: set[str] = set()
    for place, tool in enumerate(result):
        if tool.name in seen:
            raise UsageError(
                f"{field}[{place}] has the name {shown(tool.name)} of another function: rename one of them"
            )
        seen.add(tool.name)
    return result


def read_choice(tools: Sequence[Tool], tool_choice: object = None, function_call: object = None) -> ToolChoice:
    """The `tool_choice` of a request, or its older `function_call`. Raises UsageError for a choice there is not."""
    if tool_choice is not None and function_call is not None:
        raise UsageError("'tool_choice' and 'function_call' are both given: leave 'function_call' out")
    field, given = ("tool_choice", tool_choice) if function_call is None else ("function_call", function_call)
    if given is None:
        return ToolChoice("auto" if tools else "none")
    if given == "none" or (given == "auto" and not tools):
        return ToolChoice("none")
    if given == "auto":
        return ToolChoice("auto")
    if given == "required" and field == "tool_choice":
        if not tools:
            raise UsageError(f"'{field}' is 'required' and there are no tools: give 'tools', or choose 'auto'")
        return ToolChoice("required")
    name = _chosen(given, field)
    if all(tool.name != name for tool in tools):
        offered = ", ".join(tool.name for tool in tools[:5]) + (", ..." if len(tools) > 5 else "")
        raise UsageError(f"'{field}' names {shown(name)}: it must be one of the functions given ({offered or 'none'})")
    return ToolChoice("named", name)


def offered_tools(tools: Sequence[Tool], choice: ToolChoice) -> tuple[Tool, ...]:
    """The tools to show to the model and to accept calls of: all, none, or the one that was chosen."""
    if choice.mode == "none":
        return ()
    return tuple(tool for tool in tools if choice.name in (None, tool.name))


def _chosen(given: object, field: str) -> str:
    """The name in {"type": "function", "function": {"name": ...}}, or in `function_call`'s {"name": ...}."""
    inner = given.get("function") if isinstance(given, Mapping) and field == "tool_choice" else given
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if isinstance(name, str):
        return name
    if field == "tool_choice":
        form, words = '{"type": "function", "function": {"name": ...}}', "'none', 'auto', 'required'"
    else:
        form, words = '{"name": ...}', "'none', 'auto'"
    raise UsageError(f"'{field}' is {shown(given)}: it can be {words} or {form}")


def _tool(given: object, where: str) -> Tool:
    """One entry of the list; `where` is its place in the request."""
    if not isinstance(given, Mapping):
        raise UsageError(
            f'{where} is a {type(given).__name__}: it must be an object such as {{"type": "function", ...}}'
        )
    kind = given.get("type", "function")
    if kind != "function":
        raise UsageError(
            f"{where}.type is {shown(kind)}: only tools of the type 'function' are offered, so leave it out"
        )
    function = given.get("function", given)
    if not isinstance(function, Mapping):
        raise UsageError(f'{where}.function is a {type(function).__name__}: it must be an object with a "name"')
    name = _checked_name(function.get("name_for_model", function.get("name")), where)
    args_format = function.get("args_format")
    if args_format is not None and args_format not in ARGS_FORMATS:
        raise UsageError(f"{where}.args_format is {shown(args_format)}: it can be {' or '.join(ARGS_FORMATS)}")
    return Tool(
        name=name,
        title=_text(function, "name_for_human", where) or _text(function, "name", where) or name,
        description=_text(function, "description_for_model", where) or _text(function, "description", where),
        parameters=_checked_parameters(function.get("parameters"), where),
        args_format=args_format,
        source={key: value for key, value in function.items() if function is not given or key != "type"},
    )


def _checked_name(name: object, where: str) -> str:
    """A name in which every character is a letter, mark or digit of some script, '_' or '-'."""
    fits = isinstance(name, str) and 1 <= len(name) <= MAX_NAME
    if not isinstance(name, str) or not fits or not all(c in "_-" or unicodedata.category(c)[0] in "LMN" for c in name):
        raise UsageError(f"{where} has the name {shown(name)}: it must be 1 to {MAX_NAME} letters, digits, '_' or '-'")
    return name


def _text(function: Mapping[str, Any], key: str, where: str) -> str:
    value = function.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}.{key} is a {type(value).__name__}: it must be a text, or be left out")
    return value or ""


def _checked_parameters(given: object, where: str) -> Mapping[str, Any] | list[Any]:
    """A JSON schema or Qwen-1's list, which can be written as JSON; {} where there is none."""
    if given is None:
        return {}
    if not isinstance(given, Mapping | list):
        raise UsageError(f"{where}.parameters is a {type(given).__name__}: it must be a JSON schema object")
    if isinstance(given, list) and not all(isinstance(p, Mapping) and isinstance(p.get("name"), str) for p in given):
        raise UsageError(f'{where}.parameters is a list: each of its entries must be an object with a "name"')
    try:
        json.dumps(given, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}.parameters cannot be written as JSON ({error}): simplify the schema") from None
    return given


def _schema(parameters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Qwen-1's list of parameters as a JSON schema."""
    properties = {}
    for each in parameters:
        schema = each.get("schema")
        about = {"description": each["description"]} if "description" in each else {}
        properties[each["name"]] = (dict(schema) if isinstance(schema, Mapping) else {}) | about
    required = [each["name"] for each in parameters if each.get("required")]
    return {"type": "object", "properties": properties, "required": required}
