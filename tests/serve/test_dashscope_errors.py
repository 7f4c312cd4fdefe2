"""What DashScope's dialect refuses, and how streams end that go wrong: always in the words that its SDK knows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from dashscope_wire import EMBEDDING, FRAME, GENERATION, SSE, ask, body_of, error_in
from serving import Served, scripted_model, served

from kiloq.generate.engine import Limits
from kiloq.serve import dashscope_chat
from kiloq.serve.guard import Rules

TOOLS = [{"type": "function", "function": {"name": "clock"}}]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(scripted_model(max_length=2000)) as running:
        yield running


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing asked": ({"input": {}}, "messages nor a prompt"),
    "no messages": ({"input": {"messages": []}}, "messages nor a prompt"),
    "messages of a wrong type": ({"input": {"messages": "hi"}}, "input.messages"),
    "a role": ({"input": {"messages": [{"role": "king", "content": "hi"}]}}, "king"),
    "a picture": ({"input": {"messages": [{"role": "user", "content": [{"image": "x"}]}]}}, "text parts"),
    "a question begun": ({"input": {"messages": [{"role": "user", "content": "a", "partial": True}]}}, "partial is true"),
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
