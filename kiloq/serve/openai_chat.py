"""POST /v1/chat/completions: OpenAI's fields in, its answers out, whole or in events.

Both forms are made from the same events of the same readers, so the pieces of a stream add up to what is said at once.
A call that was asked for by name ends with `tool_calls` as all calls do (OpenAI says `stop` for these alone).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from kiloq.chat.calls import CallArguments, CallStart, Event, TextDelta, gather
from kiloq.chat.definitions import read_choice, read_tools
from kiloq.generate.records import TokenLogprob
from kiloq.generate.requests import Request
from kiloq.serve.constraints import chat_constraint
from kiloq.serve.errors import ApiError
from kiloq.serve.fields import ChatBody
from kiloq.serve.runner import Job
from kiloq.serve.service import Prompt, Reader, Service
from kiloq.serve.stream import DONE, PING, PING_S, event


def usage_of(request: Request) -> dict[str, Any]:
    """Token counts of all answers together."""
    prompt, answers = len(request.prompt), sum(len(answer.ids) for answer in request.answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": request.answers[0].reused_tokens},
    }


class ChatCall:
    """One request: its prompt and job, and how both forms of its answer are written."""

    def __init__(self, service: Service, body: ChatBody) -> None:
        self._service, self._body = service, body
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._name = service.check_name(body.model)
        self._legacy = body.functions is not None
        if body.chat_template is not None:
            raise ApiError(
                400, "chat_template is not taken from requests: the model's own is used", param="chat_template"
            )
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs is given and logprobs is not true: set logprobs", param="top_logprobs")
        self._prompt = self._read_prompt()

    def _read_prompt(self) -> Prompt:
        body = self._body
        tools = read_tools(body.tools, body.functions)
        self._choice = read_choice(tools, body.tool_choice, body.function_call)
        sampling = body.sampling()
        asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        if asked is not None:
            sampling["max_new_tokens"] = asked
        if body.logprobs:
            sampling["logprobs"] = body.top_logprobs or 0
        return self._service.chat_prompt(
            body.messages, sampling, tools, self._choice, continue_final=body.continue_final_message
        )

    async def submit(self) -> list[Job]:
        """Queues it. Raises ApiError or KiloqError for what cannot be answered."""
        constraint = await chat_constraint(self._service, self._body.response_format, self._prompt, self._choice)
        self._job = self._service.submit(self._prompt, constraint)
        single = self._legacy or self._body.parallel_tool_calls is False
        self._readers = self._service.readers(self._prompt, self._job, single_call=single)
        return [self._job]

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""
        await self._job.finish()
        choices = []
        for reader in self._readers:
            content, calls = gather(reader.read())
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if calls and self._legacy:
                message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
            elif calls:
                message["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                    for call in calls
                ]
            choices.append(self._choice_of(reader, "message", message))
        return self._shape("chat.completion", choices) | {"usage": usage_of(self._job.request)}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer in events."""
        for reader in self._readers:
            yield self._event(reader, {"role": "assistant", "content": ""})
        async for new in self._job.updates(PING_S):
            if not new:
                yield PING
                continue
            for reader in [reader for reader in self._readers if not reader.ended]:
                for delta in map(self._delta, reader.read()):
                    yield self._event(reader, delta)
                if reader.ended:
                    yield self._event(reader, {}, ended=True)
        if self._options("include_usage"):
            yield event(self._shape("chat.completion.chunk", []) | {"usage": usage_of(self._job.request)})
        yield DONE

    def _delta(self, made: Event) -> dict[str, Any]:
        if isinstance(made, TextDelta):
            return {"content": made.text}
        if self._legacy:
            return {
                "function_call": {"name": made.name, "arguments": ""}
                if isinstance(made, CallStart)
                else {"arguments": made.text}
            }
        if isinstance(made, CallArguments):
            return {"tool_calls": [{"index": made.index, "function": {"arguments": made.text}}]}
        function = {"name": made.name, "arguments": ""}
        return {"tool_calls": [{"index": made.index, "id": made.id, "type": "function", "function": function}]}

    def _event(self, reader: Reader, delta: dict[str, Any], ended: bool = False) -> bytes:
        chunk = self._shape("chat.completion.chunk", [self._choice_of(reader, "delta", delta, ended)])
        if self._options("continuous_usage_stats"):
            chunk["usage"] = usage_of(self._job.request)
        elif self._options("include_usage"):
            chunk["usage"] = None
        return event(chunk)

    def _choice_of(self, reader: Reader, field: str, value: dict[str, Any], ended: bool = True) -> dict[str, Any]:
        finish = reader.finish_reason if ended else None
        if finish == "tool_calls" and self._legacy:
            finish = "function_call"
        return {
            "index": reader.answer.index,
            field: value,
            "logprobs": self._logprobs(reader, whole=field == "message"),
            "finish_reason": finish,
        }

    def _logprobs(self, reader: Reader, *, whole: bool) -> dict[str, Any] | None:
        """Those of the tokens since the last time."""
        if not self._body.logprobs:
            return None
        new = reader.answer.logprobs[reader.logprobs_read :]
        reader.logprobs_read += len(new)
        if not new and not whole:
            return None
        return {"content": [logprob_of(entry, top=True) for entry in new], "refusal": None}

    def _shape(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._name,
            "system_fingerprint": self._service.fingerprint,
            "choices": choices,
        }

    def _options(self, name: str) -> bool:
        return bool(self._body.stream_options and getattr(self._body.stream_options, name))


def logprob_of(entry: TokenLogprob, *, top: bool) -> dict[str, Any]:
    """OpenAI's shape, with our token id beside it."""
    shape = {
        "token": entry.token_bytes.decode("utf-8", errors="replace"),
        "bytes": list(entry.token_bytes),
        "logprob": entry.logprob,
        "id": entry.id,
    }
    return shape | {"top_logprobs": [logprob_of(other, top=False) for other in entry.top]} if top else shape
