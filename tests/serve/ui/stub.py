"""A server for the tests of the page: kiloq's routes with scripted answers, and the files of the page with their real policy.

Standard library only. `POST /_stub` changes its behaviour (`{"loading": true}`, `{"key": "..."}`, `{"models": [...]}`, `{"token_strs": false}`),
`GET /_stub` tells what it has seen: requests, and streams that the page closed.
Run it alone with `python stub.py PORT` and look at the page.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import scripts

UI = Path(__file__).resolve().parents[3] / "kiloq" / "serve" / "ui"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CALL = {"name": "get_weather", "arguments": '{"city": "Hangzhou", "unit": "celsius"}'}


class State:
    """What the tests set and read."""

    def __init__(self) -> None:
        self.loading = False
        self.key: str | None = None
        self.token_strs = True
        self.token_bytes = False
        self.models = ["qwen-tiny", "qwen-tiny-lora"]
        self.requests: list[Any] = []
        self.pieces: dict[int, bytes] = {}  # of every id that /tokenize gave out
        self.closed = 0


class Handler(BaseHTTPRequestHandler):
    """One request; `state` belongs to the server."""

    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests read stdout."""

    def send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), "application/json")

    def send_error_json(self, status: int, message: str) -> None:
        self.send_json({"error": {"message": message, "type": "error", "param": None, "code": None}}, status)

    def refused(self) -> bool:
        """Whether the key is missing; the answer is then already sent."""
        wrong = self.state.key is not None and self.headers.get("Authorization") != f"Bearer {self.state.key}"
        if wrong:
            self.send_error_json(401, "Incorrect API key provided.")
        return wrong

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        file = UI / ("index.html" if path == "/" else path.removeprefix("/ui/"))
        if path == "/_stub":
            self.send_json({"requests": self.state.requests, "closed": self.state.closed, "payloads": scripts.PAYLOADS})
        elif path == "/health":
            self.send_error_json(503, "Loading model") if self.state.loading else self.send_json({"status": "ok"})
        elif path == "/v1/models":
            if not self.refused():
                fields = {"object": "model", "created": 0, "owned_by": "kiloq", "max_model_len": 2048}
                self.send_json({"object": "list", "data": [{"id": name, **fields} for name in self.state.models]})
        elif (path == "/" or path.startswith("/ui/")) and file.resolve().is_relative_to(UI) and file.is_file():
            self.send(200, file.read_bytes(), TYPES[file.suffix])
        else:
            self.send_error_json(404, f"No route {path}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/_stub":
            self.state.__dict__.update(body)
            return self.send_json({})
        if self.refused():
            return None
        if self.path == "/tokenize":
            text = body.get("prompt") or json.dumps(body.get("messages"))
            tokens = scripts.pieces(text)
            ids = [int.from_bytes(data[-2:], "big") for data in tokens]
            strings = [data.decode(errors="replace") for data in tokens]
            self.state.pieces |= dict(zip(ids, tokens, strict=True))
            optional: dict[str, Any] = (
                {"token_strs": strings} if self.state.token_strs and body.get("return_token_strs") else {}
            )
            if self.state.token_bytes:
                optional["token_bytes"] = [list(data) for data in tokens]
            return self.send_json({"tokens": ids, "count": len(ids), "max_model_len": 2048, **optional})
        if self.path == "/detokenize":
            text = b"".join(self.state.pieces[number] for number in body["tokens"]).decode(errors="replace")
            return self.send_json({"prompt": text})
        if self.path == "/v1/chat/completions":
            self.state.requests.append(body)
            return self.complete(body)
        return self.send_error_json(404, f"No route {self.path}")

    def complete(self, body: dict[str, Any]) -> None:
        kind, text, pause_seconds = scripts.script(body["messages"])
        if kind == "refuse":
            return self.send_error_json(400, "temperature: 9 is more than 2")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.stream(body, kind, text, pause_seconds)
        except (BrokenPipeError, ConnectionResetError):
            self.state.closed += 1
        self.close_connection = True
        return None

    def event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def chunk(self, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        self.event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "choices": [choice]})

    def stream(self, body: dict[str, Any], kind: str, text: str, pause_seconds: float) -> None:
        self.wfile.write(b": ping\n\n")
        self.chunk({"role": "assistant", "content": ""})
        tokens = scripts.pieces(text)
        waiting = b""
        for position, data in enumerate(tokens):
            waiting += data
            try:
                content, waiting = waiting.decode(), b""
            except UnicodeDecodeError:
                content = ""
            logprobs = {"content": [scripts.scored(data, position)]} if body.get("logprobs") else None
            self.chunk({"content": content}, logprobs=logprobs)
            time.sleep(pause_seconds)
        if kind == "error":
            return self.event({"error": {"message": "The engine ran out of memory.", "type": "server_error"}})
        for index in range({"tool": 1, "tools": 2}.get(kind, 0)):
            self.call(index)
        finish = {"tool": "tool_calls", "tools": "tool_calls", "cut": "length"}.get(kind, "stop")
        self.chunk({}, finish)
        if body.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": 21, "completion_tokens": len(tokens), "total_tokens": 21 + len(tokens)}
            self.event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def call(self, index: int) -> None:
        """One tool call in pieces, as a model writes it."""
        head = {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": CALL["name"], "arguments": ""},
        }
        self.chunk({"tool_calls": [head]})
        for at in range(0, len(CALL["arguments"]), 7):
            self.chunk({"tool_calls": [{"index": index, "function": {"arguments": CALL["arguments"][at : at + 7]}}]})


class Server(ThreadingHTTPServer):
    """Threads that do not outlive the tests, and no traceback where a page was closed or reloaded in mid-request."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(port: int = 0) -> Server:
    """A server that listens on loopback, not yet serving; its port is in `server_address`."""
    handler = type("BoundHandler", (Handler,), {"state": State()})
    return Server(("127.0.0.1", port), handler)


if __name__ == "__main__":
    running = serve(int(sys.argv[1]) if len(sys.argv) > 1 else 8765)
    print(f"http://127.0.0.1:{running.server_address[1]}/", flush=True)
    running.serve_forever()
