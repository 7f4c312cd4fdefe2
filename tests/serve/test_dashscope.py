"""DashScope's dialect over a real socket, to the byte: framing, both formats, both kinds of stream, and its errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from serving import Served, scripted_model, served

from kiloq.generate.engine import Limits
from kiloq.serve import dashscope_chat
from kiloq.serve.guard import Rules
from kiloq.serve.stream import compact

GENERATION = "/api/v1/services/aigc/text-generation/generation"
EMBEDDING = "/api/v1/services/embeddings/text-embedding/text-embedding"
SSE = {"X-DashScope-SSE": "enable"}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "clock"}},
]  # fmt: skip
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
FRAME = re.compile(r"id:(\d+)\nevent:(result|error)\n:HTTP_STATUS/(\d+)\n(status:\d+\n)?data:(\{.*\})")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(scripted_model(max_length=2000)) as running:
        yield running


@pytest.fixture(scope="module")
def slow() -> Iterator[Served]:
    """One whose answers come in pieces: without a delay they are there before anybody looks."""
    with served(scripted_model(delay_s=0.004, max_length=2000)) as running:
        yield running


def body_of(asked: Any, **parameters: Any) -> dict[str, Any]:
    """A request; `asked` is a prompt, a list of messages, or the whole input."""
    given = {"prompt": asked} if isinstance(asked, str) else {"messages": asked} if isinstance(asked, list) else asked
    return {"model": "scripted", "input": given, "parameters": parameters}


def ask(server: Served, asked: Any, **parameters: Any) -> dict[str, Any]:
    response = server.post(GENERATION, body_of(asked, **parameters))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert found["request_id"] == response.headers["x-request-id"]
    return found


def stream(server: Served, asked: Any, **parameters: Any) -> list[dict[str, Any]]:
    """The events of a stream, every byte of which is checked."""
    response = server.post(GENERATION, body_of(asked, **parameters), headers=SSE)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.content.decode().split("\n\n")
    assert blocks.pop() == ""
    shapes = []
    for number, block in enumerate(blocks, 1):
        found = FRAME.fullmatch(block)
        assert found is not None and found.group(1, 2, 3, 4) == (str(number), "result", "200", None), block
        shape = json.loads(found[5])
        assert found[5] == compact(shape), "no spaces, nothing escaped that need not be"
        assert list(shape) == ["output", "usage", "request_id"]
        assert shape["request_id"] == response.headers["x-request-id"]
        shapes.append(shape)
    return shapes


def messages_in(shapes: list[dict[str, Any]], index: int | None = None) -> list[dict[str, Any]]:
    choices = [choice for shape in shapes for choice in shape["output"]["choices"]]
    return [choice["message"] for choice in choices if index in (None, choice.get("index"))]


def error_in(response: httpx2.Response, status: int) -> str:
    """The code of a refusal, whose shape is checked."""
    assert response.status_code == status, response.text
    found = response.json()
    assert list(found) == ["code", "message", "request_id"] and found["message"]
    assert found["request_id"] == response.headers["x-request-id"]
    return str(found["code"])


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


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing asked": ({"input": {}}, "messages nor a prompt"),
    "no messages": ({"input": {"messages": []}}, "messages nor a prompt"),
    "messages of a wrong type": ({"input": {"messages": "hi"}}, "input.messages"),
    "a role": ({"input": {"messages": [{"role": "king", "content": "hi"}]}}, "king"),
    "a picture": ({"input": {"messages": [{"role": "user", "content": [{"image": "x"}]}]}}, "text parts"),
    "top_p": ({"parameters": {"top_p": 1.5}}, "parameters.top_p"),
    "a number as text": ({"parameters": {"temperature": "hot"}}, "parameters.temperature"),
    "max_tokens 0": ({"parameters": {"max_tokens": 0}}, "max_new_tokens is 0"),
    "too many": ({"parameters": {"n": 100}}, "parameters.n"),
    "a format": ({"parameters": {"result_format": "xml"}}, "parameters.result_format"),
    "text with tools": ({"parameters": {"result_format": "text", "tools": TOOLS}}, "no place for tools"),
    "text with n": ({"parameters": {"result_format": "text", "n": 2}}, "no place for n"),
    "mixed stops": ({"parameters": {"stop": ["a", 3]}}, "parameters.stop"),
    "a stop that is no token": ({"parameters": {"stop": [[5, 99999]]}}, "99999"),
    "an empty stop": ({"parameters": {"stop": [[]]}}, "stop"),
    "top_logprobs alone": ({"parameters": {"top_logprobs": 2}}, "set logprobs"),
    "a choice without tools": ({"parameters": {"tool_choice": "required"}}, "there are no tools"),
    "an unknown choice": ({"parameters": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}}, "'x'"),
    "a response_format": ({"parameters": {"response_format": {"type": "yaml"}}}, "yaml"),
    "too long": ({"input": {"prompt": "x" * 3000}}, "2000 tokens, and this request asks for 3002"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "stream"])
def test_what_cannot_be_answered_is_refused_in_the_same_shape(
    server: Served, name: str, headers: dict[str, str]
) -> None:
    fields, words = BAD[name]
    response = server.post(GENERATION, body_of("say:hi") | fields, headers=headers)
    assert error_in(response, 400) == "InvalidParameter"
    assert words in response.json()["message"], response.json()["message"]


def test_each_kind_of_refusal_has_the_code_of_the_service(server: Served) -> None:
    body = body_of("say:hi")
    assert error_in(server.post(GENERATION, body | {"model": "qwen-max"}), 404) == "ModelNotFound"
    assert error_in(server.post(GENERATION, {"input": body["input"]}), 400) == "BadRequest.EmptyModel"
    assert error_in(server.post(GENERATION, {"model": "scripted"}), 400) == "BadRequest.EmptyInput"
    assert error_in(server.client.post(GENERATION, content=b"{", headers={"content-type": "application/json"}), 400) == "InvalidParameter"  # fmt: skip
    assert error_in(server.post(GENERATION, [1]), 400) == "InvalidParameter"
    assert error_in(server.client.get("/api/v1/tasks/1"), 404) == "InvalidURL"
    assert error_in(server.client.get("/api/v1"), 404) == "InvalidURL"
    assert error_in(server.client.get(GENERATION), 405) == "InvalidURL"
    assert error_in(server.client.get("/api/v1/models", params={"page_size": 0}), 400) == "InvalidParameter"
    assert error_in(server.post(GENERATION, body, headers={"Host": "elsewhere"}), 403) == "AccessDenied"
    assert error_in(server.post(GENERATION, body_of("x" * (5 << 20))), 413) == "BadRequest.TooLarge"


def test_tasks_and_encryption_are_refused_before_the_body_is_read(server: Served) -> None:
    for path in (GENERATION, EMBEDDING, "/api/v1/tokenizer"):
        for headers in ({"X-DashScope-Async": "enable"}, {"X-DashScope-EncryptionKey": "{}"}):
            body = {"model": "scripted", "input": "Zm9v"}
            assert error_in(server.post(path, body, headers=headers), 400) == "UnsupportedOperation"
    tolerated = {"X-DashScope-Plugin": "x", "X-DashScope-WorkSpace": "w", "X-DashScope-DataInspection": "enable"}
    assert server.post(GENERATION, body_of("say:hi"), headers=tolerated).status_code == 200


def test_the_other_dialect_keeps_its_own_shape(server: Served) -> None:
    for path in ("/api", "/api/v10/models", "/v1/nothing"):
        response = server.client.get(path)
        assert response.status_code == 404 and list(response.json()) == ["error"]
    assert list(server.post("/v1/chat/completions", {"messages": 1}).json()) == ["error"]


def test_a_key_is_asked_for_in_the_words_of_the_service() -> None:
    with served(scripted_model(), Rules(Rules.hashed(["secret-key"]))) as locked:
        response = locked.post(GENERATION, body_of("say:hi"))
        assert error_in(response, 401) == "InvalidApiKey" and response.headers["www-authenticate"] == "Bearer"
        assert error_in(locked.client.get("/api/v1/no/such/path"), 401) == "InvalidApiKey"
        header = {"Authorization": "Bearer secret-key"}
        assert locked.post(GENERATION, body_of("say:hi"), headers=header).status_code == 200


def test_while_it_loads_it_says_so_and_still_names_its_model() -> None:
    with served() as loading:
        response = loading.post(GENERATION, body_of("say:hi"))
        assert error_in(response, 503) == "ModelUnavailable" and response.headers["retry-after"] == "2"
        assert loading.client.get("/api/v1/models").json()["output"]["models"][0]["model"] == "scripted"


def test_a_full_queue_is_throttling() -> None:
    limits = Limits(most_running=1, most_waiting=1)
    body = body_of(f"say:{'x' * 100}", n=2)  # of which one answer runs and one waits
    with served(scripted_model(delay_s=0.02, limits=limits)) as busy:
        with busy.client.stream("POST", GENERATION, json=body, headers=SSE) as running:
            next(running.iter_raw())
            response = busy.post(GENERATION, body_of("say:c"))
        assert error_in(response, 429) == "Throttling" and response.headers["retry-after"]


def test_a_stream_that_goes_wrong_ends_with_an_event_that_the_sdk_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted_model(delay_s=0.01)
    step = model.engine.backend.step

    def failing(rows: Any) -> Any:
        if len(rows[0].sequence) > 20:
            raise RuntimeError("secrets of the machine")
        return step(rows)

    with served(model) as server:
        monkeypatch.setattr(model.engine.backend, "step", failing)
        response = server.post(GENERATION, body_of("say:abcdefghijklmnopqrstuvwxyz"[:14]), headers=SSE)
        assert response.status_code == 200
        *_, last, rest = response.content.decode().split("\n\n")
        found = FRAME.fullmatch(last)
        assert rest == "" and found is not None and found.group(2, 3, 4) == ("error", "500", "status:500\n")
        shape = json.loads(found[5])
        assert list(shape) == ["code", "message", "request_id"] and shape["code"] == "InternalError.Algo"
        assert "secrets" not in response.text
        monkeypatch.undo()
        assert ask(server, "say:fine")["output"]["text"] == "fine", "nobody else is harmed"


def test_an_answer_that_takes_too_long_is_ended() -> None:
    with served(scripted_model(delay_s=0.02), request_s=0.2) as server:
        assert error_in(server.post(GENERATION, body_of(f"say:{'x' * 200}")), 504) == "RequestTimeOut"
        response = server.post(GENERATION, body_of(f"say:{'x' * 200}"), headers=SSE)
        assert "\nevent:error\n:HTTP_STATUS/504\nstatus:504\ndata:{" in response.text.split("\n\n")[-2]


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope_chat, "PING_S", 0.05)
    with served(scripted_model(delay_s=0.3)) as server:
        response = server.post(GENERATION, body_of("say:ab"), headers=SSE)
        blocks = response.text.split("\n\n")
        assert ": ping" in blocks and blocks[-2].startswith("id:") and '"text":"ab"' in blocks[-2]
        numbers = [int(block[3 : block.index("\n")]) for block in blocks if block.startswith("id:")]
        assert numbers == list(range(1, len(numbers) + 1)), "comments have no numbers"


def test_who_goes_away_frees_the_engine() -> None:
    model = scripted_model(delay_s=0.01)
    with served(model) as server:
        with server.client.stream("POST", GENERATION, json=body_of(f"say:{'x' * 900}"), headers=SSE) as response:
            next(response.iter_raw())
        deadline = time.monotonic() + 5
        while model.engine.scheduler.live() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not model.engine.scheduler.live()


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


def test_a_model_of_texts_makes_no_embeddings(server: Served) -> None:
    response = server.post(EMBEDDING, {"model": "scripted", "input": {"texts": ["a"]}, "parameters": {}})
    assert error_in(response, 400) == "Model.AccessDenied" and "makes no embeddings" in response.json()["message"]
    assert error_in(server.post(EMBEDDING, {"model": "scripted", "input": {"texts": "a"}}), 400) == "InvalidParameter"
