"""POST /v1/responses, stateless: OpenAI's newer form of a chat, over the same machinery.

Input items become messages, output items are a message and function calls. Nothing is stored, so what refers to an
earlier response is refused. The events of a stream are built from the same items as the whole.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from kiloq.chat.calls import CallArguments, CallStart, Event, TextDelta
from kiloq.chat.definitions import read_choice, read_tools
from kiloq.serve.constraints import chat_constraint
from kiloq.serve.errors import ApiError
from kiloq.serve.fields import MOST_TOKENS, Body, ResponseFormat
from kiloq.serve.runner import Job
from kiloq.serve.service import Service
from kiloq.serve.stream import PING, PING_S, compact


class ResponsesBody(Body):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    metadata: dict[str, Any] | None = None


class ResponsesCall:
    """One request."""

    def __init__(self, service: Service, body: ResponsesBody) -> None:
        for field in ("previous_response_id", "conversation", "background"):
            if getattr(body, field):
                raise ApiError(
                    400, f"{field} is not supported: nothing is stored here, so send all of the input", param=field
                )
        self._service, self._body = service, body
        self._id, self._created = f"resp_{secrets.token_hex(16)}", int(time.time())
        self._name = service.check_name(body.model)
        functions = [_nested(tool) for tool in body.tools or ()]
        tools = read_tools(functions or None)
        choice = body.tool_choice if not isinstance(body.tool_choice, dict) else _nested(body.tool_choice)
        self._choice = read_choice(tools, choice)
        given = {"temperature": body.temperature, "top_p": body.top_p, "max_new_tokens": body.max_output_tokens}
        sampling = {name: value for name, value in given.items() if value is not None}
        self._prompt = service.chat_prompt(_messages(body), sampling, tools, self._choice)
        self._items: list[dict[str, Any]] = []
        self._number = 0

    async def submit(self) -> list[Job]:
        """Queues it."""
        form = (self._body.text or {}).get("format")
        constraint = await chat_constraint(self._service, _format(form), self._prompt, self._choice)
        self._job = self._service.submit(self._prompt, constraint)
        single = self._body.parallel_tool_calls is False
        (self._reader,) = self._service.readers(self._prompt, self._job, single_call=single)
        return [self._job]

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""
        await self._job.finish()
        for made in self._reader.read():
            list(self._add(made))
        list(self._close())
        return self._shape(self._status())

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer in events."""
        yield self._event("response.created", response=self._shape("in_progress"))
        yield self._event("response.in_progress", response=self._shape("in_progress"))
        async for new in self._job.updates(PING_S):
            if not new:
                yield PING
                continue
            for made in self._reader.read():
                for chunk in self._add(made):
                    yield chunk
        for chunk in self._close():
            yield chunk
        status = self._status()
        yield self._event(f"response.{status}", response=self._shape(status))

    def _add(self, made: Event) -> list[bytes]:
        """Puts one event into the items; the chunks that tell of it."""
        chunks: list[bytes] = []
        kind = "message" if isinstance(made, TextDelta) else "function_call"
        if isinstance(made, CallStart) or not self._items or self._items[-1]["type"] != kind:
            chunks += [*self._close(), *self._open(made)]
        item, place = self._items[-1], len(self._items) - 1
        if isinstance(made, TextDelta):
            item["content"][0]["text"] += made.text
            chunks.append(self._event("response.output_text.delta", item_id=item["id"], output_index=place,
                                      content_index=0, delta=made.text, logprobs=[]))  # fmt: skip
        elif isinstance(made, CallArguments):
            item["arguments"] += made.text
            chunks.append(self._event("response.function_call_arguments.delta", item_id=item["id"],
                                      output_index=place, delta=made.text))  # fmt: skip
        return chunks

    def _open(self, made: Event) -> list[bytes]:
        place = len(self._items)
        item: dict[str, Any]
        if isinstance(made, CallStart):
            item = {"id": f"fc_{secrets.token_hex(16)}", "type": "function_call", "status": "in_progress",
                    "call_id": made.id, "name": made.name, "arguments": ""}  # fmt: skip
            self._items.append(item)
            return [self._event("response.output_item.added", output_index=place, item=item)]
        item = {
            "id": f"msg_{secrets.token_hex(16)}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        chunks = [self._event("response.output_item.added", output_index=place, item=item)]
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"] = [part]
        self._items.append(item)
        chunks.append(self._event("response.content_part.added", item_id=item["id"], output_index=place,
                                  content_index=0, part=part))  # fmt: skip
        return chunks

    def _close(self) -> list[bytes]:
        """The last item is complete."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return []
        item, place = self._items[-1], len(self._items) - 1
        item["status"] = "completed"
        at = {"item_id": item["id"], "output_index": place}
        if item["type"] == "function_call":
            chunks = [
                self._event(
                    "response.function_call_arguments.done", **at, arguments=item["arguments"], name=item["name"]
                )
            ]
        else:
            part = item["content"][0]
            chunks = [
                self._event("response.output_text.done", **at, content_index=0, text=part["text"], logprobs=[]),
                self._event("response.content_part.done", **at, content_index=0, part=part),
            ]
        return [*chunks, self._event("response.output_item.done", output_index=place, item=item)]

    def _status(self) -> str:
        return "incomplete" if self._reader.finish_reason == "length" else "completed"

    def _shape(self, status: str) -> dict[str, Any]:
        body, request, done = self._body, self._job.request, status != "in_progress"
        counts = (len(request.prompt), len(request.answers[0].ids))
        usage = {
            "input_tokens": counts[0],
            "input_tokens_details": {"cached_tokens": request.answers[0].reused_tokens},
            "output_tokens": counts[1],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(counts),
        }
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "model": self._name,
            "output": self._items if done else [], "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "store": False,
            "temperature": request.params.temperature, "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto", "tools": body.tools or [], "top_p": request.params.top_p,
            "truncation": "disabled", "usage": usage if done else None, "user": None, "metadata": body.metadata or {},
        }  # fmt: skip

    def _event(self, kind: str, **fields: Any) -> bytes:
        shape = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {compact(shape)}\n\n".encode()


def _nested(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as chat completions write it; here its fields stand beside `type`."""
    if tool.get("type") != "function" or "function" in tool:
        return dict(tool)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _format(form: Any) -> ResponseFormat | None:
    if form is None:
        return None
    if not isinstance(form, Mapping) or not isinstance(form.get("type"), str):
        raise ApiError(400, 'text.format must be an object with a "type"', param="text")
    if form["type"] == "json_schema":
        return ResponseFormat(type="json_schema", json_schema={"schema": form.get("schema")})
    return ResponseFormat(**form)


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """Input items as messages; neighbouring calls of one turn are one message."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for place, item in enumerate(body.input):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _content(item.get("content"), place)})
        elif kind == "function_call":
            call = {
                "id": item.get("call_id"),
                "type": "function",
                "function": {k: item.get(k) for k in ("name", "arguments")},
            }
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"), place)}
            )
        elif kind != "reasoning":
            raise ApiError(
                400,
                f"input[{place}] is of the type {kind!r:.40}: messages, calls and their outputs are read",
                param="input",
            )
    return messages


def _content(content: Any, place: int) -> Any:
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("input_text", "output_text", "text"):
            raise ApiError(
                400, f"input[{place}] has a part of the type {kind!r:.40}: this model reads text only", param="input"
            )
        parts.append({"type": "text", "text": part.get("text")})
    return parts
