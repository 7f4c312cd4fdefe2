"""DashScope's text generation: its fields in, its answers out, whole or in events, as text or as messages.

What differs from OpenAI's: a stream is `event:result` with a number and no [DONE] at its end; its events repeat all
that was said so far unless `incremental_output` asks for what is new; every event has the usage; and a finish reason
that is not known yet is the text "null". With n > 1 an event is about one answer, and so is its usage, because the SDK
adds them up. The bytes are written by hand: a space after `event:` is an event that the SDK does not know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from kiloq.chat.calls import CallArguments, CallStart, Event, TextDelta
from kiloq.chat.definitions import read_choice, read_tools
from kiloq.serve.constraints import chat_constraint
from kiloq.serve.dashscope_fields import Asked, Parameters
from kiloq.serve.dialects import dashscope_error
from kiloq.serve.errors import ApiError
from kiloq.serve.openai_chat import logprob_of
from kiloq.serve.runner import Job
from kiloq.serve.service import MAX_STOPS, Prompt, Reader, Service
from kiloq.serve.stream import PING, PING_S, compact


class Generation:
    """One request: its prompt and job, and how both forms of its answer are written."""

    def __init__(self, service: Service, asked: Asked, parameters: Parameters, request_id: str) -> None:
        self._service, self._parameters, self._request_id = service, parameters, request_id
        if parameters.top_logprobs is not None and not parameters.logprobs:
            raise ApiError(400, "parameters.top_logprobs is given and logprobs is not true: set logprobs")
        self._prompt = self._read_prompt(asked)
        self._as_text = self._is_text_format()
        self._several = self._prompt.params.n > 1
        self._events = 0

    def _read_prompt(self, asked: Asked) -> Prompt:
        tools = read_tools(self._parameters.tools)
        self._choice = read_choice(tools, self._parameters.tool_choice)
        messages = asked.conversation()
        goes_on = messages[-1].get("partial") is True  # DashScope's word for an answer that has been begun
        if goes_on and messages[-1].get("role") != "assistant":
            raise ApiError(400, "partial is true in a message that is not the assistant's: leave it out")
        sampling = self._parameters.sampling() | self._stops()
        return self._service.chat_prompt(messages, sampling, tools, self._choice, continue_final=goes_on)

    def _stops(self) -> dict[str, Any]:
        """Stops of several tokens are stops of their text."""
        sequences, model = self._parameters.stop_sequences, self._service.model
        if len(sequences) > MAX_STOPS:
            raise ApiError(400, f"parameters.stop has {len(sequences)} entries: at most {MAX_STOPS} are taken")
        for ids in sequences:
            model.engine.check_ids(ids)
        return {"stop": tuple(model.tokenizer.decode(ids) for ids in sequences)} if sequences else {}

    def _is_text_format(self) -> bool:
        """Text is the default, for answers that it can hold."""
        asked, prompt = self._parameters.result_format, self._prompt
        why = [
            ("tools", bool(prompt.tools)),
            ("n above 1", prompt.params.n > 1),
            ("logprobs", self._parameters.logprobs),
        ]
        beyond = [what for what, wanted in why if wanted]
        if asked == "text" and beyond:
            raise ApiError(400, f"result_format is 'text', which has no place for {beyond[0]}: set it to 'message'")
        return asked == "text" or (asked is None and not beyond)

    async def submit(self) -> list[Job]:
        """Queues it. Raises ApiError or KiloqError for what cannot be answered."""
        constraint = await chat_constraint(self._service, self._parameters.response_format, self._prompt, self._choice)
        self._job = self._service.submit(self._prompt, constraint)
        single = self._parameters.parallel_tool_calls is False
        self._readers = self._service.readers(self._prompt, self._job, single_call=single)
        return [self._job]

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""
        await self._job.finish()
        choices = [self._choice_of(reader, reader.read(), whole=True) for reader in self._readers]
        return self._shape(choices, self._readers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer in events."""
        whole = not self._parameters.incremental_output
        said: list[list[Event]] = [[] for _ in self._readers]
        async for new in self._job.updates(PING_S):
            if not new:
                yield PING
                continue
            for place, reader in enumerate(self._readers):
                if reader.ended:
                    continue
                events = reader.read()
                if events or reader.ended:
                    said[place] = merged([*said[place], *events]) if whole else events
                    shape = self._shape([self._choice_of(reader, said[place], whole=whole)], [reader])
                    yield self._framed("result", 200, "", shape)

    def failure(self, error: ApiError) -> bytes:
        """The event that ends a stream which went wrong."""
        shape = dashscope_error(error, self._request_id)
        status = f"status:{error.status}\n"  # the field that the SDK reads; the service's own is only the comment
        return self._framed("error", error.status, status, shape)

    def _framed(self, kind: str, status: int, extra: str, shape: Any) -> bytes:
        self._events += 1
        return f"id:{self._events}\nevent:{kind}\n:HTTP_STATUS/{status}\n{extra}data:{compact(shape)}\n\n".encode()

    def _choice_of(self, reader: Reader, events: list[Event], *, whole: bool) -> dict[str, Any]:
        finish = reader.finish_reason if reader.ended else "null"
        message = message_of(events)
        if self._as_text:
            return {"text": message["content"], "finish_reason": finish}
        shape: dict[str, Any] = {"finish_reason": finish, "message": message}
        if self._several:
            shape["index"] = reader.answer.index
        if self._parameters.logprobs:
            shape["logprobs"] = {"content": self._logprobs(reader, whole=whole)}
        return shape

    def _logprobs(self, reader: Reader, *, whole: bool) -> list[dict[str, Any]]:
        new = list(reader.answer.logprobs[0 if whole else reader.logprobs_read :])
        reader.logprobs_read += 0 if whole else len(new)
        return [logprob_of(entry, top=True) for entry in new]

    def _shape(self, choices: list[dict[str, Any]], readers: Sequence[Reader]) -> dict[str, Any]:
        prompt, answers = len(self._job.request.prompt), sum(len(reader.answer.ids) for reader in readers)
        return {
            "output": choices[0] if self._as_text else {"choices": choices},
            "usage": {"input_tokens": prompt, "output_tokens": answers, "total_tokens": prompt + answers},
            "request_id": self._request_id,
        }


def merged(events: Sequence[Event]) -> list[Event]:
    """The same with one event for all text, and one for a call's beginning and one for its arguments."""
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    found: list[Event] = [TextDelta(text)] if text else []
    calls = [event for event in events if not isinstance(event, TextDelta)]
    for index in sorted({call.index for call in calls}):
        found += [call for call in calls if isinstance(call, CallStart) and call.index == index]
        arguments = "".join(call.text for call in calls if isinstance(call, CallArguments) and call.index == index)
        found += [CallArguments(index, arguments)] if arguments else []
    return found


def message_of(events: Sequence[Event]) -> dict[str, Any]:
    """The assistant's message; a call whose beginning was told before has neither id nor name, as the SDK expects."""
    texts: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    for event in merged(events):
        if isinstance(event, TextDelta):
            texts.append(event.text)
        elif isinstance(event, CallStart):
            calls[event.index] = _call(event.index, event.id, {"name": event.name, "arguments": ""})
        else:
            call = calls.setdefault(event.index, _call(event.index, "", {"arguments": ""}))
            call["function"]["arguments"] += event.text
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    return message | {"tool_calls": list(calls.values())} if calls else message


def _call(index: int, call_id: str, function: dict[str, str]) -> dict[str, Any]:
    return {"index": index, "id": call_id, "type": "function", "function": function}
