"""Responses and embeddings: the events of the one add up to its whole, the numbers of the other are a network's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import Served, scripted_model, served
from support import default_model

import kiloq

TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
CALL = 'Wait. <tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(scripted_model(max_length=2000)) as running:
        yield running


def events_of(server: Served, body: dict[str, Any]) -> list[dict[str, Any]]:
    with server.client.stream("POST", "/v1/responses", json={**body, "stream": True}) as response:
        response.read()
    found = []
    for block in response.content.decode().strip().split("\n\n"):
        name, _, data = block.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def bare(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("id", "call_id")}


@pytest.mark.parametrize(
    "body", [{"input": "say:hello 世界"}, {"input": f"say:{CALL}", "tools": TOOLS}], ids=["text", "call"]
)
def test_the_events_of_a_response_add_up_to_it(server: Served, body: dict[str, Any]) -> None:
    whole = server.post("/v1/responses", body).json()
    events = events_of(server, body)
    assert [events[0]["type"], events[1]["type"], events[-1]["type"]] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    final = events[-1]["response"]
    assert (
        list(map(bare, final["output"])) == list(map(bare, whole["output"]))
        and final["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    )
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    for place, item in enumerate(done):
        deltas = "".join(e["delta"] for e in events if e.get("output_index") == place and e["type"].endswith(".delta"))
        assert deltas == (item["content"][0]["text"] if item["type"] == "message" else item["arguments"])


def test_input_items_become_a_conversation(server: Served) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "say:no"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "message", "role": "user", "content": "say:yes"},
    ]
    found = server.post("/v1/responses", {"input": items, "instructions": "Be kind.", "tools": TOOLS}).json()
    assert found["output"][0]["content"][0]["text"] == "yes" and found["instructions"] == "Be kind."
    found = server.post("/v1/responses", {"input": "say:" + "a" * 50, "max_output_tokens": 5}).json()
    assert found["status"] == "incomplete" and found["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    "body",
    [{"input": []}, {"input": "x", "previous_response_id": "r"}, {"input": "x", "background": True}, {"input": [{"type": "image"}]},
     {"input": "x", "tools": [{"type": "web_search"}]}, {"input": "x", "text": {"format": "json"}}, {"input": 5},
     {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}],
    ids=str,
)  # fmt: skip
def test_what_a_response_cannot_be_is_refused(server: Served, body: dict[str, Any]) -> None:
    assert server.post("/v1/responses", body).status_code == 400


def test_embeddings_are_the_mean_of_the_networks_last_states() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is the oracle here")
    text = "The cat sat on the mat. " * 30
    native, reference = kiloq.load(default_model()), kiloq.load(default_model(), engine="torch")
    ids = native.prompt_ids(text)
    with torch.inference_mode():
        states = reference.engine.backend._network.hidden(torch.tensor([ids]))[0].double()  # type: ignore[attr-defined]
    want = states.mean(0) / states.mean(0).norm()
    # The default model's activations are rounded to 8 bits in the native engine: near, not equal.
    assert float(np.dot(native.embedding(text), want.numpy())) > 0.999
    np.testing.assert_allclose(reference.embedding(text), want.numpy(), atol=1e-5)
    with served(native) as server:
        found = server.post("/v1/embeddings", {"input": [text, text, "another"], "encoding_format": "float"}).json()
        first, second, third = (np.array(each["embedding"], np.float32) for each in found["data"])
        np.testing.assert_array_equal(first, native.embedding(text))
        np.testing.assert_array_equal(first, second)
        assert (
            server.post("/v1/embeddings", {"input": ids}).json()["data"][0]["embedding"]
            == found["data"][0]["embedding"]
        )
        assert not np.array_equal(first, third) and found["usage"]["prompt_tokens"] > 2 * len(ids)
        packed = server.post("/v1/embeddings", {"input": text, "encoding_format": "base64"}).json()["data"][0][
            "embedding"
        ]
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), first)
        for bad in ({"input": []}, {"input": ""}, {"input": "x", "dimensions": 7}, {"input": "x", "encoding_format": "int8"},
                    {"input": [[999_999]]}, {"input": ["x"] * 300}):  # fmt: skip
            assert server.post("/v1/embeddings", bad).status_code == 400, bad
