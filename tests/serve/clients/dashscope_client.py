"""What programs do with the dashscope SDK, against a server of the scripted model; runs where that SDK is installed.

    python dashscope_client.py URL KEY      URL as in http://127.0.0.1:8000

Prints one JSON object: the version, and of every check its error or null. The model says what follows "say:"; its
server ends answers that take longer than a few seconds.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import dashscope
from dashscope import Generation, Models, TextEmbedding, Tokenization
from dashscope.aigc.generation import AioGeneration
from dashscope.version import __version__

MODEL = "scripted"
TEXT = "hello 世界 😀\u2028end"
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
]
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {"zone": 1}}\n</tool_call>'
)
CHECKS: list[Callable[[], Any]] = []


def check(function: Callable[[], Any]) -> Callable[[], Any]:
    CHECKS.append(function)
    return function


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"say:{text}"}]


def same(found: Any, expected: Any) -> None:
    assert found == expected, f"{found!r} is not {expected!r}"


def good(response: Any) -> Any:
    assert response.status_code == 200, response
    assert response.request_id and not response.code
    return response


def check_calls(calls: Any) -> None:
    same([call["function"]["name"] for call in calls], ["weather", "clock"])
    same([json.loads(call["function"]["arguments"]) for call in calls], [{"city": "Köln"}, {"zone": 1}])
    assert all(call["id"].startswith("call_") for call in calls), calls


@check
def text_of_a_prompt() -> None:
    response = good(Generation.call(MODEL, prompt=f"say:{TEXT}", seed=7, top_k=5, top_p=0.8, temperature=0.5))
    same(response.output.text, TEXT)
    same(response.output.finish_reason, "stop")
    same(response.usage.output_tokens, len(TEXT.encode()) + 1)
    same(response.usage.input_tokens + response.usage.output_tokens, response.usage.total_tokens)


@check
def message_of_messages() -> None:
    (choice,) = good(Generation.call(MODEL, messages=say(TEXT), result_format="message")).output.choices
    same((choice.finish_reason, choice.message.role, choice.message.content), ("stop", "assistant", TEXT))


@check
def history_of_turns() -> None:
    response = good(Generation.call(MODEL, prompt="say:yes", history=[{"user": "hello", "bot": "good day"}]))
    same(response.output.text, "yes")


@check
def limits_and_stops() -> None:
    same(good(Generation.call(MODEL, prompt="say:abcdef", max_tokens=2)).output.finish_reason, "length")
    for stop in ("END", ["END"], [ord("E")], [[ord("E"), ord("N")]]):
        same(good(Generation.call(MODEL, prompt="say:one END", stop=stop)).output.text, "one ")


@check
def incremental_stream() -> None:
    responses = list(Generation.call(MODEL, prompt=f"say:{TEXT}", stream=True, incremental_output=True))
    same("".join(good(response).output.text for response in responses), TEXT)
    same({response.output.finish_reason for response in responses[:-1]}, {"null"})
    same(responses[-1].output.finish_reason, "stop")
    assert len({response.request_id for response in responses}) == 1


@check
def cumulative_stream() -> None:
    responses = list(Generation.call(MODEL, messages=say(TEXT), result_format="message", stream=True))
    texts = [good(response).output.choices[0].message.content for response in responses]
    same(texts[-1], TEXT)
    assert len(texts) > 1 and all(TEXT.startswith(text) for text in texts)


@check
def stream_that_the_sdk_makes_cumulative() -> None:
    for form in ("text", "message"):
        last = list(Generation.call(MODEL, prompt=f"say:{TEXT}", result_format=form, stream=True, incremental_output=False))[-1]  # fmt: skip
        same(last.output.text if form == "text" else last.output.choices[0].message.content, TEXT)


@check
def several_answers() -> None:
    choices = good(Generation.call(MODEL, prompt="say:abc", n=2, result_format="message")).output.choices
    same([choice.message.content for choice in choices], ["abc", "abc"])
    last = list(Generation.call(MODEL, prompt="say:abc", n=2, result_format="message", stream=True, incremental_output=False))[-1]  # fmt: skip
    same([choice["message"]["content"] for choice in last.output.choices], ["abc", "abc"])
    same(last.usage["output_tokens"], 8)


@check
def calls_at_once_and_streamed() -> None:
    ask = {"messages": say(CALLS), "tools": TOOLS, "result_format": "message"}
    (choice,) = good(Generation.call(MODEL, **ask)).output.choices
    same(choice.finish_reason, "tool_calls")
    check_calls(choice.message.tool_calls)
    for incremental in (None, False):  # repeated by the server, and put together by the SDK
        *_, last = Generation.call(MODEL, stream=True, incremental_output=incremental, **ask)
        same(good(last).output.choices[0].finish_reason, "tool_calls")
        check_calls(last.output.choices[0].message.tool_calls)


@check
def conversation_with_a_result() -> None:
    (choice,) = good(Generation.call(MODEL, messages=say(CALLS), tools=TOOLS, result_format="message")).output.choices
    result = {"role": "tool", "content": "say:rain", "tool_call_id": choice.message.tool_calls[0]["id"]}
    messages = [{"role": "user", "content": "weather?"}, choice.message, result]
    (choice,) = good(Generation.call(MODEL, messages=messages, tools=TOOLS, result_format="message")).output.choices
    assert choice.message.content.startswith("rain"), choice


@check
def log_probabilities() -> None:
    (choice,) = good(Generation.call(MODEL, prompt="say:ab", logprobs=True, top_logprobs=2, result_format="message")).output.choices  # fmt: skip
    same([entry["token"] for entry in choice["logprobs"]["content"][:2]], ["a", "b"])
    *_, last = Generation.call(MODEL, prompt="say:ab", logprobs=True, result_format="message", stream=True, incremental_output=False)  # fmt: skip
    same([entry["token"] for entry in last.output.choices[0]["logprobs"]["content"][:2]], ["a", "b"])


@check
async def asynchronous_answer() -> None:
    same(good(await AioGeneration.call(MODEL, prompt=f"say:{TEXT}")).output.text, TEXT)


@check
async def asynchronous_streams() -> None:
    stream = await AioGeneration.call(MODEL, prompt=f"say:{TEXT}", stream=True, incremental_output=True)
    same("".join([good(response).output.text async for response in stream]), TEXT)
    stream = await AioGeneration.call(MODEL, messages=say(CALLS), tools=TOOLS, result_format="message", stream=True)
    last = [response async for response in stream][-1]
    check_calls(good(last).output.choices[0].message.tool_calls)


@check
async def asynchronous_refusals() -> None:
    response = await AioGeneration.call("qwen-max", prompt="hi")
    same((response.status_code, response.code), (404, "ModelNotFound"))
    stream = await AioGeneration.call(MODEL, prompt=f"say:{'x' * 1800}", stream=True, incremental_output=True)
    *some, last = [response async for response in stream]
    assert some and all(response.status_code == 200 for response in some)
    same((last.status_code, last.code), (504, "RequestTimeOut"))


@check
def refusals() -> None:
    response = Generation.call("qwen-max", prompt="hi")
    same((response.status_code, response.code), (404, "ModelNotFound"))
    assert response.message and response.request_id
    response = Generation.call(MODEL, prompt="hi", api_key="wrong")
    same((response.status_code, response.code), (401, "InvalidApiKey"))
    response = Generation.call(MODEL, prompt="hi", top_p=3.0)
    same((response.status_code, response.code), (400, "InvalidParameter"))
    assert "parameters.top_p" in response.message, response
    (response,) = Generation.call(MODEL, prompt="hi", top_p=3.0, stream=True)
    same((response.status_code, response.code), (400, "InvalidParameter"))
    response = Generation.call(MODEL, prompt="hi", headers={"X-DashScope-Async": "enable"})
    same((response.status_code, response.code), (400, "UnsupportedOperation"))


@check
def stream_that_goes_wrong() -> None:
    *some, last = Generation.call(MODEL, prompt=f"say:{'x' * 1800}", stream=True, incremental_output=True)
    assert some and all(response.status_code == 200 for response in some)
    same((last.status_code, last.code), (504, "RequestTimeOut"))
    assert "longer than" in last.message, last


@check
def tokenization() -> None:
    response = good(Tokenization.call(MODEL, prompt="hé"))
    same(response.output["token_ids"], [104, 0xC3, 0xA9])
    same(len(response.output["tokens"]), response.usage["input_tokens"])
    counted = good(Tokenization.call(MODEL, messages=say("hi"))).usage["input_tokens"]
    same(counted, good(Generation.call(MODEL, messages=say("hi"))).usage.input_tokens)


@check
def models() -> None:
    same([model["model"] for model in good(Models.list(page=1, page_size=5)).output["models"]], [MODEL])
    same(good(Models.list(page=2, page_size=5)).output["models"], [])
    same(good(Models.get(MODEL)).output["model_id"], MODEL)
    same(Models.get("qwen-max").status_code, 404)


@check
def embeddings() -> None:
    response = good(TextEmbedding.call(MODEL, input=["a", "bcd"], text_type="document"))
    same([entry["text_index"] for entry in response.output["embeddings"]], [0, 1])
    assert all(abs(sum(x * x for x in entry["embedding"]) - 1) < 1e-4 for entry in response.output["embeddings"])
    same(response.usage["total_tokens"], 4)
    response = TextEmbedding.call(MODEL, input="a", dimension=9)
    same((response.status_code, response.code), (400, "InvalidParameter"))


def error_of(function: Callable[[], Any]) -> str | None:
    try:
        result = function()
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except Exception:
        return traceback.format_exc()
    return None


def main() -> None:
    url, key = sys.argv[1:]
    dashscope.base_http_api_url = f"{url}/api/v1"
    dashscope.api_key = key
    print(json.dumps({"version": __version__, "checks": {each.__name__: error_of(each) for each in CHECKS}}))


if __name__ == "__main__":
    main()
