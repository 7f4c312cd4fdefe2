"""What an answer must be: response_format and a call that is required, as a constraint of the engine.

Grammars are compiled in threads of their own, so that a hard one delays no request without any.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from kiloq.chat.definitions import Tool, ToolChoice
from kiloq.chat.hermes import CLOSE, OPEN
from kiloq.serve.errors import ApiError
from kiloq.serve.fields import ResponseFormat
from kiloq.serve.service import Prompt, Service


async def chat_constraint(
    service: Service, form: ResponseFormat | None, prompt: Prompt, choice: ToolChoice
) -> Any | None:
    """The constraint of a chat request, or None. Raises ApiError or UsageError for one that cannot be kept."""
    spec = call_spec(prompt, choice) if choice.mode in ("required", "named") else format_spec(form)
    if spec is None:
        return None
    return await asyncio.get_running_loop().run_in_executor(service.form_threads, service.compiler().compile, spec)


def format_spec(form: ResponseFormat | None) -> Any | None:
    """What `response_format` asks for."""
    if form is None or form.type == "text":
        return None
    from kiloq.generate.constrain import ConstraintSpec

    if form.type == "json_object":
        return ConstraintSpec.json_object()
    extra = form.model_extra or {}
    if form.type == "json_schema":
        schema = (form.json_schema or {}).get("schema")
        if not isinstance(schema, dict):
            raise ApiError(
                400, "response_format has no json_schema.schema: give the schema object", param="response_format"
            )
        return ConstraintSpec.json_schema(schema)
    if form.type in ("regex", "grammar") and isinstance(extra.get(form.type), str):
        return getattr(ConstraintSpec, form.type)(extra[form.type])
    raise ApiError(
        400,
        f"response_format is of the type {form.type!r:.40}: it can be text, json_object, json_schema with a schema, "
        "regex with a regex, or grammar with a grammar",
        param="response_format",
    )


def call_spec(prompt: Prompt, choice: ToolChoice) -> Any:
    """A grammar of one call, of the functions that are offered."""
    from kiloq.generate.constrain import ConstraintSpec

    one_of = " | ".join(f"call_{place}" for place in range(len(prompt.tools)))
    rules = "\n".join(_call_rule(place, tool, prompt) for place, tool in enumerate(prompt.tools))
    return ConstraintSpec.grammar(f"start: {one_of}\n{rules}\n")


def _call_rule(place: int, tool: Tool, prompt: Prompt) -> str:
    name = json.dumps(tool.name, ensure_ascii=False)
    arguments = f"%json {json.dumps(_schema(tool), ensure_ascii=False)}"
    if prompt.react:
        thought = " I should call a tool." if prompt.in_thought else "Thought: I should call a tool."
        before, after = f"{thought}\nAction: {tool.name}\nAction Input: ", ""
    else:
        before, after = f'{OPEN}\n{{"name": {name}, "arguments": ', f"}}\n{CLOSE}"
    parts = [_literal(before), f"arguments_{place}", *([_literal(after)] if after else [])]
    return f"call_{place}: {' '.join(parts)}\narguments_{place}: {arguments}"


def _schema(tool: Tool) -> dict[str, Any]:
    """The arguments' schema. What it does not name is forbidden unless it says otherwise: a small model goes on for ever
    inventing fields where it may."""
    parameters = tool.openai()["function"].get("parameters") or {}
    return {"additionalProperties": False, "properties": {}, **parameters, "type": "object"}


def _literal(text: str) -> str:
    """A string of the grammar language, which has JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)
