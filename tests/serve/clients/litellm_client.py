"""What programs do through litellm, as its providers `openai` and `hosted_vllm`; see checks.py."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from typing import Any

import litellm
from checks import (
    CALLS,
    TEXT,
    TOOLS,
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

litellm.telemetry = False
litellm.suppress_debug_info = True
PROVIDERS = ("openai", "hosted_vllm")
ACCESS: dict[str, Any] = {"api_base": base(), "api_key": secret(), "num_retries": 0, "max_retries": 0}
FORM = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}, "kind": {"enum": ["child", "adult"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}


def chat(provider: str, text: str, **fields: Any) -> Any:
    return litellm.completion(model=f"{provider}/{model()}", messages=say(text), **ACCESS, **fields)


@scripted
def chat_at_once() -> None:
    for provider in PROVIDERS:
        made = chat(provider, TEXT, temperature=0.5, top_p=0.8, stop=["NO"])
        same((made.choices[0].message.content, made.choices[0].finish_reason), (TEXT, "stop"))
        same(made.usage.completion_tokens, len(TEXT.encode()) + 1)


@scripted
def chat_in_a_stream_with_usage() -> None:
    for provider in PROVIDERS:
        chunks = list(chat(provider, TEXT, stream=True, stream_options={"include_usage": True}))
        same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), TEXT)
        same(litellm.stream_chunk_builder(chunks).choices[0].message.content, TEXT)
        (usage,) = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
        same(usage.completion_tokens, len(TEXT.encode()) + 1)


@scripted
def calls_at_once_streamed_and_answered() -> None:
    for provider in PROVIDERS:
        whole = chat(provider, CALLS, tools=TOOLS)
        built = litellm.stream_chunk_builder(list(chat(provider, CALLS, tools=TOOLS, stream=True)))
        for made in (whole, built):
            (choice,) = made.choices
            same(choice.finish_reason, "tool_calls")
            calls = choice.message.tool_calls
            same([call.function.name for call in calls], ["weather", "clock"])
            same([json.loads(call.function.arguments) for call in calls], [{"city": "Köln"}, {"zone": 1}])
        results = [{"role": "tool", "tool_call_id": call.id, "content": "say:rain"} for call in calls]
        messages = [{"role": "user", "content": "weather?"}, choice.message, *results]
        made = litellm.completion(model=f"{provider}/{model()}", messages=messages, tools=TOOLS, **ACCESS)
        same(first_line(made.choices[0].message.content), "rain")


@scripted
def log_probabilities() -> None:
    (choice,) = chat("openai", "ab", logprobs=True, top_logprobs=2).choices
    same([entry.token for entry in choice.logprobs.content[:2]], ["a", "b"])


@scripted
def text_completions() -> None:
    made = litellm.text_completion(model=f"text-completion-openai/{model()}", prompt="say:ab\x01\x02", **ACCESS)
    same(made.choices[0].text, "ab")


@scripted
def responses() -> None:
    made = litellm.responses(model=f"openai/{model()}", input=f"say:{TEXT}", api_base=base(), api_key=secret())
    same(made.output[0].content[0].text, TEXT)


@scripted
def mistakes_are_the_classes_of_litellm() -> None:
    raised(litellm.BadRequestError, lambda: chat("openai", "x", temperature=1000))
    raised(litellm.ContextWindowExceededError, lambda: chat("openai", "x" * 30_000))
    raised(litellm.NotFoundError, lambda: litellm.completion(model="openai/gpt-4", messages=say("x"), **ACCESS))
    wrong = ACCESS | {"api_key": "wrong"}
    raised(
        litellm.AuthenticationError, lambda: litellm.completion(model=f"openai/{model()}", messages=say("x"), **wrong)
    )


@scripted
async def the_asynchronous_calls() -> None:
    stream = await litellm.acompletion(model=f"openai/{model()}", messages=say(TEXT), stream=True, **ACCESS)
    same("".join([chunk.choices[0].delta.content or "" async for chunk in stream]), TEXT)
    before = metric("request_aborted_total")
    left = await litellm.acompletion(model=f"openai/{model()}", messages=say("x" * 5000), stream=True, **ACCESS)
    async for _ in left:
        break
    await left.aclose()
    await asyncio.to_thread(await_abort, before)


@trained
def an_answer_of_a_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": FORM, "strict": True}}
    made = litellm.completion(
        model=f"openai/{model()}", messages=[{"role": "user", "content": "A person."}], response_format=form, **ACCESS
    )
    same(set(json.loads(made.choices[0].message.content)), {"age", "kind"})


@trained
def embeddings() -> None:
    for provider in PROVIDERS:
        made = litellm.embedding(model=f"{provider}/{model()}", input=["Paris is in France.", "words"], **ACCESS)
        same([each["index"] for each in made.data], [0, 1])
        assert abs(sum(a * a for a in made.data[0]["embedding"]) - 1) < 1e-3


if __name__ == "__main__":
    run("litellm", version("litellm"))
