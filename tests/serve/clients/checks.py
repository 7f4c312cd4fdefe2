"""What all client programs share: checks by name, run one after the other against a server that is told on the command line.

    python NAME_client.py URL KEY MODEL     URL as in http://127.0.0.1:8000

Prints one JSON object {"client", "version", "model", "checks": [names that passed], "failed": {name: sentence}}, and
exits with 1 and a sentence for each failure. A check belongs to one of two models: "scripted", which says what follows
"say:" in the last message that has it, and "trained", a small real one for answers that must have a form. Only the
standard library is imported, because every client has an environment of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

SCRIPTED = "scripted"
TEXT = (
    "hello 世界 😀\u2028end"  # more bytes than characters, and a separator that careless readers take for a line's end
)
WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CLOCK = {
    "name": "clock",
    "description": "The time in a zone.",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "integer"}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": CLOCK}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
CALLS = CALL + '\n<tool_call>\n{"name": "clock", "arguments": {"zone": 1}}\n</tool_call>'

_checks: list[tuple[bool, Callable[[], Any]]] = []


def url() -> str:
    """The server, without a path."""
    return sys.argv[1]


def api() -> str:
    """OpenAI's part of it."""
    return f"{url()}/v1"


def key() -> str:
    return sys.argv[2]


def model() -> str:
    return sys.argv[3]


def scripted(function: Callable[[], Any]) -> Callable[[], Any]:
    """A check for the model that says what it is told to."""
    _checks.append((True, function))
    return function


def trained(function: Callable[[], Any]) -> Callable[[], Any]:
    """A check for a real model."""
    _checks.append((False, function))
    return function


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"say:{text}"}]


def same(found: Any, expected: Any) -> None:
    assert found == expected, f"{found!r} is not {expected!r}"


def first_line(text: str | None) -> str:
    """What the scripted model was told in a tool's result, without the tag that ends the result in the prompt."""
    return (text or "").split("\n")[0]


def raised(kind: type[BaseException], function: Callable[[], Any]) -> Any:
    """The exception that a call must raise."""
    try:
        found = function()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised: the call returned {found!r:.200}")


def metric(name: str) -> float:
    """A number of the server's /metrics, with all its labels added up."""
    request = urllib.request.Request(f"{url()}/metrics", headers={"Authorization": f"Bearer {key()}"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
        lines = response.read().decode().splitlines()
    found = [line for line in lines if line.split("{")[0].split(" ")[0] == f"kiloq:{name}"]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def await_abort(before: float) -> None:
    """The engine gives up an answer that nobody waits for, soon after its client has gone."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        if metric("request_aborted_total") > before and metric("num_requests_running") == 0:
            return
        time.sleep(0.02)
    raise AssertionError("the engine went on 3 s after the client had gone")


def run(client: str, version: str, **more: Any) -> None:
    """Runs the checks for this model; see the top of the file. `more` are functions whose results are put beside them."""
    passed: list[str] = []
    failed: dict[str, str] = {}
    for for_scripted, function in _checks:
        if for_scripted != (model() == SCRIPTED):
            continue
        try:
            result = function()
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except Exception as error:
            traceback.print_exc()
            failed[function.__name__] = f"{type(error).__name__}: {error}"[:600]
        else:
            passed.append(function.__name__)
    found = {"client": client, "version": version, "model": model(), "checks": passed, "failed": failed}
    print()  # a client may have left its line open
    print(json.dumps(found | {name: made() for name, made in more.items()}))
    for name, sentence in failed.items():
        print(f"{client} {version}: {name}: {sentence}", file=sys.stderr)
    sys.exit(bool(failed))
