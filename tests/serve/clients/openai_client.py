"""What applications do with the openai SDK, of which the major versions 2 and 3 are alike here; see checks.py.

Two majors are tried because programs pin either. Answers that must have a form come from the real model.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
from checks import CALLS, TEXT, TOOLS, await_abort, first_line, metric, model, raised, run, same, say, scripted, trained
from checks import api as base
from checks import key as secret
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

client = OpenAI(base_url=base(), api_key=secret(), max_retries=0)
VECTOR_LENGTH_ERROR = 1e-3  # of a vector of length 1 in float32


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    kind: Literal["child", "adult"]


def chat(text: str, **fields: Any) -> Any:
    return client.chat.completions.create(model=model(), messages=say(text), **fields)


def check_calls(calls: Any) -> None:
    same([call.function.name for call in calls], ["weather", "clock"])
    same([json.loads(call.function.arguments) for call in calls], [{"city": "Köln"}, {"zone": 1}])
    same(len({call.id for call in calls}), 2)


@scripted
def models_are_listed() -> None:
    same([each.id for each in client.models.list()], [model()])
    same(client.models.retrieve(model()).owned_by, "kiloq")


@scripted
def chat_at_once() -> None:
    made = chat(TEXT)
    (choice,) = made.choices
    same((choice.message.role, choice.message.content, choice.finish_reason), ("assistant", TEXT, "stop"))
    same(made.usage.completion_tokens, len(TEXT.encode()) + 1)
    same(made.usage.prompt_tokens + made.usage.completion_tokens, made.usage.total_tokens)
    assert made.id.startswith("chatcmpl-") and made._request_id


@scripted
def chat_in_a_stream() -> None:
    chunks = list(chat(TEXT, stream=True))
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks), TEXT)
    same((chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason), ("assistant", "stop"))
    assert all(chunk.usage is None for chunk in chunks)


@scripted
def usage_in_the_last_chunk() -> None:
    *some, last = chat(TEXT, stream=True, stream_options={"include_usage": True})
    same((last.choices, last.usage.completion_tokens), ([], len(TEXT.encode()) + 1))
    assert all(chunk.usage is None for chunk in some)


@scripted
def content_in_parts_and_other_roles() -> None:
    parts = [{"type": "text", "text": "sa"}, {"type": "text", "text": "y:yes"}]
    messages: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "name": "me", "content": parts}]
    made = client.chat.completions.create(model=model(), messages=messages, user="me", metadata={"a": "b"}, store=False)
    same(made.choices[0].message.content, "yes")


@scripted
def stops_and_limits() -> None:
    for stop in ("END", ["x", "END"]):
        same(chat("one END two", stop=stop).choices[0].message.content, "one ")
        same("".join(c.choices[0].delta.content or "" for c in chat("one END two", stop=stop, stream=True)), "one ")
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        (choice,) = chat("abc", **limit).choices
        same((choice.message.content, choice.finish_reason), ("ab", "length"))


@scripted
def several_answers() -> None:
    same([(c.index, c.message.content) for c in chat("abc", n=2).choices], [(0, "abc"), (1, "abc")])


@scripted
def log_probabilities() -> None:
    (choice,) = chat("hé", logprobs=True, top_logprobs=2).choices
    same([entry.bytes for entry in choice.logprobs.content[:3]], [[104], [0xC3], [0xA9]])
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    streamed = [c.choices[0].logprobs for c in chat("hé", logprobs=True, stream=True)]
    same([e.bytes for each in streamed if each for e in each.content], [e.bytes for e in choice.logprobs.content])


@scripted
def calls_at_once() -> None:
    (choice,) = chat(CALLS, tools=TOOLS).choices
    same((choice.finish_reason, choice.message.content), ("tool_calls", None))
    check_calls(choice.message.tool_calls)


@scripted
def calls_in_a_stream() -> None:
    """Put together by the SDK itself, which also tells when each call is complete."""
    with client.chat.completions.stream(model=model(), messages=say(CALLS), tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    check_calls(choice.message.tool_calls)
    same((kinds.count("tool_calls.function.arguments.done"), choice.finish_reason), (2, "tool_calls"))


@scripted
def a_tool_result_is_answered() -> None:
    (choice,) = chat(CALLS, tools=TOOLS).choices
    results = [{"role": "tool", "tool_call_id": call.id, "content": "say:rain"} for call in choice.message.tool_calls]
    messages: Any = [{"role": "user", "content": "weather?"}, choice.message, *results]
    made = client.chat.completions.create(model=model(), messages=messages, tools=TOOLS)
    same((first_line(made.choices[0].message.content), made.choices[0].finish_reason), ("rain", "stop"))


@scripted
def text_completions_with_echo() -> None:
    prompt = "say:ab\x01\x02"
    made = client.completions.create(model=model(), prompt=prompt, echo=True, logprobs=2, max_tokens=1)
    (choice,) = made.choices
    same((choice.text, choice.finish_reason), (prompt + "a", "length"))
    assert choice.logprobs and choice.logprobs.token_logprobs and choice.logprobs.tokens
    same("".join(choice.logprobs.tokens), choice.text)
    same((choice.logprobs.token_logprobs[0], len(choice.logprobs.token_logprobs)), (None, len(prompt) + 1))
    stream = client.completions.create(model=model(), prompt=[list(prompt.encode())], stream=True)
    same("".join(chunk.choices[0].text for chunk in stream), "ab")


@scripted
def responses_at_once() -> None:
    made = client.responses.create(model=model(), instructions="Be brief.", input=f"say:{TEXT}", max_output_tokens=100)
    same((made.output_text, made.status), (TEXT, "completed"))
    assert made.usage and made.id.startswith("resp_")
    same(made.usage.output_tokens, len(TEXT.encode()) + 1)
    made = client.responses.create(model=model(), input="say:abc", max_output_tokens=2)
    assert made.incomplete_details
    same((made.output_text, made.status, made.incomplete_details.reason), ("ab", "incomplete", "max_output_tokens"))


@scripted
def responses_in_a_stream() -> None:
    with client.responses.stream(model=model(), input=f"say:{TEXT}") as stream:
        events = list(stream)
        final = stream.get_final_response()
    same("".join(e.delta for e in events if e.type == "response.output_text.delta"), TEXT)
    same((events[0].type, events[-1].type, final.output_text), ("response.created", "response.completed", TEXT))
    same([event.sequence_number for event in events], list(range(len(events))))


@scripted
def responses_with_calls_and_their_results() -> None:
    tools: Any = [{"type": "function", "strict": True, **tool["function"]} for tool in TOOLS]
    made = client.responses.create(model=model(), input=f"say:{CALLS}", tools=tools)
    with client.responses.stream(model=model(), input=f"say:{CALLS}", tools=tools) as stream:
        list(stream)
        final = stream.get_final_response()
    for output in (made.output, final.output):
        calls: list[Any] = [item for item in output if item.type == "function_call"]
        same(
            [(c.name, json.loads(c.arguments)) for c in calls], [("weather", {"city": "Köln"}), ("clock", {"zone": 1})]
        )
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "say:rain"} for call in calls]
    items: Any = [{"role": "user", "content": "weather?"}, *made.output, *results]
    same(first_line(client.responses.create(model=model(), input=items, tools=tools).output_text), "rain")


@scripted
def mistakes_are_the_classes_of_the_sdk() -> None:
    error = raised(openai.BadRequestError, lambda: chat("x", temperature=1000))
    same((error.status_code, error.param, error.type), (400, "temperature", "invalid_request_error"))
    assert "temperature" in error.message and error.request_id
    error = raised(openai.BadRequestError, lambda: chat("x" * 30_000))
    same(error.code, "context_length_exceeded")
    error = raised(openai.AuthenticationError, client.with_options(api_key="wrong").models.list)
    same((error.status_code, error.code), (401, "invalid_api_key"))
    error = raised(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-4", messages=say("x")))
    same(error.status_code, 404)
    raised(openai.NotFoundError, lambda: client.models.retrieve("gpt-4"))
    raised(openai.BadRequestError, lambda: client.responses.create(model=model(), input="x", previous_response_id="y"))


@scripted
def a_stream_that_goes_wrong_raises() -> None:
    """The server of the test ends answers that take longer than a few seconds."""
    error = raised(openai.APIError, lambda: list(chat("x" * 9000, stream=True)))
    assert "longer than" in error.message, error.message


@scripted
def leaving_a_stream_frees_the_engine() -> None:
    before = metric("request_aborted_total")
    stream = chat("x" * 5000, stream=True)
    next(iter(stream))
    stream.close()
    await_abort(before)


@scripted
async def the_asynchronous_client() -> None:
    async with AsyncOpenAI(base_url=base(), api_key=secret(), max_retries=0) as asynchronous:
        stream: Any = await asynchronous.chat.completions.create(model=model(), messages=say(TEXT), stream=True)
        same("".join([chunk.choices[0].delta.content or "" async for chunk in stream]), TEXT)
        before = metric("request_aborted_total")
        async with asynchronous.chat.completions.stream(model=model(), messages=say("x" * 5000)) as left:
            async for _ in left:
                break
        await asyncio.to_thread(await_abort, before)


@trained
def a_parsed_answer() -> None:
    messages: Any = [{"role": "user", "content": "Tell me about one person."}]
    made = client.chat.completions.parse(model=model(), messages=messages, response_format=Person, temperature=0)
    assert isinstance(made.choices[0].message.parsed, Person), made
    with client.chat.completions.stream(model=model(), messages=messages, response_format=Person, seed=1) as stream:
        list(stream)
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


@trained
def a_parsed_response() -> None:
    made = client.responses.parse(model=model(), input="Tell me about one person.", text_format=Person, temperature=0)
    assert isinstance(made.output_parsed, Person), made


@trained
def a_call_that_is_required() -> None:
    tools: Any = [openai.pydantic_function_tool(Person)]
    made = client.chat.completions.parse(
        model=model(), messages=[{"role": "user", "content": "Hello"}], tools=tools, tool_choice="required", seed=1
    )
    (call,) = made.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Person), call


@trained
def embeddings_in_base64_and_numbers() -> None:
    """The SDK asks for base64 unless it is told otherwise, and gives numbers either way."""
    texts = ["Paris is in France.", "an embedding"]
    packed = client.embeddings.create(model=model(), input=texts)
    plain = client.embeddings.create(model=model(), input=texts, encoding_format="float")
    same([each.index for each in packed.data], [0, 1])
    for one, other in zip(packed.data, plain.data, strict=True):
        assert max(abs(a - b) for a, b in zip(one.embedding, other.embedding, strict=True)) < 1e-6
        assert abs(sum(a * a for a in one.embedding) - 1) < VECTOR_LENGTH_ERROR
    assert packed.usage.prompt_tokens > 2


if __name__ == "__main__":
    run("openai", openai.__version__)
