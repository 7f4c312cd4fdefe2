"""Who may ask what, and how much: keys, hosts, origins, sizes, ids, and nothing of it in logs."""

from __future__ import annotations

import base64
import logging
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import FastAPI
from serving import Served, scripted_model, served

from kiloq.generate.engine import Limits
from kiloq.serve.guard import MAX_HEADERS, OPEN_PATHS, Rules

KEY = "a-secret-key-of-the-test"


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with served(
        scripted_model(), Rules(Rules.hashed([KEY, "another-key"]), frozenset({"http://app.example"}))
    ) as running:
        yield running


@pytest.fixture(scope="module")
def open_here() -> Iterator[Served]:
    with served(scripted_model(), Rules(max_body_bytes=5000)) as running:
        yield running


def test_every_path_but_health_wants_a_key(locked: Served) -> None:
    app = locked.app._app
    assert isinstance(app, FastAPI)
    paths = {(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ()}
    assert len(paths) > 10
    for method, path in [*paths, ("GET", "/nothing"), ("POST", "/v1/../metrics"), ("GET", "//health"), ("PUT", "/")]:
        for header in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer"},
            {"authorization": f"bearer {KEY}x"},
        ):
            response = locked.client.request(method, path.replace("{name:path}", "scripted"), headers=header)
            assert (response.status_code == 401) == (path not in OPEN_PATHS), (method, path, response.status_code)
    for path in OPEN_PATHS:
        assert locked.client.get(path).status_code == 200


@pytest.mark.parametrize(
    "header", [f"Bearer {KEY}", "bearer another-key", "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()]
)
def test_any_of_the_keys_opens(locked: Served, header: str) -> None:
    assert locked.client.get("/v1/models", headers={"authorization": header}).status_code == 200


def test_a_browser_is_asked_for_the_key_by_itself(locked: Served) -> None:
    assert locked.client.get("/").headers["www-authenticate"].startswith("Basic")
    assert locked.client.get("/v1/models").headers["www-authenticate"] == "Bearer"


def test_keys_are_kept_as_hashes_and_never_logged(locked: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        body = {"messages": [{"role": "user", "content": "say:private words"}]}
        assert locked.post("/v1/chat/completions", body, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        locked.client.get("/v1/models", headers={"authorization": "Bearer wrong-key-here"})
    told = "".join(str(record.__dict__) for record in caplog.records)
    assert "route" in told
    for secret in (KEY, "wrong-key-here", "private words"):
        assert secret not in told
    assert KEY not in repr(locked.app._rules)


def test_pages_of_other_origins_are_refused_unless_they_are_named(locked: Served, open_here: Served) -> None:
    own = {"origin": open_here.url}
    assert open_here.client.get("/v1/models", headers=own).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"{open_here.url}.evil.example"):
        response = open_here.client.get("/v1/models", headers={"origin": origin})
        assert response.status_code == 403 and "access-control-allow-origin" not in response.headers
    headers = {"origin": "http://app.example", "authorization": f"Bearer {KEY}"}
    assert (
        locked.client.get("/v1/models", headers=headers).headers["access-control-allow-origin"] == "http://app.example"
    )
    preflight = locked.client.options(
        "/v1/chat/completions", headers={"origin": "http://app.example", "access-control-request-method": "POST"}
    )
    assert preflight.status_code == 204 and "authorization" in preflight.headers["access-control-allow-headers"]
    assert locked.client.options("/v1/chat/completions", headers={"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "localhost.evil"])
def test_without_keys_only_loopback_names_are_answered(open_here: Served, host: str) -> None:
    assert open_here.client.get("/v1/models", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_loopback_names_are(open_here: Served, host: str) -> None:
    assert open_here.client.get("/v1/models", headers={"host": host}).status_code == 200


def test_large_bodies_are_refused_however_they_come(open_here: Served) -> None:
    body = b'{"messages":[{"role":"user","content":"' + b"x" * 6000 + b'"}]}'
    kind = {"content-type": "application/json"}
    assert open_here.client.post("/v1/chat/completions", content=body, headers=kind).status_code == 413
    chunks = (body[i : i + 500] for i in range(0, len(body), 500))
    response = open_here.client.post("/v1/chat/completions", content=chunks, headers=kind)
    assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"


def test_headers_are_counted(open_here: Served) -> None:
    headers = {f"x-{number}": "1" for number in range(MAX_HEADERS)}
    assert open_here.client.get("/v1/models", headers=headers).status_code == 431


def test_an_id_comes_back_and_is_made_where_there_is_none_that_can(open_here: Served) -> None:
    assert open_here.client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {open_here.client.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert len(open_here.client.get("/health", headers={"x-request-id": "x" * 500}).headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"messages": NaN}', b"\xff\xfe", b'{"messages":' + b"[" * 4000, b"a=b"]
)
def test_bodies_that_are_none_are_told_so(open_here: Served, body: bytes) -> None:
    response = open_here.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_other_methods_and_paths_have_the_same_shape(open_here: Served) -> None:
    for method, path, status in (("GET", "/nope", 404), ("DELETE", "/v1/models", 405), ("GET", "/ui/../app.py", 404),
                                 ("GET", "/ui/%2e%2e/%2e%2e/service.py", 404), ("GET", "/ui//etc/passwd", 404)):  # fmt: skip
        response = open_here.client.request(method, path)
        assert response.status_code == status and response.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_again() -> None:
    model = scripted_model(delay_s=0.05, limits=Limits(most_running=1, most_waiting=1))
    with served(model) as server:
        for _ in range(2):
            server.service.runner.engine.submit(list(b"say:" + b"a" * 100 + b"\x01\x02"), model.defaults)
            server.service.runner.wake()
            while not model.engine.scheduler.running:
                time.sleep(0.01)
        response = server.chat("say:x")
        assert response.status_code == 429 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "queue_full"


def test_a_request_that_takes_too_long_is_ended() -> None:
    with served(scripted_model(delay_s=0.05), request_s=0.3) as server:
        assert server.chat("say:" + "a" * 200).status_code == 504
        events = server.events("/v1/chat/completions", {"messages": [{"role": "user", "content": "say:" + "a" * 200}]})
        assert '"code":"timeout"' in events[-1]
        began = time.monotonic()
        while server.service.model.engine.scheduler.live():
            assert time.monotonic() - began < 5
            time.sleep(0.01)


def test_a_failure_inside_has_a_fixed_text_and_ends_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted_model()
    with served(model) as server:
        whole, broken = model.engine.backend.step, [True]

        def failing(rows: object) -> object:
            if broken.pop() if broken else False:
                raise RuntimeError("secret /home/me at 0xdeadbeef")
            return whole(rows)  # type: ignore[arg-type]

        monkeypatch.setattr(model.engine.backend, "step", failing)
        response = server.chat("say:x")
        assert response.status_code == 500 and "secret" not in response.text and "0x" not in response.text
        assert server.chat("say:x").json()["choices"][0]["message"]["content"] == "x"


def test_half_a_request_holds_nobody_up(open_here: Served) -> None:
    address = urlsplit(open_here.url)
    held = [socket.create_connection((address.hostname, address.port)) for _ in range(20)]
    for each in held:
        each.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert open_here.chat("say:x").status_code == 200
    for each in held:
        each.close()
    assert httpx2.get(open_here.url + "/health", trust_env=False).status_code == 200
