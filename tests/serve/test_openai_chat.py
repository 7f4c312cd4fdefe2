"""Chat completions over a real socket: every wire rule, on a model that says what it is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from serving import CALL, CLOCK, TOOLS, Served, scripted_model, served


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(scripted_model(max_length=2000)) as running:
        yield running


def until(holds: Callable[[], bool]) -> None:
    """Waits for something that comes soon."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def message_of(server: Served, content: Any, **fields: Any) -> tuple[dict[str, Any], str]:
    response = server.chat(content, **fields)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"], choice["finish_reason"]


def streamed(server: Served, content: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": content}], **fields}
    events = server.events("/v1/chat/completions", body)
    assert events[-1] == "[DONE]" and events.count("[DONE]") == 1
    return [json.loads(event) for event in events[:-1]]


def test_an_answer_has_every_field_of_the_api(server: Served) -> None:
    found = server.chat("say:hello").json()
    assert found["object"] == "chat.completion" and found["model"] == "scripted" and found["id"].startswith("chatcmpl-")
    assert isinstance(found["created"], int) and found["system_fingerprint"].startswith("kiloq_")
    assert found["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "hello", "refusal": None}, "logprobs": None, "finish_reason": "stop"}
    ]  # fmt: skip
    prompt = len("say:hello") + 2
    assert found["usage"]["prompt_tokens"] == prompt and found["usage"]["completion_tokens"] == 6
    assert found["usage"]["total_tokens"] == prompt + 6
    assert server.chat("say:hello").json()["id"] != found["id"]


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(server: Served) -> None:
    chunks = streamed(server, "say:hello 世界 😀")
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "hello 世界 😀"
    assert all("\ufffd" not in chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1 and all("usage" not in chunk for chunk in chunks)


def test_usage_comes_in_the_last_chunk_and_only_when_it_is_asked_for(server: Served) -> None:
    assert all("usage" not in chunk for chunk in streamed(server, "say:a", stream_options={}))
    chunks = streamed(server, "say:a", stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 2
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    chunks = streamed(server, "say:abc", stream_options={"continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 4


def test_several_answers_share_a_prompt_and_have_their_own_index(server: Served) -> None:
    found = server.chat("say:abc", n=3).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert found["usage"]["completion_tokens"] == 12
    texts = ["", "", ""]
    for chunk in streamed(server, "say:abc", n=3):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["abc"] * 3


def test_stops_are_never_shown_whole_or_in_part(server: Served) -> None:
    for stop in ("END", ["x", "END"]):
        chunks = streamed(server, "say:one EN two END three", stop=stop)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "one EN two "
    assert message_of(server, "say:abc", max_tokens=2) == (
        {"role": "assistant", "content": "ab", "refusal": None},
        "length",
    )


def test_content_may_be_parts_and_unknown_fields_pass(server: Served) -> None:
    parts = [{"type": "text", "text": "sa"}, {"type": "text", "text": "y:yes"}]
    message, _ = message_of(
        server, parts, user="me", metadata={"a": "b"}, store=True, service_tier="auto", frobnicate=1
    )
    assert message["content"] == "yes"


def test_log_probabilities_are_those_of_openai_with_ids(server: Served) -> None:
    found = server.chat("say:hé", logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in found[:3]] == [[104], [0xC3], [0xA9]]
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in found)
    assert found[0]["token"] == "h" and found[0]["id"] == 104 and found[0]["top_logprobs"][0]["token"] == "h"
    chunks = streamed(server, "say:hé", logprobs=True)
    flat = [e for c in chunks if c["choices"][0]["logprobs"] for e in c["choices"][0]["logprobs"]["content"]]
    assert [entry["bytes"] for entry in flat] == [entry["bytes"] for entry in found]
    assert all(entry["top_logprobs"] == [] for entry in flat)


def calls_in(chunks: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The calls that a stream's deltas add up to, checked for form on the way."""
    calls: list[dict[str, str]] = []
    for chunk in chunks:
        for delta in chunk["choices"][0]["delta"].get("tool_calls", []):
            if delta["index"] == len(calls):
                assert set(delta) == {"index", "id", "type", "function"} and delta["function"]["arguments"] == ""
                calls.append({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""})
            else:
                assert set(delta) == {"index", "function"} and set(delta["function"]) == {"arguments"}
                calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    return calls


@pytest.mark.parametrize("text", [CALL, f"Let me see. {CALL}", f"{CALL}\n{CLOCK}"])
def test_streamed_calls_add_up_to_the_calls_at_once(server: Served, text: str) -> None:
    message, reason = message_of(server, f"say:{text}", tools=TOOLS)
    chunks = streamed(server, f"say:{text}", tools=TOOLS)
    calls = calls_in(chunks)
    whole = [
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]} for call in message["tool_calls"]
    ]
    assert [{"name": call["name"], "arguments": call["arguments"]} for call in calls] == whole
    assert json.loads(calls[0]["arguments"]) == {"city": "Köln"}
    assert len({call["id"] for call in calls}) == len(calls)
    assert reason == chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert message["content"] == (None if text.startswith("<") else "Let me see.")


def test_one_call_only_where_calls_may_not_be_parallel(server: Served) -> None:
    message, reason = message_of(server, f"say:{CALL}{CLOCK}", tools=TOOLS, parallel_tool_calls=False)
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"] and reason == "tool_calls"


@pytest.mark.parametrize("text", ['<tool_call>\n{"name": "weather", "argu', "<tool_call>\nnot json\n</tool_call>", '<tool_call>{"name": "no", "arguments": {}}</tool_call>'])  # fmt: skip
def test_a_call_that_is_none_is_text(server: Served, text: str) -> None:
    message, reason = message_of(server, f"say:{text}", tools=TOOLS)
    assert (message["content"], reason) == (text, "stop") and "tool_calls" not in message


def test_without_tools_or_with_none_chosen_nothing_is_read_as_a_call(server: Served) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        message, reason = message_of(server, f"say:{CALL}", **fields)
        assert (message["content"], reason) == (CALL, "stop")


def test_the_older_functions_are_answered_in_their_own_form(server: Served) -> None:
    functions = [tool["function"] for tool in TOOLS]
    message, reason = message_of(server, f"say:{CALL}", functions=functions)
    assert (
        message["function_call"] == {"name": "weather", "arguments": '{"city": "Köln"}'} and reason == "function_call"
    )
    chunks = streamed(server, f"say:{CALL}", functions=functions)
    deltas = [c["choices"][0]["delta"]["function_call"] for c in chunks if "function_call" in c["choices"][0]["delta"]]
    assert deltas[0]["name"] == "weather" and "".join(d["arguments"] for d in deltas) == '{"city": "Köln"}'


def test_react_models_call_tools_in_their_own_words() -> None:
    text = 'Thought: I need it.\nAction: weather\nAction Input: {"city": "Köln"}\nObservation: made up'
    with served(scripted_model(react=True, max_length=4000)) as server:
        message, reason = message_of(server, f"say:{text}", tools=TOOLS)
        assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Köln"}'}
        assert reason == "tool_calls" and message["content"] == "I need it."
        chunks = streamed(server, f"say:{text}", tools=TOOLS)
        assert calls_in(chunks)[0]["arguments"] == '{"city": "Köln"}'


REFUSED = {
    "a message that is none": ({"messages": ["x"]}, "messages"),
    "no messages": ({"messages": []}, None),
    "no field messages": ({}, "messages"),
    "an unknown role": ({"messages": [{"role": "judge", "content": "x"}]}, None),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
    "text for a number": ({"temperature": "hot"}, "temperature"),
    "too hot": ({"temperature": 1000}, "temperature"),
    "n of 17": ({"n": 17}, "n"),
    "n of 0": ({"n": 0}, "n"),
    "17 stops": ({"stop": ["x"] * 17}, "stop"),
    "an empty stop": ({"stop": ""}, None),
    "no tokens": ({"max_tokens": 0}, None),
    "a bias that is none": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "a bias outside": ({"logit_bias": {"99999999": 1}}, None),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "21 top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "a template": ({"chat_template": "{{ 1 }}"}, "chat_template"),
    "a choice without tools": ({"tool_choice": "required"}, None),
    "a tool that is not there": ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, None),
    "an unknown format": ({"response_format": {"type": "xml"}}, "response_format"),
    "a schema that is none": ({"response_format": {"type": "json_schema"}}, "response_format"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_with_a_sentence(server: Served, name: str) -> None:
    fields, param = REFUSED[name]
    body = {"messages": [{"role": "user", "content": "say:x"}], **fields}
    if name == "no field messages":
        del body["messages"]
    for stream in (False, True):
        response = server.post("/v1/chat/completions", body | {"stream": stream})
        assert response.status_code == 400, (name, response.text)
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
        assert 10 < len(error["message"]) < 600
        assert param is None or error["param"] == param
        assert "Traceback" not in response.text and "0x" not in response.text


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(server: Served) -> None:
    error = server.chat("x" * 3000).json()["error"]
    assert error["code"] == "context_length_exceeded" and "3002" in error["message"] and "2000" in error["message"]
    error = server.chat("say:x", max_tokens=1995).json()["error"]
    assert error["code"] == "context_length_exceeded" and "1995" in error["message"]
    assert server.chat("say:x", max_tokens=1900).status_code == 200


def test_another_model_is_not_here(server: Served) -> None:
    response = server.chat("say:x", model="gpt-4")
    assert response.status_code == 404 and "scripted" in response.json()["error"]["message"]
    assert server.client.get("/v1/models/gpt-4").status_code == 404
    assert server.client.get("/v1/models/scripted").json()["max_model_len"] == 2000


def test_who_goes_away_is_not_answered() -> None:
    """Stream or not: the engine is free again, long before the answer would have been there (two minutes)."""
    with served(scripted_model(delay_s=0.02, max_length=100_000)) as slow:
        scheduler = slow.service.model.engine.scheduler
        for stream in (True, False):
            body = {"messages": [{"role": "user", "content": "say:" + "a" * 5000}], "stream": stream}
            with (
                pytest.raises(httpx2.TimeoutException),
                httpx2.Client(base_url=slow.url, timeout=3.0, trust_env=False) as client,
            ):
                if stream:
                    with client.stream("POST", "/v1/chat/completions", json=body) as response:
                        next(response.iter_bytes())
                        until(lambda: len(scheduler.running) == 1)
                        raise httpx2.ReadTimeout("leaving")
                else:
                    client.post("/v1/chat/completions", json=body)
            until(lambda: not scheduler.running)
            assert scheduler.blocks.live == 0
        until(lambda: "kiloq:request_aborted_total 2.0" in slow.client.get("/metrics").text)


def test_eight_streams_run_together() -> None:
    """8 answers of 40 steps of 10 ms take little more time than one."""
    with served(scripted_model(delay_s=0.01, max_length=2000)) as slow:
        began = time.monotonic()
        slow.chat("say:" + "a" * 40)
        alone = time.monotonic() - began
        with ThreadPoolExecutor(8) as pool:
            began = time.monotonic()
            answers = list(pool.map(lambda i: slow.chat(f"say:{i}" + "a" * 39).json(), range(8)))
        assert [a["choices"][0]["message"]["content"][0] for a in answers] == list("01234567")
        steps = len(slow.service.model.engine.backend.calls)  # type: ignore[attr-defined]
        assert steps < 41 * 4, (
            f"8 answers took {steps} steps and {time.monotonic() - began:.1f} s, one took {alone:.1f} s"
        )
