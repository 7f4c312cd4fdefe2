"""Answers that must have a form, of the default model: schemas, expressions, calls that are required; and bad forms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Served, served
from support import default_model

import kiloq

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "person", "parameters": SCHEMA}},
    {
        "type": "function",
        "function": {
            "name": "clock",
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    },
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(kiloq.load(default_model())) as running:
        yield running


def choice(server: Served, content: str, **fields: Any) -> dict[str, Any]:
    response = server.chat(content, **fields)
    assert response.status_code == 200, response.text
    return dict(response.json()["choices"][0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_schema_is_kept_at_any_temperature(server: Served, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    found = choice(server, "Make up a person.", response_format=form, temperature=1.5, seed=seed, max_tokens=200)
    value = json.loads(found["message"]["content"])
    assert set(value) == {"name", "age"} and isinstance(value["name"], str) and 0 <= value["age"] <= 150
    assert found["finish_reason"] == "stop"


def test_an_object_an_expression_and_several_answers(server: Served) -> None:
    found = choice(server, "Give me JSON.", response_format={"type": "json_object"}, max_tokens=300, temperature=0)
    if found["finish_reason"] == "stop":
        assert isinstance(json.loads(found["message"]["content"]), dict)
    response = server.chat(
        "A date.", response_format={"type": "regex", "regex": r"\d{4}-\d\d-\d\d"}, n=3, temperature=1.0, seed=4
    )
    texts = [each["message"]["content"] for each in response.json()["choices"]]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", text) for text in texts)


@pytest.mark.parametrize("choose", ["required", {"type": "function", "function": {"name": "person"}}], ids=str)
def test_a_call_that_is_required_is_made(server: Served, choose: Any) -> None:
    found = choice(server, "Hello!", tools=TOOLS, tool_choice=choose, temperature=1.0, seed=5, max_tokens=200)
    (call,) = found["message"]["tool_calls"]
    value = json.loads(call["function"]["arguments"])
    assert found["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "person" or choose == "required"
    assert set(value) == ({"name", "age"} if call["function"]["name"] == "person" else set())


@pytest.mark.parametrize(
    "form",
    [{"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
     {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://example.com/schema"}}},
     {"type": "regex", "regex": "("}, {"type": "regex", "regex": "(a{1,1000}){1,1000}"}, {"type": "grammar", "grammar": "start: nope"}],
    ids=str,
)  # fmt: skip
def test_a_bad_form_is_refused_and_its_neighbours_go_on(server: Served, form: dict[str, Any]) -> None:
    job = server.service.runner.engine.submit(
        [1, 2, 3], server.service.model.params(max_new_tokens=20, temperature=0, ignore_eos=True)
    )
    server.service.runner.wake()
    response = server.chat("x", response_format=form)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
    assert "0x" not in response.text and "Traceback" not in response.text
    server.service.runner.engine.finish(job)
    assert len(job.answers[0].ids) == 20
