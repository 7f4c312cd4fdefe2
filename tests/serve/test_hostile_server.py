"""A server among strangers: broken HTTP, endless heads, slow and idle connections, work that would hold others up, storms
of clients that leave, ids that look like log lines, and its end. Whatever is sent, the next request is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from serving import Served, scripted_model, served

from kiloq.core.errors import UsageError
from kiloq.serve import connection, guard
from kiloq.serve.app import create_app
from kiloq.serve.guard import Rules
from kiloq.serve.logs import Lines, Words
from kiloq.serve.service import Service

CHAT = "/v1/chat/completions"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(scripted_model(max_length=5000)) as running:
        yield running
        assert running.chat("say:alive").json()["choices"][0]["message"]["content"] == "alive"


def dial(server: Served) -> socket.socket:
    address = urlsplit(server.url)
    made = socket.create_connection((address.hostname, address.port))
    made.settimeout(10)
    return made


def talk(server: Served, data: bytes) -> bytes:
    """What comes back for some bytes, until the server closes or has sent one whole answer."""
    with dial(server) as line:
        line.sendall(data)
        got = b""
        while True:
            head, _, body = got.partition(b"\r\n\r\n")
            length = [int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")]
            if (length and len(body) >= length[0]) or not (new := line.recv(65536)):
                return got
            got += new


def post(body: bytes, path: str = CHAT, extra: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\n%s%s%sContent-Length: %d\r\n\r\n%s" % (
        path.encode(),
        HOST,
        JSON,
        extra,
        len(body),
        body,
    )


def until(what: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


NO_HTTP = {
    "noise": bytes(random.Random(1).randbytes(3000)),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown method": b"FROB / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the path": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path that is no ASCII": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "two lengths": b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length and chunks": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length below 0": b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "a length of 5,000 digits": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "no chunk size": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an endless chunk size": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
    "a header on two lines": b"GET /health HTTP/1.1\r\n" + HOST + b"x-request-id: a\r\n b\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_is_refused_in_the_form_of_all_errors(server: Served, name: str) -> None:
    head, _, body = talk(server, NO_HTTP[name]).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4") and set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("head", "more"),
    [(b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: ", b"a" * 8192),
     (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n" * 1000),
     (b"GET /", b"a" * 8192),
     (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"a: b\r\n" * 1000)],
    ids=["one header", "many headers", "a path", "behind the body"],
)  # fmt: skip
def test_heads_that_do_not_end_are_cut(server: Served, head: bytes, more: bytes) -> None:
    """200 MB of one header once took all of a server for 44 s: httptools adds piece to piece."""
    with dial(server) as line, pytest.raises(OSError):
        line.sendall(head)
        for _ in range(4000):  # 32 MB, of which sockets hold some
            line.sendall(more)


def test_heads_that_come_in_one_piece_have_the_same_limit(server: Served) -> None:
    for headers in ({"x": "a" * 70_000}, {f"x-{i}": "a" * 900 for i in range(90)}):
        assert server.client.get("/health", headers=headers).status_code == 431
    assert b"HTTP/1.1 4" in talk(server, b"GET /health?" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert server.client.get("/health", headers={"cookie": "a" * 30_000}).status_code == 200


def test_headers_behind_a_body_are_let_fall(server: Served) -> None:
    body = b'e\r\n{"prompt":"a"}\r\n0\r\nHost: evil.example\r\nx-request-id: behind\r\n\r\n'
    answer = talk(server, b"POST /tokenize HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert b" 200 OK" in answer and b"behind" not in answer


def test_who_is_silent_or_slow_is_not_waited_for(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    monkeypatch.setattr(guard, "BODY_S", 0.3)
    assert talk(server, b"") == b""
    assert talk(server, b"\r\n") == b""
    assert b"HTTP/1.1 408" in talk(server, b"GET /health HTTP/1.1\r\nHost: lo")
    late = talk(server, b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n{")
    assert b"HTTP/1.1 408" in late and b"within 0.3 s" in late
    with dial(server) as line:  # refused at once, and then the rest of its body does not come
        line.sendall(b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999\r\n\r\n")
        assert b"HTTP/1.1 413" in line.recv(65536)
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 5:
                line.sendall(b"x")
                time.sleep(0.02)
    monkeypatch.undo()
    assert server.chat("say:x").status_code == 200


def test_three_requests_in_one_piece_are_answered_in_order(server: Served) -> None:
    with dial(server) as line:
        line.sendall(b"".join(post(b'{"prompt":"%d"}' % i, "/tokenize") for i in range(3)))
        got = b""
        while got.count(b"max_model_len") < 3:
            got += line.recv(65536)
    assert [got.index(b'"tokens":[%d]' % (48 + i)) for i in range(3)] == sorted(got.index(b'"tokens":[%d]' % (48 + i)) for i in range(3))  # fmt: skip


def test_a_long_text_holds_nobody_up(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """120,000 messages take 3 s to tokenize; here it takes until the others are answered."""
    tokenizer, going = server.service.model.tokenizer, threading.Event()
    whole = tokenizer.chat

    def slowly(messages: Any, **options: Any) -> list[int]:
        assert "slow" not in messages[0]["content"] or going.wait(20)
        return whole(messages, **options)

    monkeypatch.setattr(tokenizer, "chat", slowly)
    with ThreadPoolExecutor(3) as pool:
        body = {"messages": [{"role": "user", "content": "slow say:x"}]}
        slow = [pool.submit(httpx2.post, server.url + path, json=body, trust_env=False) for path in (CHAT, "/tokenize")]
        time.sleep(0.2)
        assert server.chat("say:quick").json()["choices"][0]["message"]["content"] == "quick"
        assert server.client.get("/health").status_code == 200 and not any(each.done() for each in slow)
        going.set()
        assert [each.result().status_code for each in slow] == [200, 200]


def test_hard_forms_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    going = threading.Event()

    class Compiler:
        def compile(self, spec: Any) -> None:
            assert spec.kind == "json_object" or going.wait(20)
            raise UsageError("no form today")

    with served(scripted_model()) as server, ThreadPoolExecutor(20) as pool:
        monkeypatch.setattr(server.service, "compiler", Compiler)
        body = {"messages": [{"role": "user", "content": "say:x"}], "response_format": {"type": "regex", "regex": "a"}}
        hard = [pool.submit(httpx2.post, server.url + CHAT, json=body, timeout=60, trust_env=False) for _ in range(20)]
        time.sleep(0.3)
        assert server.chat("say:x").status_code == 200
        response = server.chat("say:x", response_format={"type": "json_object"})
        assert response.json()["error"]["message"] == "no form today" and not any(each.done() for each in hard)
        going.set()
        assert {each.result().status_code for each in hard} == {400}


def test_embeddings_of_who_has_left_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, together = scripted_model(), [], []

    def slowly(ids: list[int]) -> Any:
        together.append(1)
        assert len(together) == 1  # one at a time, so that many askers do not take all threads
        time.sleep(0.05)
        together.pop()
        made.append(ids)
        if ids == [113]:
            raise UsageError("none")
        return np.zeros(8, np.float32)

    monkeypatch.setattr(model, "embedding", slowly)
    with served(model) as server:
        for _ in range(4):
            with pytest.raises(httpx2.TimeoutException):
                httpx2.post(server.url + "/v1/embeddings", json={"input": ["x"] * 256}, timeout=0.2, trust_env=False)
        time.sleep(0.3)
        count = len(made)
        time.sleep(0.3)
        assert len(made) == count < 40
        assert server.post("/v1/embeddings", {"input": "q"}).json()["error"]["message"] == "none"


def test_a_storm_of_clients_that_leave() -> None:
    """With and without a word, in the middle of a body, of an answer, with a reset."""
    with served(scripted_model(delay_s=0.002, max_length=100_000)) as server:
        model = server.service.model
        body = json.dumps({"messages": [{"role": "user", "content": "say:" + "a" * 3000}], "stream": True}).encode()
        sent = post(body)

        def leave(number: int) -> None:
            with dial(server) as line:
                line.sendall(sent if number % 5 else sent[: len(sent) - number])
                if number % 3 == 0 and number % 5:
                    line.recv(10)
                if number % 2:
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leave, range(120)))
        scheduler = model.engine.scheduler
        until(lambda: not scheduler.live())
        assert scheduler.blocks.live == 0
        scheduler.blocks.check()
        until(lambda: server.chat("say:calm").json()["choices"][0]["message"]["content"] == "calm")


def test_hundreds_of_idle_connections_take_nothing_from_others(server: Served) -> None:
    lines = [dial(server) for _ in range(300)]
    try:
        assert server.chat("say:x").status_code == 200
    finally:
        for line in lines:
            line.close()


def test_strangers_write_no_log_lines(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    ids = ("a status=200 route=/admin", 'a"b', "a\tb", "a;b=c")
    with caplog.at_level(logging.INFO, "kiloq.serve"):
        told = [
            server.client.get("/x%0akiloq:%20request", headers={"x-request-id": each}).headers["x-request-id"]
            for each in ids
        ]
        server.chat("say:x", model="m\nkiloq: request id=0")
    assert told[3] == ids[3] and not set(told[:3]) & set(ids)
    records = [record for record in caplog.records if hasattr(record, "fields")]
    assert len(records) == 5
    for record in records:
        line = Words().format(record)
        assert "\n" not in line and line.count("status=") == 1 and "admin" not in line
        assert json.loads(Lines().format(record))["event"] == "request"


def test_names_of_this_machine_in_any_case_and_no_websockets(server: Served) -> None:
    for host, status in (("LOCALHOST:1", 200), ("localhost:", 200), ("evil@localhost", 403), ("127.1", 403), ("localhost.evil", 403)):  # fmt: skip
        assert server.client.get("/v1/models", headers={"host": host}).status_code == status, host
    upgrade = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAA",
    }
    assert server.client.get("/v1/models", headers=upgrade).status_code == 200  # another protocol is not taken up
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(create_app(Service(("m",)), Rules())({"type": "websocket"}, None, send))  # type: ignore[arg-type]
    assert sent == ["websocket.close"]


@pytest.mark.parametrize("how", ["drained", "forced"])
def test_answers_that_are_given_up_are_told(how: str, caplog: pytest.LogCaptureFixture) -> None:
    body = {"messages": [{"role": "user", "content": "say:" + "a" * 3000}]}
    with served(scripted_model(delay_s=0.01, max_length=100_000)) as server, ThreadPoolExecutor(3) as pool:
        server.server.config.timeout_graceful_shutdown = 0 if how == "drained" else 30
        url = server.url + CHAT
        whole = pool.submit(httpx2.post, url, json=body, timeout=30, trust_env=False)
        stream = pool.submit(httpx2.post, url, json=body | {"stream": True}, timeout=30, trust_env=False)
        until(lambda: len(server.service.model.engine.scheduler.running) == 2)
        server.server.handle_exit(15, None)
        if how == "forced":
            time.sleep(0.1)
            server.server.handle_exit(15, None)
        assert whole.result().status_code == 503 and whole.result().json()["error"]["code"] == "unavailable"
        last = stream.result().text.strip().rpartition("data: ")[2]
        assert "shutting down" in json.loads(last)["error"]["message"]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("seconds", [0.0, -5.0, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="--timeout above 0"):
        create_app(Service(("m",)), request_s=seconds)
