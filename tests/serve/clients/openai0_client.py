"""What programs of Qwen-1's time do with openai 0.28, whose functions came before tools; see checks.py."""

from __future__ import annotations

import json
from typing import Any

import openai
from checks import (
    CALL,
    CLOCK,
    TEXT,
    WEATHER,
    await_abort,
    first_line,
    metric,
    model,
    raised,
    run,
    same,
    say,
    scripted,
    trained,
)
from checks import api as base
from checks import key as secret
from openai import error, version

openai.api_base, openai.api_key = base(), secret()
FUNCTIONS = [WEATHER, CLOCK]


def chat(text: str, **fields: Any) -> Any:
    return openai.ChatCompletion.create(model=model(), messages=say(text), **fields)


@scripted
def models_are_listed() -> None:
    same([each.id for each in openai.Model.list().data], [model()])
    same(openai.Model.retrieve(model()).id, model())


@scripted
def chat_at_once() -> None:
    made = chat(TEXT, stop=["NO"], temperature=0.5, top_p=0.8)
    same((made.choices[0].message.content, made.choices[0].finish_reason), (TEXT, "stop"))
    same(made.usage.completion_tokens, len(TEXT.encode()) + 1)


@scripted
def chat_in_a_stream() -> None:
    chunks = list(chat(TEXT, stream=True))
    same("".join(chunk.choices[0].delta.get("content", "") for chunk in chunks), TEXT)
    same((chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason), ("assistant", "stop"))


@scripted
def a_function_is_called_and_answered() -> None:
    (choice,) = chat(CALL, functions=FUNCTIONS).choices
    same(choice.finish_reason, "function_call")
    same((choice.message.function_call.name, choice.message.content), ("weather", None))
    same(json.loads(choice.message.function_call.arguments), {"city": "Köln"})
    result = {"role": "function", "name": "weather", "content": "say:rain"}
    messages = [{"role": "user", "content": "weather?"}, choice.message, result]
    made = openai.ChatCompletion.create(model=model(), messages=messages, functions=FUNCTIONS)
    same(first_line(made.choices[0].message.content), "rain")


@scripted
def a_function_is_called_in_a_stream() -> None:
    deltas = [chunk.choices[0].delta.get("function_call") for chunk in chat(CALL, functions=FUNCTIONS, stream=True)]
    given = [delta for delta in deltas if delta]
    same([delta.name for delta in given if "name" in delta], ["weather"])
    same(json.loads("".join(delta.arguments for delta in given)), {"city": "Köln"})


@scripted
def text_completions() -> None:
    prompt = "say:ab\x01\x02"
    made = openai.Completion.create(model=model(), prompt=prompt, echo=True, logprobs=1, max_tokens=2)
    same(made.choices[0].text, prompt + "ab")
    same(len(made.choices[0].logprobs.token_logprobs), len(prompt) + 2)
    same("".join(c.choices[0].text for c in openai.Completion.create(model=model(), prompt=prompt, stream=True)), "ab")


@scripted
def mistakes_are_the_classes_of_the_sdk() -> None:
    same(raised(error.InvalidRequestError, lambda: chat("x", temperature=1000)).param, "temperature")
    same(raised(error.AuthenticationError, lambda: chat("x", api_key="wrong")).http_status, 401)
    wrong = raised(error.InvalidRequestError, lambda: openai.ChatCompletion.create(model="gpt-4", messages=say("x")))
    same(wrong.http_status, 404)


@scripted
def leaving_a_stream_frees_the_engine() -> None:
    before = metric("request_aborted_total")
    stream = chat("x" * 5000, stream=True)
    next(stream)
    stream.close()
    openai.api_requestor._thread_context.session.close()  # this SDK gives a connection up with its session only
    await_abort(before)


@scripted
async def the_asynchronous_calls() -> None:
    stream = await openai.ChatCompletion.acreate(model=model(), messages=say(TEXT), stream=True)
    same("".join([chunk.choices[0].delta.get("content", "") async for chunk in stream]), TEXT)


@trained
def embeddings() -> None:
    made = openai.Embedding.create(model=model(), input=["Paris is in France.", "an embedding"])
    same([each.index for each in made.data], [0, 1])
    assert abs(sum(a * a for a in made.data[0].embedding) - 1) < 1e-3


if __name__ == "__main__":
    run("openai", version.VERSION)
