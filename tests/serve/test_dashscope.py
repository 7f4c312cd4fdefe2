"""DashScope's dialect over a real socket: both formats, both kinds of stream, calls, stops, and the smaller routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from dashscope_wire import EMBEDDING, GENERATION, ask, body_of, error_in, pooled, stream
from serving import CALL, CLOCK, TOOLS, Served, scripted_model, served


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(scripted_model(max_length=2000)) as running:
        yield running


@pytest.fixture(scope="module")
def slow() -> Iterator[Served]:
    """One whose answers come in pieces: without a delay they are there before anybody looks."""
    with served(scripted_model(delay_s=0.004, max_length=2000)) as running:
        yield running


def messages_in(shapes: list[dict[str, Any]], index: int | None = None) -> list[dict[str, Any]]:
    choices = [choice for shape in shapes for choice in shape["output"]["choices"]]
    return [choice["message"] for choice in choices if index in (None, choice.get("index"))]


def test_an_answer_as_text_is_these_bytes(server: Served) -> None:
    response = server.post(GENERATION, body_of("say:hello 世界"), headers={"x-request-id": "one"})
    prompt, answer = len("say:hello 世界".encode()) + 2, len("hello 世界".encode()) + 1
    assert response.content.decode() == (
        '{"output":{"text":"hello 世界","finish_reason":"stop"},'
        f'"usage":{{"input_tokens":{prompt},"output_tokens":{answer},"total_tokens":{prompt + answer}}},'
        '"request_id":"one"}'
    )


def test_an_answer_as_message_is_these_bytes(server: Served) -> None:
    body = body_of([{"role": "user", "content": "say:hi"}], result_format="message")
    response = server.post(GENERATION, body, headers={"x-request-id": "two"})
    assert response.content.decode() == (
        '{"output":{"choices":[{"finish_reason":"stop","message":{"role":"assistant","content":"hi"}}]},'
        '"usage":{"input_tokens":8,"output_tokens":3,"total_tokens":11},"request_id":"two"}'
    )


def test_a_prompt_a_history_and_messages_are_the_same_conversation(server: Served) -> None:
    messages = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "say:c"},
    ]  # fmt: skip
    forms: list[Any] = [
        messages,
        {"prompt": "say:c", "history": [{"user": "a", "bot": "b"}]},
        {"prompt": "say:c", "messages": messages[:2]},
        [*messages[:2], {"role": "user", "content": [{"text": "say:"}, {"type": "text", "text": "c"}]}],
    ]
    answers = [ask(server, form) for form in forms]
    assert [answer["output"]["text"] for answer in answers] == ["c"] * len(forms)
    assert len({answer["usage"]["input_tokens"] for answer in answers}) == 1


def test_an_answer_that_was_begun_goes_on(server: Served) -> None:
    begun = [{"role": "user", "content": "say:hello"}, {"role": "assistant", "content": "hel", "partial": True}]
    assert ask(server, begun)["output"]["text"] == "lo"


@pytest.mark.parametrize("form", ["text", "message"])
def test_an_incremental_stream_adds_up_and_a_cumulative_one_repeats(slow: Served, form: str) -> None:
    said = "hello 世界 😀"
    pieces = {}
    for incremental in (True, False):
        shapes = stream(slow, f"say:{said}", result_format=form, incremental_output=incremental)
        held = [shape["output"] if form == "text" else shape["output"]["choices"][0] for shape in shapes]
        assert [each["finish_reason"] for each in held] == ["null"] * (len(held) - 1) + ["stop"]
        pieces[incremental] = [each["text"] if form == "text" else each["message"]["content"] for each in held]
        assert all("\ufffd" not in piece for piece in pieces[incremental])
        counts = [shape["usage"] for shape in shapes]
        assert all(count["total_tokens"] == count["input_tokens"] + count["output_tokens"] for count in counts)
        assert counts[-1]["output_tokens"] == len(said.encode()) + 1
        made = [count["output_tokens"] for count in counts]
        assert made == sorted(made) and len(shapes) > 1
    assert "".join(pieces[True]) == said
    assert pieces[False][-1] == said
    assert all(later.startswith(earlier) for earlier, later in pairwise(pieces[False]))


def test_cumulative_is_the_default_and_a_stream_is_asked_for_by_a_header_alone(server: Served) -> None:
    assert stream(server, "say:abc")[-1]["output"] == {"text": "abc", "finish_reason": "stop"}
    assert ask(server, "say:abc", stream=True)["output"]["text"] == "abc"
    response = server.post(GENERATION, body_of("say:abc"), headers={"Accept": "text/event-stream"})
    assert response.content.startswith(b"id:1\nevent:result\n:HTTP_STATUS/200\ndata:{")


def test_several_answers_have_an_index_and_in_a_stream_each_its_own_usage(slow: Served) -> None:
    found = ask(slow, "say:abc", n=3)
    assert [choice["index"] for choice in found["output"]["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in found["output"]["choices"]] == ["abc"] * 3
    assert found["usage"]["output_tokens"] == 12
    shapes = stream(slow, "say:abc", n=2, incremental_output=True)
    for index in (0, 1):
        assert "".join(message["content"] for message in messages_in(shapes, index)) == "abc"
        own = [shape for shape in shapes if shape["output"]["choices"][0]["index"] == index]
        assert own[-1]["usage"]["output_tokens"] == 4
        assert own[-1]["output"]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stop", ["END", ["x", "END"], [ord("E")], [[ord("E")]], [[ord("E"), ord("N")]], [[120], [69, 78, 68]]])  # fmt: skip
def test_stops_are_texts_tokens_or_lists_of_tokens(server: Served, stop: Any) -> None:
    assert ask(server, "say:one END two", stop=stop)["output"] == {"text": "one ", "finish_reason": "stop"}
    assert stream(server, "say:one END two", stop=stop)[-1]["output"]["text"] == "one "


def test_sampling_that_the_service_has_is_taken_and_limits_end_an_answer(server: Served) -> None:
    found = ask(server, "say:abcdef", max_tokens=2, seed=1234, temperature=0.0, top_p=0.8, top_k=5,
                repetition_penalty=1.0, presence_penalty=0.0)  # fmt: skip
    assert found["output"] == {"text": "ab", "finish_reason": "length"}
    assert found["usage"]["output_tokens"] == 2
    ignored = {"enable_search": True, "enable_thinking": False, "thinking_budget": 5, "search_options": {}, "frob": 1}
    assert ask(server, "say:abc", **ignored)["output"]["text"] == "abc"


def test_log_probabilities_come_with_messages(slow: Served) -> None:
    (choice,) = ask(slow, "say:hé", logprobs=True, top_logprobs=2)["output"]["choices"]
    entries = choice["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries[:3]] == [[104], [0xC3], [0xA9]]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    for incremental in (True, False):
        choices = [s["output"]["choices"][0] for s in stream(slow, "say:hé", logprobs=True, incremental_output=incremental)]  # fmt: skip
        lists = [each["logprobs"]["content"] for each in choices]
        told = [entry for each in lists for entry in each] if incremental else lists[-1]
        assert [entry["id"] for entry in told] == [entry["id"] for entry in entries]


def test_calls_are_in_the_message(server: Served) -> None:
    (choice,) = ask(server, f"say:Well. {CALL}{CLOCK}", tools=TOOLS)["output"]["choices"]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Well."
    assert [(call["index"], call["type"], call["function"]["name"]) for call in calls] == [
        (0, "function", "weather"), (1, "function", "clock"),
    ]  # fmt: skip
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Köln"}
    assert len({call["id"] for call in calls}) == 2
    (choice,) = ask(server, f"say:{CALL}{CLOCK}", tools=TOOLS, parallel_tool_calls=False)["output"]["choices"]
    assert len(choice["message"]["tool_calls"]) == 1 and choice["message"]["content"] == ""
    (choice,) = ask(server, f"say:{CALL}", tools=TOOLS, tool_choice="none", result_format="message")["output"]["choices"]  # fmt: skip
    assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"


def test_streamed_calls_are_deltas_or_whole_so_far(slow: Served) -> None:
    deltas = messages_in(stream(slow, f"say:{CALL}{CLOCK}", tools=TOOLS, incremental_output=True))
    calls: dict[int, dict[str, str]] = {}
    for delta in [delta for message in deltas for delta in message.get("tool_calls", [])]:
        assert set(delta) == {"index", "id", "type", "function"} and delta["type"] == "function"
        if delta["index"] not in calls:
            calls[delta["index"]] = {"id": delta["id"], "name": delta["function"]["name"], "arguments": ""}
        else:
            assert delta["id"] == "" and set(delta["function"]) == {"arguments"}
        calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert [call["name"] for call in calls.values()] == ["weather", "clock"]
    assert json.loads(calls[0]["arguments"]) == {"city": "Köln"} and calls[0]["id"] != calls[1]["id"]
    shapes = stream(slow, f"say:{CALL}{CLOCK}", tools=TOOLS)
    last = messages_in(shapes)[-1]["tool_calls"]
    assert [call["function"]["name"] for call in last] == ["weather", "clock"]
    assert json.loads(last[0]["function"]["arguments"]) == {"city": "Köln"}
    first = [message["tool_calls"][0] for message in messages_in(shapes) if "tool_calls" in message]
    assert len({call["id"] for call in first}) == 1, "each time the same call"
    assert all(b["function"]["arguments"].startswith(a["function"]["arguments"]) for a, b in pairwise(first))  # fmt: skip
    assert len(first) > 2 and shapes[-1]["output"]["choices"][0]["finish_reason"] == "tool_calls"


def test_results_of_calls_are_read(server: Served) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "time?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "say:noon", "tool_call_id": "c", "name": "clock"},
    ]  # fmt: skip
    text = ask(server, messages, tools=TOOLS)["output"]["choices"][0]["message"]["content"]
    assert text.startswith("noon")


def test_the_tokenizer_gives_ids_and_tokens(server: Served) -> None:
    found = server.post("/api/v1/tokenizer", body_of("hé")).json()
    assert found["output"] == {"token_ids": [104, 0xC3, 0xA9], "tokens": ["h", "\ufffd", "\ufffd"]}
    assert found["usage"] == {"input_tokens": 3} and found["request_id"]
    messages = [{"role": "user", "content": "say:hi"}]
    counted = server.post("/api/v1/tokenizer", body_of(messages)).json()["usage"]["input_tokens"]
    assert counted == ask(server, messages)["usage"]["input_tokens"], "a conversation has the tokens it will cost"
    assert error_in(server.post("/api/v1/tokenizer", {"model": "no", "input": {"prompt": "a"}}), 404) == "ModelNotFound"


def test_models_come_in_pages(server: Served) -> None:
    page = server.client.get("/api/v1/models", params={"page_no": 1, "page_size": 10}).json()["output"]
    (model,) = page.pop("models")
    assert page == {"total": 1, "page_no": 1, "page_size": 10}
    assert model["model"] == model["model_id"] == "scripted" and model["max_model_len"] == 2000
    assert server.client.get("/api/v1/models", params={"page_no": 2}).json()["output"]["models"] == []
    assert server.client.get("/api/v1/models", params={"model": "scripted"}).json()["output"]["total"] == 1
    assert server.client.get("/api/v1/models", params={"model": "qwen-max"}).json()["output"]["models"] == []


def test_embeddings_are_vectors_in_the_order_of_their_texts() -> None:
    model = scripted_model()
    vector = pooled(model)
    with served(model) as server:
        body = {"model": "scripted", "input": {"texts": ["a", "bcd"]}, "parameters": {"text_type": "query"}}
        found = server.post(EMBEDDING, body).json()
        assert [entry["text_index"] for entry in found["output"]["embeddings"]] == [0, 1]
        for text, entry in zip(("a", "bcd"), found["output"]["embeddings"], strict=True):
            np.testing.assert_allclose(entry["embedding"], vector(text) / np.linalg.norm(vector(text)), rtol=1e-6)
        assert found["usage"] == {"total_tokens": 4} and list(found) == ["output", "usage", "request_id"]
        for fields in ({"input": {"texts": []}}, {"input": {"texts": "a"}}, {"input": {"texts": [""]}},
                       {"parameters": {"dimension": 9}}, {"parameters": {"output_type": "sparse"}}):  # fmt: skip
            assert error_in(server.post(EMBEDDING, body | fields), 400) == "InvalidParameter"
