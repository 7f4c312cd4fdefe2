"""What people complained about elsewhere, as far as it is the server's: each a named test of what holds here, with the
threads that it comes from. The numbers are those of one list; the others, about models, programs and the page, are in
`test_complaints_models.py`.
"""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Served, scripted_model, served
from support import default_model

import kiloq
from kiloq.serve.command import serve_command
from kiloq.serve.guard import Rules

CHAT = "/v1/chat/completions"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(scripted_model(max_length=4000)) as running:
        yield running


@pytest.fixture(scope="module")
def trained() -> Iterator[Served]:
    with served(kiloq.load(default_model())) as running:
        yield running


def streamed(server: Served, content: Any, **fields: Any) -> list[dict[str, Any]]:
    events = server.events(CHAT, {"messages": [{"role": "user", "content": content}], **fields})
    assert events[-1] == "[DONE]" and events.count("[DONE]") == 1
    return [json.loads(event) for event in events[:-1]]


def calls_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls that a stream's deltas add up to: an id and a name in the first delta of each, indexes in order."""
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for delta in chunk["choices"][0]["delta"].get("tool_calls", []):
            if delta["index"] == len(calls):
                assert delta["id"].startswith("call_") and delta["type"] == "function"
                calls.append({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""})
            else:
                assert delta["index"] == len(calls) - 1 and "id" not in delta and "name" not in delta["function"]
            calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    return calls


def called(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def test_01_eight_streams_share_their_steps() -> None:
    """QwenLM/Qwen#1103, #183: the official server answers one after the other."""
    with served(scripted_model(delay_s=0.01)) as slow:
        calls = slow.service.model.engine.backend.calls  # type: ignore[attr-defined]
        streamed(slow, "say:" + "a" * 40)
        alone = len(calls)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: streamed(slow, f"say:{number}" + "a" * 39), range(8)))
        assert [a[1]["choices"][0]["delta"]["content"][0] for a in answers] == list("01234567")
        assert len(calls) - alone < 4 * alone, f"eight took {len(calls) - alone} steps, one {alone}"


@pytest.mark.parametrize("react", [False, True])
def test_02_functions_can_be_streamed(react: bool) -> None:
    """QwenLM/Qwen#1057: functions and a stream together are a 400. (clients/openai_client.py asks by its SDK.)"""
    text = (
        'Thought: so\nAction: weather\nAction Input: {"city": "北京"}' if react else called("weather", {"city": "北京"})
    )
    with served(scripted_model(react=react)) as server:
        (call,) = calls_of(streamed(server, f"say:{text}", tools=TOOLS))
        assert call["name"] == "weather" and json.loads(call["arguments"]) == {"city": "北京"}
        chunks = streamed(server, f"say:{text}", functions=[tool["function"] for tool in TOOLS])
        parts = [c["choices"][0]["delta"].get("function_call", {}) for c in chunks]
        assert "".join(part.get("arguments", "") for part in parts) == '{"city": "北京"}'
        assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


@pytest.mark.parametrize("stream", [False, True])
def test_09_who_closes_the_socket_frees_the_engine(stream: bool) -> None:
    """vllm-project/vllm#54947, #9428, #10806; open-webui/open-webui#1567, #16251; huggingface/chat-ui#890."""
    with served(scripted_model(delay_s=0.05, max_length=100_000)) as slow:
        engine = slow.service.model.engine
        body = json.dumps({"messages": [{"role": "user", "content": "say:" + "a" * 9000}], "stream": stream})
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", int(slow.url.rpartition(":")[2]))) as line:
            line.sendall(f"{head}\r\n{body}".encode())
            while not engine.scheduler.running or not engine.scheduler.running[0].ids:
                time.sleep(0.01)
        steps = len(engine.backend.calls)  # type: ignore[attr-defined]
        time.sleep(0.4)  # eight steps, were it still running
        assert not engine.scheduler.live() and engine.scheduler.blocks.live == 0
        assert len(engine.backend.calls) - steps <= 2  # type: ignore[attr-defined] # the one under way, and one for the news
        assert "kiloq:request_aborted_total 1.0" in slow.client.get("/metrics").text


def test_10_usage_is_in_one_last_chunk_and_only_when_asked_for(server: Served) -> None:
    """vllm-project/vllm#7262, #36379; BerriAI/litellm#25410."""
    for fields in ({}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
        assert all("usage" not in chunk for chunk in streamed(server, "say:abc", **fields))
    *chunks, last = streamed(server, "say:abc", stream_options={"include_usage": True})
    assert last["choices"] == [] and all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["usage"] == server.chat("say:abc").json()["usage"] | {"prompt_tokens_details": last["usage"]["prompt_tokens_details"]}  # fmt: skip
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_11_logprobs_have_every_field_of_the_api(trained: Served) -> None:
    """vllm-project/vllm#4795; ollama/ollama#2415, #16117. `logprobs: true` alone is legal; bytes are the token's own."""
    for top in (None, 0, 3):
        fields = {"logprobs": True} | ({} if top is None else {"top_logprobs": top})
        answer = trained.chat("Say 你好 😀", max_tokens=8, temperature=0, repetition_penalty=1.0, **fields).json()
        content = answer["choices"][0]["logprobs"]["content"]
        assert (
            len(content) == answer["usage"]["completion_tokens"] and answer["choices"][0]["logprobs"]["refusal"] is None
        )
        for entry in content:
            assert set(entry) >= {"token", "logprob", "bytes", "top_logprobs"} and entry["logprob"] <= 0
            assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
            assert len(entry["top_logprobs"]) == (top or 0)
            values = [other["logprob"] for other in entry["top_logprobs"]]
            assert values == sorted(values, reverse=True) and all(set(o) >= {"token", "logprob", "bytes"} for o in entry["top_logprobs"])  # fmt: skip
            assert not top or values[0] == entry["logprob"]  # greedy takes the likeliest


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab é\"\\", max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.dictionaries(st.text("city北", min_size=1, max_size=5), values, max_size=3))
def test_12_streamed_arguments_add_up_to_those_at_once(server: Served, arguments: dict[str, Any]) -> None:
    """vllm-project/vllm#10395, #21544, #19056."""
    text = f"say:{called('weather', arguments)}"
    (whole,) = server.chat(text, tools=TOOLS).json()["choices"][0]["message"]["tool_calls"]
    (call,) = calls_of(streamed(server, text, tools=TOOLS))
    assert call["arguments"] == whole["function"]["arguments"] and json.loads(call["arguments"]) == arguments


def test_13_parallel_calls_have_ids_and_indexes_of_their_own(server: Served) -> None:
    """sgl-project/sglang#7048, #6310, #5661; ollama/ollama#15457."""
    cities = ("Köln", "北京", "Bonn")
    chunks = streamed(server, "say:" + "\n".join(called("weather", {"city": c}) for c in cities), tools=TOOLS)
    calls = calls_of(chunks)
    assert [json.loads(call["arguments"])["city"] for call in calls] == list(cities)
    assert len({call["id"] for call in calls}) == 3


def test_14_the_reason_says_calls_exactly_when_there_are_some(server: Served, trained: Served) -> None:
    """vllm-project/vllm#53255, #53363, #25054; sgl-project/sglang#2877. Also for one that was asked for by name, where
    OpenAI says `stop`; and a call that is required is made, at any temperature."""
    for text in (
        called("weather", {"city": "x"}),
        "no call",
        called("unknown", {}),
        "<tool_call>\nbroken\n</tool_call>",
    ):
        (choice,) = server.chat(f"say:{text}", tools=TOOLS).json()["choices"]
        assert (choice["finish_reason"] == "tool_calls") == bool(choice["message"].get("tool_calls"))
        chunks = streamed(server, f"say:{text}", tools=TOOLS)
        assert (chunks[-1]["choices"][0]["finish_reason"] == "tool_calls") == bool(calls_of(chunks))
    for choose in ("required", {"type": "function", "function": {"name": "weather"}}):
        found = trained.chat(
            "Hello!", tools=TOOLS[:1], tool_choice=choose, temperature=1.2, seed=3, max_tokens=150
        ).json()
        (call,) = found["choices"][0]["message"]["tool_calls"]
        assert found["choices"][0]["finish_reason"] == "tool_calls"
        assert isinstance(json.loads(call["function"]["arguments"])["city"], str)


def test_15_a_bad_schema_is_refused_and_its_neighbours_go_on(trained: Served) -> None:
    """sgl-project/sglang#4574; vllm-project/vllm#47312; ggml-org/llama.cpp#19051."""
    schemas: list[Any] = [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"$ref": "http://example.com"}, {"enum": []}, []]
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(trained.chat, "Count to fifty.", max_tokens=80, temperature=0, ignore_eos=True)
        for schema in schemas:
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            response = trained.chat("Hi", response_format=form, max_tokens=5)
            assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error", schema
        assert neighbour.result().json()["usage"]["completion_tokens"] == 80
    assert trained.chat("Hi", max_tokens=2).status_code == 200


def test_16_unknown_fields_are_let_pass(server: Served) -> None:
    """vllm-project/vllm#10463, #12864; run-llama/llama_index#19121."""
    message = {"role": "user", "content": "say:yes", "name": "ann", "extra": {"a": 1}}
    tool = {**TOOLS[0], "strict": True, "function": {**TOOLS[0]["function"], "strict": True, "x-y": []}}
    body = {"messages": [message], "tools": [tool], "user": "u", "store": True, "service_tier": "auto", "verbosity": "low",
            "metadata": {"a": "b"}, "reasoning_effort": "low", "prediction": None, "web_search_options": {}}  # fmt: skip
    answer = server.post(CHAT, body)
    assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == "yes"
    assert re.fullmatch(r"chatcmpl-\w+", answer.json()["id"])


def test_17_texts_and_parts_of_texts_are_the_same(server: Served, trained: Served) -> None:
    """huggingface/smolagents#583, #908, #944: refused, or only the first part is read. In every role, and continued."""

    def counted(wrap: Any) -> Any:
        messages = [
            {"role": "system", "content": wrap("Be brief.")},
            {"role": "user", "content": wrap("Hello")},
            {"role": "assistant", "content": wrap("Hello, I am")},
        ]
        answer = trained.post(
            CHAT, {"messages": messages, "continue_final_message": True, "max_tokens": 5, "temperature": 0}
        )
        ids = trained.post("/tokenize", {"messages": messages}).json()["tokens"]
        return ids, answer.json()["choices"][0]["message"]["content"]

    def parts(text: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text[:4]}, {"type": "text", "text": text[4:]}]

    assert counted(str) == counted(parts)
    assert server.chat(parts("say:both")).json()["choices"][0]["message"]["content"] == "both"


def test_18_every_path_wants_the_key_and_nobody_else_can_call() -> None:
    """vllm-project/vllm#18892, #58144, #23052; ggml-org/llama.cpp#25606."""
    with served(scripted_model(), Rules(Rules.hashed(["a-long-enough-key"]))) as locked:
        paths = [
            *locked.client.get("/openapi.json", headers={"authorization": "Bearer a-long-enough-key"}).json()["paths"]
        ]
        assert len(paths) > 12
        for path in (
            *paths,
            "/openapi.json",
            "/",
            "/ui/style.css",
            "/v1",
            "/nothing",
            "/v1//models",
            "/health/../metrics",
        ):
            for method in ("GET", "POST"):
                status = locked.client.request(method, path).status_code
                assert status == 401 or (path in ("/health", "/v1/health", "/ping") and status in (200, 405)), path
    options = {option.name: option for option in serve_command.params}
    assert options["host"].default == "127.0.0.1" and not Rules().origins
    with served(scripted_model()) as here:
        assert here.client.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
        assert here.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403


def test_19_prompts_that_do_not_fit_are_refused_with_both_numbers(server: Served, trained: Served) -> None:
    """ollama/ollama#17427, #9545: the beginning is cut off, and nobody is told."""
    for running, limit in ((server, 4000), (trained, 8192)):
        length = running.post("/tokenize", {"messages": [{"role": "user", "content": "many words " * 9000}]}).json()[
            "count"
        ]
        response = running.chat("many words " * 9000)
        error = response.json()["error"]
        assert response.status_code == 400 and error["code"] == "context_length_exceeded"
        assert str(length) in error["message"] and str(limit) in error["message"]


def test_20_no_streamed_text_has_a_replacement_character(server: Served, trained: Served) -> None:
    """vllm-project/vllm#8627, #48853; exo-explore/exo#1691. Tokens of one byte cut every character at every place; then
    the default model's whole vocabulary, in any order: what comes piece by piece is what comes at once."""
    text = "千问 😀👩‍👩‍👧 é ก็ " + "".join(chr(point) for point in range(0x4E00, 0x9FFF, 97))
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in streamed(server, f"say:{text}")]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    tokenizer = trained.service.model.tokenizer
    ids = [token for token in range(trained.service.model.config.vocab_size) if not tokenizer.is_special(token)]
    random.Random(0).shuffle(ids)
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)
    stream, whole = tokenizer.stream(), tokenizer.encode(text)
    assert "\ufffd" not in "".join([*map(stream.push, whole), stream.flush()])


def test_21_greedy_answers_are_the_same_under_load(trained: Served) -> None:
    """vllm-project/vllm#23138, #5898; hiyouga/LlamaFactory#7807. To the last bit of every log-probability."""

    def ask(number: int) -> Any:
        if number % 4:  # its mates
            return trained.chat(
                f"Tell me about the number {number}.", max_tokens=10 + number, temperature=1, seed=number
            )
        fields = {"max_tokens": 24, "temperature": 0, "logprobs": True, "top_logprobs": 2}
        return trained.chat("Why is the sky blue?", **fields).json()["choices"]

    alone = ask(0)
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(ask, range(9)))
    assert answers[0] == answers[4] == answers[8] == alone


def test_27_log_likelihoods_can_be_asked_for(trained: Served) -> None:
    """EleutherAI/lm-evaluation-harness#1437, #3275, #2402. Token arrays and texts, and the tokenizer is the server's.
    (clients/lm_eval_client.py runs the program itself.)"""
    info = trained.client.get("/tokenizer_info").json()
    assert {"eos_token", "bos_token", "pad_token", "chat_template"} <= set(info)
    text = "The capital of France is Paris."
    ids = trained.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]
    fields = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    first, second = (trained.post("/v1/completions", {"prompt": p, **fields}).json()["choices"] for p in ([ids], text))
    logprobs = first[0]["logprobs"]
    assert logprobs == second[0]["logprobs"] and len(logprobs["token_logprobs"]) == len(ids) + 1
    assert logprobs["token_logprobs"][0] is None and all(value <= 0 for value in logprobs["token_logprobs"][1:])
    logits = trained.service.model.logits(ids).astype(np.float64)
    want = logits[:-1] - np.log(np.exp(logits[:-1]).sum(-1, keepdims=True))
    told = logprobs["token_logprobs"][1 : len(ids)]
    assert told == pytest.approx([want[at, token] for at, token in enumerate(ids[1:])], abs=1e-4)
    best = [max(each.values()) for each in logprobs["top_logprobs"][1 : len(ids)]]
    assert best == pytest.approx(want.max(-1).tolist(), abs=1e-4)  # "is greedy" is this comparison


def test_30_the_models_are_named_at_once_and_nobody_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """open-webui/open-webui#1111, #12452: pages hang while a back end loads or waits for some other host."""
    asked: list[Any] = []
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host) or look_up(host, *rest, **more)
    )
    with served(None) as loading:
        began = time.monotonic()
        assert [each["id"] for each in loading.client.get("/v1/models").json()["data"]] == ["scripted"]
        assert time.monotonic() - began < 1
        assert (loading.client.get("/health").status_code, loading.chat("x").status_code) == (503, 503)
        loading.service.begin(scripted_model())
        assert loading.chat("say:x").json()["choices"][0]["message"]["content"] == "x"
        for path in ("/", "/metrics", "/openapi.json", "/version", "/v1/models"):
            assert loading.client.get(path).status_code == 200
    assert set(asked) <= {"127.0.0.1"}


def test_31_prompts_that_begin_alike_share_their_beginning() -> None:
    """ggml-org/llama.cpp#10993, #27616: lost between prompts, or not shared while the first is still being answered."""
    with served(scripted_model(delay_s=0.005, max_length=20_000)) as server, ThreadPoolExecutor(1) as pool:
        system = {"role": "system", "content": "rules " * 100}

        def ask(said: str) -> Any:
            return server.post(CHAT, {"messages": [system, {"role": "user", "content": f"say:{said}"}]}).json()["usage"]

        long = pool.submit(ask, "b" * 300)
        scheduler = server.service.model.engine.scheduler
        while not scheduler.running or not scheduler.running[0].ids:
            time.sleep(0.005)
        assert ask("a")["prompt_tokens_details"]["cached_tokens"] >= 590 and not long.done()
        assert long.result()["prompt_tokens_details"]["cached_tokens"] == 0
        assert ask("c")["prompt_tokens_details"]["cached_tokens"] >= 590
        hits = re.search(r"^kiloq:prefix_cache_hits_total (\S+)$", server.client.get("/metrics").text, re.MULTILINE)
        assert hits is not None and float(hits[1]) >= 2 * 590
