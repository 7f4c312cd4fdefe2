"""A server in a thread of the test process, and a model that says what it is told to.

The scripted model answers a conversation with whatever follows "say:" in its last message that has it. Tokens are bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx2
import uvicorn
from oracles.scripted_backend import EOS, ByteVocabulary, ScriptedBackend

from kiloq.generate.engine import Limits
from kiloq.generate.model import Model
from kiloq.generate.params import SamplingParams
from kiloq.serve.app import create_app
from kiloq.serve.guard import Rules
from kiloq.serve.server import Server, bind
from kiloq.serve.service import Service
from kiloq.tokenize.chatml import ChatML

END_OF_MESSAGE, END_OF_PROMPT = 1, 2
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "clock"}},
]  # fmt: skip
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


class ScriptedTokenizer(ByteVocabulary):
    """Bytes; a conversation is its contents, each closed by a control byte."""

    bos_id, pad_id, add_bos, eos_ids = None, None, False, (EOS,)
    vocabulary = SimpleNamespace(chat_template=None)
    special_tokens: dict[str, int] = {"<end>": EOS}  # noqa: RUF012
    vocab_size = 257

    def chat(self, messages: Sequence[Any], *, tools: Any = None, add_generation_prompt: bool = True) -> list[int]:
        ids: list[int] = []
        for turn in ChatML(default_system=None).turns(messages):  # which refuses what is no conversation
            ids += [*(turn.text or "").encode(), END_OF_MESSAGE]
        return [*ids, END_OF_PROMPT] if add_generation_prompt else ids

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], errors: str = "replace") -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors)

    def is_special(self, token: int) -> bool:
        return token == EOS


def _next(sequence: list[int]) -> int:
    """The next byte of what the prompt tells to say."""
    data = bytes(i if i < 256 else 0 for i in sequence)
    begin = data.rfind(bytes([END_OF_PROMPT])) + 1
    prompt = data[: begin - 1] if begin else data
    told = prompt.rfind(b"say:") + 4
    if told < 4:
        return EOS
    script = prompt[told : prompt.find(bytes([END_OF_MESSAGE]), told) if begin else len(prompt)]
    said = len(data) - begin if begin else 0
    return script[said] if said < len(script) else EOS


def scripted_model(*, delay_s: float = 0.0, limits: Limits | None = None, react: bool = False, **config: Any) -> Model:
    """See the top of the file."""
    backend = ScriptedBackend(_next, **config)
    if delay_s:
        whole = backend.step

        def slowly(rows: Any) -> Any:
            time.sleep(delay_s)
            return whole(rows)

        backend.step = slowly  # type: ignore[method-assign]
    return Model(
        backend, ScriptedTokenizer(), name="scripted", eos_ids=(EOS,), limits=limits, react=react,  # type: ignore[arg-type]
        defaults=SamplingParams(temperature=0.0),
    )  # fmt: skip


class Served:
    """A server that runs, and a client for it."""

    def __init__(self, service: Service, rules: Rules | None, **options: Any) -> None:
        self.service = service
        self.app = create_app(service, rules, **options)
        socket = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        config = uvicorn.Config(self.app, log_level="critical", lifespan="off", timeout_graceful_shutdown=2)
        self.server = Server(config, service)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [socket]}, daemon=True)
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.client = httpx2.Client(base_url=self.url, timeout=60, trust_env=False)

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **options)

    def chat(self, content: Any, **fields: Any) -> httpx2.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields})

    def events(self, path: str, body: Any) -> list[str]:
        """The data of every event of a stream."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            response.read()
            assert response.status_code == 200, response.text
            assert response.headers["content-type"].startswith("text/event-stream")
            blocks = response.content.decode().split("\n\n")
            assert blocks.pop() == ""
            return [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def served(model: Model | None = None, rules: Rules | None = None, **options: Any) -> Iterator[Served]:
    """A server of the model; one that is still loading, without."""
    service = Service(("scripted",) if model is None else (model.name,))
    if model is not None:
        service.begin(model)
    server = Served(service, rules, **options)
    try:
        yield server
    finally:
        server.close()
