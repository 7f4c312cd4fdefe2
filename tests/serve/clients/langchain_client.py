"""What programs do with langchain's ChatOpenAI and OpenAIEmbeddings; see checks.py."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal

import openai
from checks import CALLS, TEXT, TOOLS, first_line, model, raised, run, same, scripted, trained
from checks import api as base
from checks import key as secret
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field


class Person(BaseModel):
    """A person."""

    model_config = ConfigDict(
        extra="forbid"
    )  # or a small model, asked for a call, makes up fields until it has no room
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    kind: Literal["child", "adult"]


def chat(**fields: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=base(), api_key=secret(), model=model(), max_retries=0, **fields)


def check_calls(calls: Any) -> None:
    same([(call["name"], call["args"]) for call in calls], [("weather", {"city": "Köln"}), ("clock", {"zone": 1})])


@scripted
def invoke() -> None:
    made = chat(temperature=0.5).invoke([SystemMessage("Be brief."), HumanMessage(f"say:{TEXT}")])
    same((made.content, made.response_metadata["finish_reason"]), (TEXT, "stop"))
    same(made.usage_metadata["output_tokens"], len(TEXT.encode()) + 1)


@scripted
def stream_with_usage() -> None:
    chunks = list(chat(stream_usage=True).stream(f"say:{TEXT}"))
    whole = sum(chunks[1:], chunks[0])
    assert isinstance(whole, AIMessageChunk) and len(chunks) > 2
    same((whole.content, whole.usage_metadata["output_tokens"]), (TEXT, len(TEXT.encode()) + 1))


@scripted
def stops_and_log_probabilities() -> None:
    same(chat().invoke("say:one END two", stop=["END"]).content, "one ")
    found = chat(logprobs=True, top_logprobs=2).invoke("say:ab").response_metadata["logprobs"]["content"]
    same([entry["token"] for entry in found[:2]], ["a", "b"])


@scripted
def bound_tools_are_called_and_answered() -> None:
    bound = chat().bind_tools(TOOLS)
    made = bound.invoke(f"say:{CALLS}")
    check_calls(made.tool_calls)
    chunks = list(bound.stream(f"say:{CALLS}"))
    check_calls(sum(chunks[1:], chunks[0]).tool_calls)
    results = [ToolMessage("say:rain", tool_call_id=call["id"]) for call in made.tool_calls]
    same(first_line(str(bound.invoke([HumanMessage("weather?"), made, *results]).content)), "rain")


@scripted
def batch() -> None:
    same([made.content for made in chat().batch([f"say:{each}" for each in "abc"])], list("abc"))


@scripted
async def asynchronous_stream() -> None:
    same("".join([str(chunk.content) async for chunk in chat().astream(f"say:{TEXT}")]), TEXT)


@scripted
def the_responses_api() -> None:
    made = chat(use_responses_api=True).invoke(f"say:{TEXT}")
    same(made.text, TEXT)
    chunks = list(chat(use_responses_api=True).bind_tools(TOOLS).stream(f"say:{CALLS}"))
    check_calls(sum(chunks[1:], chunks[0]).tool_calls)


@scripted
def mistakes_are_raised() -> None:
    raised(openai.BadRequestError, lambda: chat(temperature=1000).invoke("x"))
    raised(openai.BadRequestError, lambda: chat().invoke("x" * 30_000))


@trained
def structured_output() -> None:
    """As a strict schema, as a call that is asked for by name, and as any object."""
    for method in ("json_schema", "function_calling"):
        bound = chat(temperature=0, seed=1).with_structured_output(Person, method=method)
        made = bound.invoke("Tell me about one person.")
        assert isinstance(made, Person), made
    raw = chat(temperature=0).with_structured_output(Person, include_raw=True).invoke("Tell me about one person.")
    assert raw["parsed"] and not raw["parsing_error"], raw


@trained
def a_tool_that_is_required() -> None:
    made = chat(seed=1).bind_tools([Person], tool_choice="any").invoke("Hello")
    assert isinstance(Person(**made.tool_calls[0]["args"]), Person)


@trained
def embeddings() -> None:
    """Without a check of lengths, texts are sent; with it, token ids of another vocabulary would be."""
    made = OpenAIEmbeddings(base_url=base(), api_key=secret(), model=model(), check_embedding_ctx_length=False)
    one, other = made.embed_documents(["Paris is in France.", "words"])
    assert abs(sum(a * a for a in one) - 1) < 1e-3 and len(one) == len(other)


if __name__ == "__main__":
    run("langchain-openai", version("langchain-openai"))
