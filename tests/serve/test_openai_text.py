"""Text completions, tokens and the rest of OpenAI's paths: on the scripted model, and log-likelihoods on a real network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, scripted_model, served
from support import default_model

import kiloq


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(scripted_model(max_length=500)) as running:
        yield running


def complete(server: Served, prompt: Any, **fields: Any) -> list[dict[str, Any]]:
    response = server.post("/v1/completions", {"prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    return list(response.json()["choices"])


def test_prompts_may_be_texts_or_tokens_one_or_several(server: Served) -> None:
    ids = list(b"say:ab\x01\x02")
    assert [c["text"] for c in complete(server, "say:ab\x01\x02")] == ["ab"]
    assert [c["text"] for c in complete(server, ids)] == ["ab"]
    several = complete(server, [ids, list(b"say:cd\x01\x02")], n=2)
    assert [(c["index"], c["text"]) for c in several] == [(0, "ab"), (1, "ab"), (2, "cd"), (3, "cd")]
    assert [c["text"] for c in complete(server, ["say:ab\x01\x02", "say:c\x01\x02"])] == ["ab", "c"]


def test_a_stream_gives_each_text_in_pieces(server: Served) -> None:
    events = server.events(
        "/v1/completions", {"prompt": ["say:äb\x01\x02", "say:cd\x01\x02"], "stream_options": {"include_usage": True}}
    )
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    texts: dict[int, str] = {}
    for chunk in chunks[:-1]:
        choice = chunk["choices"][0]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {0: "äb", 1: "cd"} and chunks[-1]["usage"]["completion_tokens"] == 4 + 3
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1] if c["choices"][0]["finish_reason"]] == ["stop"] * 2


def test_the_limit_is_sixteen_tokens_unless_it_is_given(server: Served) -> None:
    (choice,) = complete(server, "say:" + "a" * 30 + "\x01\x02")
    assert (len(choice["text"]), choice["finish_reason"]) == (16, "length")


@pytest.mark.parametrize(
    "fields",
    [{"suffix": "x"}, {"prompt": ""}, {"prompt": []}, {"prompt": [[]]}, {"prompt": [999]}, {"prompt": ["a"] * 129},
     {"max_tokens": 0}, {"best_of": 5}, {"echo": True, "stream": True}, {"prompt": {"a": 1}}, {"logprobs": 21}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(server: Served, fields: dict[str, Any]) -> None:
    response = server.post("/v1/completions", {"prompt": "say:x\x01\x02"} | fields)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_echo_repeats_the_prompt_and_scores_it(server: Served) -> None:
    (choice,) = complete(server, "say:ab\x01\x02", echo=True, logprobs=2, max_tokens=1)
    logprobs = choice["logprobs"]
    assert choice["text"] == "say:ab\x01\x02a" and "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(logprobs["text_offset"]) == 9
    (choice,) = complete(server, "say:ab\x01\x02", echo=True, logprobs=2, max_tokens=0)
    assert choice["text"] == "say:ab\x01\x02" and len(choice["logprobs"]["tokens"]) == 8


def test_tokens_and_texts_turn_into_each_other(server: Served) -> None:
    found = server.post("/tokenize", {"prompt": "hé"}).json()
    assert found == {"tokens": [104, 0xC3, 0xA9], "count": 3, "max_model_len": 500}
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "hé"}
    found = server.post("/tokenize", {"messages": [{"role": "user", "content": "a"}]}).json()
    assert found["tokens"] == [97, 1, 2]
    assert server.post("/tokenize", {"prompt": "a", "messages": []}).status_code == 400
    assert server.post("/detokenize", {"tokens": [99999]}).status_code == 400
    assert set(server.client.get("/tokenizer_info").json()) >= {"eos_token", "bos_token", "pad_token", "chat_template"}


def test_while_it_loads_it_says_so_and_still_names_its_model() -> None:
    with served(None) as loading:
        assert loading.client.get("/v1/models").json()["data"][0]["id"] == "scripted"
        for response in (
            loading.client.get("/health"),
            loading.chat("x"),
            loading.post("/v1/completions", {"prompt": "x"}),
        ):
            assert response.status_code == 503 and response.headers["retry-after"]
            assert response.json()["error"]["message"] == "Loading model"
        loading.service.begin(scripted_model())
        assert loading.client.get("/health").json() == {"status": "ok"}
        loading.service.draining = True
        assert loading.chat("say:x").status_code == 503


def test_metrics_tell_of_the_engine_in_prometheus_own_form(server: Served) -> None:
    complete(server, "say:ab\x01\x02")
    families = {family.name: family for family in text_string_to_metric_families(server.client.get("/metrics").text)}
    values = {name: sum(sample.value for sample in family.samples) for name, family in families.items()}
    assert values["kiloq:num_requests_running"] == values["kiloq:num_requests_waiting"] == 0
    assert values["kiloq:kv_cache_usage_perc"] == 0 and values["kiloq:model_info"] == 1
    assert values["kiloq:prefix_cache_queries"] >= values["kiloq:prefix_cache_hits"] >= 0
    for name in ("prompt_tokens", "generation_tokens", "request_success", "http_requests", "time_to_first_token_seconds",
                 "inter_token_latency_seconds", "e2e_request_latency_seconds"):  # fmt: skip
        assert values[f"kiloq:{name}"] > 0, name
    assert {"kiloq:request_aborted", "kiloq:build_info", "kiloq:num_preemptions"} <= set(families)


def test_log_likelihoods_are_those_of_an_uncached_pass() -> None:
    """What evaluations read: the prompt's log-probabilities, and whether each token is the likeliest."""
    model = kiloq.load(default_model())
    ids = model.prompt_ids("The quick brown fox jumps over the lazy dog. " * 4)
    logits = model.logits(ids).astype(np.float64)
    want = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    with served(model) as server:
        for _ in range(2):  # the second time from a warm cache, which must not be used
            (choice,) = complete(server, [ids], echo=True, logprobs=1, max_tokens=1, temperature=0)
            got = choice["logprobs"]
            assert got["token_logprobs"][1 : len(ids)] == pytest.approx(
                [want[i, t] for i, t in enumerate(ids[1:])], abs=1e-4
            )
            greedy = [max(top.values()) for top in got["top_logprobs"][1 : len(ids)]]
            assert greedy == pytest.approx(want[: len(ids) - 1].max(-1).tolist(), abs=1e-4)
