"""Many requests on one engine: who is fed when, what is reused, and that none of it changes an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles.native_models import native_backend, random_source
from oracles.scripted_backend import EOS, ByteVocabulary, ScriptedBackend

from kiloq.core.errors import BusyError, ContextError
from kiloq.generate.backend import PREFILL_CHUNK
from kiloq.generate.engine import Engine, Limits
from kiloq.generate.params import SamplingParams
from kiloq.generate.requests import Request
from kiloq.generate.torch_backend import TorchBackend
from kiloq.model.config import ModelConfig
from kiloq.model.network import Network

GREEDY = SamplingParams(temperature=0, max_new_tokens=8, ignore_eos=True, max_draft_tokens=0)
CONFIG = ModelConfig(
    vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_size=64, train_length=64,
    max_length=4096, dynamic_ntk=True, logn=True,
)  # fmt: skip
WINDOWS = CONFIG.replace(windows=(40, None), dynamic_ntk=False)


def counting(**limits: Any) -> Engine:
    """An engine whose next token is the length of what it has read, so that a lost or doubled token shows."""
    backend = ScriptedBackend(lambda sequence: len(sequence) % 251, **limits)
    return Engine(backend, ByteVocabulary(), (EOS,))


def run(engine: Engine) -> None:
    while engine.step():
        engine.scheduler.blocks.check()


def ids_of(request: Request) -> list[tuple[int, ...]]:
    assert request.error is None
    return [answer.completion.ids for answer in request.answers if answer.completion is not None]


def test_a_long_prompt_holds_running_streams_up_for_one_chunk_at_most() -> None:
    engine = counting()
    stream = engine.submit([1, 2, 3], SamplingParams(temperature=0, max_new_tokens=40, max_draft_tokens=0))
    engine.step()
    engine.submit([7] * 2000, GREEDY)
    engine.backend.calls.clear()  # type: ignore[attr-defined]
    for _ in range(4):
        before = len(stream.answers[0].ids)
        engine.step()
        assert len(stream.answers[0].ids) == before + 1
    assert all(sum(width for width, _ in call) <= PREFILL_CHUNK + 1 for call in engine.backend.calls)  # type: ignore[attr-defined]


def test_many_short_prompts_are_read_together() -> None:
    engine = counting()
    requests = [engine.submit([number] * 20, GREEDY) for number in range(10)]
    engine.step()
    assert all(len(request.answers[0].ids) == 1 for request in requests)


def test_what_others_have_read_is_not_read_again() -> None:
    engine = counting()
    prompt = list(range(100))
    first = engine.submit(prompt, GREEDY)
    run(engine)
    engine.backend.calls.clear()  # type: ignore[attr-defined]
    second = engine.submit([*prompt, 5, 6], GREEDY)
    other = engine.submit([9, *prompt], GREEDY)
    run(engine)
    assert sorted(width for width, _ in engine.backend.calls[0]) == [2, 101]  # type: ignore[attr-defined]
    counters = engine.scheduler.counters
    assert (counters.prefix_hits, counters.prefix_queries) == (100, 100 + 102 + 101)
    assert [r.answers[0].completion.usage.cached_tokens for r in (first, second, other)] == [0, 100, 0]
    engine.forget()
    assert engine.scheduler.blocks.idle == 0
    assert ids_of(engine_answer(engine, prompt)) == ids_of(first)


def engine_answer(engine: Engine, prompt: list[int], params: SamplingParams = GREEDY) -> Request:
    request = engine.submit(prompt, params)
    run(engine)
    return request


def test_a_full_cache_sends_the_youngest_back_and_loses_no_token() -> None:
    params = SamplingParams(temperature=0, max_new_tokens=30, ignore_eos=True, max_draft_tokens=0)
    engine = counting(blocks=20, max_length=60)
    prompts = [[number] * 20 for number in range(4)]
    requests = [engine.submit(prompt, params) for prompt in prompts]
    run(engine)
    assert engine.scheduler.counters.preemptions > 0
    assert [ids_of(request)[0] for request in requests] == [tuple(range(20, 50))] * 4
    assert engine.scheduler.blocks.live == 0


def test_one_answer_may_fill_the_whole_cache_and_no_prompt_may_be_longer() -> None:
    engine = counting(blocks=5, max_length=1000)
    assert engine.max_length == 20
    request = engine_answer(engine, [1] * 4, SamplingParams(temperature=0, max_new_tokens=99, ignore_eos=True))
    assert (len(ids_of(request)[0]), request.answers[0].completion.finish_reason) == (16, "length")
    with pytest.raises(ContextError, match=r"20 tokens .* 20"):
        engine.submit([1] * 20, GREEDY)


def test_cancelling_frees_its_blocks_within_one_step() -> None:
    engine = counting()
    keeps, goes = engine.submit([1] * 40, GREEDY), engine.submit([2] * 3000, GREEDY)
    waits = [engine.submit([3] * 10, GREEDY) for _ in range(100)]
    engine.step()
    held = engine.scheduler.blocks.live
    engine.cancel(goes)
    engine.cancel(waits[-1])
    engine.step()
    assert goes.done and waits[-1].done
    assert engine.scheduler.blocks.live <= held - 3000 // 4 + 80
    run(engine)
    assert len(ids_of(keeps)[0]) == 8


def test_the_queue_has_a_limit_of_its_own() -> None:
    backend = ScriptedBackend(lambda sequence: 1)
    engine = Engine(backend, ByteVocabulary(), (EOS,), Limits(most_running=1, most_waiting=2))
    first = [engine.submit([1], GREEDY) for _ in range(2)]
    with pytest.raises(BusyError, match="2 answers are waiting and the limit is 2"):
        engine.submit([1], GREEDY)
    engine.step()
    third = engine.submit([1], GREEDY)
    run(engine)
    assert all(request.done for request in (*first, third))


def test_whoever_asked_is_told_of_every_step() -> None:
    engine, told = counting(), []
    request = engine.submit([1, 2], GREEDY, notify=lambda: told.append(len(request.answers[0].ids)))
    run(engine)
    assert told == list(range(1, 9))


def torch_backend() -> TorchBackend:
    network = Network(CONFIG).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(float("norm" in name) + 0.3 * torch.randn(parameter.shape, generator=generator))
    return TorchBackend(network)


BACKENDS: dict[str, Callable[[], Any]] = {
    "native fp32": lambda: native_backend(random_source(CONFIG)),
    "native bf16": lambda: native_backend(random_source(CONFIG), "bf16", "bf16"),
    "native int8": lambda: native_backend(random_source(CONFIG), "int8", "int8"),
    "native int4": lambda: native_backend(random_source(CONFIG), "int4", "bf16"),
    "native windows": lambda: native_backend(random_source(WINDOWS), "int8", "bf16"),
    "torch fp32": torch_backend,
}


@pytest.mark.parametrize("name", BACKENDS)
def test_an_answer_is_the_same_alone_and_under_load(name: str) -> None:
    """Greedy and seeded, with batch mates, pieces of prompts, reuse, too small a cache, cancellations, and n > 1."""
    backend = BACKENDS[name]()
    random = np.random.default_rng(1)
    shared = random.integers(0, 97, 90).tolist()
    jobs = []
    for number in range(24 if backend.exact_cuts else 10):  # PyTorch takes its time
        own = random.integers(0, 97, int(random.integers(1, 70))).tolist()
        prompt = own if number % 3 == 0 else [*shared[: int(random.integers(20, 90))], *own]
        params = SamplingParams(
            temperature=0.0 if number % 2 else 0.9, seed=number, max_new_tokens=int(random.integers(1, 60)),
            n=3 if number % 5 == 0 else 1, top_p=0.95, repetition_penalty=1.1, ignore_eos=True,
            logprobs=2 if number % 7 == 0 else None,
        )  # fmt: skip
        jobs.append((prompt, params))
    alone = [ids_of(engine_answer(Engine(backend, None, ()), prompt, params)) for prompt, params in jobs]

    blocks = -(-max(len(prompt) + params.max_new_tokens for prompt, params in jobs) // backend.block_tokens) + 4
    engine = Engine(backend, None, (), Limits(cache_bytes=max(blocks, 5) * backend.block_bytes, most_running=7))
    requests = []
    for number, (prompt, params) in enumerate(jobs):
        requests.append(engine.submit(prompt, params))
        if number % 4 == 0:
            engine.cancel(engine.submit(random.integers(0, 97, 50).tolist(), params))
        for _ in range(number % 3):
            engine.step()
            engine.scheduler.blocks.check()
    run(engine)
    assert [ids_of(request) for request in requests] == alone
    assert engine.scheduler.blocks.live == 0
    if backend.exact_cuts:
        assert engine.scheduler.counters.preemptions > 0
        assert engine.scheduler.counters.prefix_hits > 0


@pytest.mark.parametrize("name", ["native fp32", "torch fp32"])
def test_log_probabilities_of_the_prompt_are_those_of_an_uncached_pass(name: str) -> None:
    backend = BACKENDS[name]()
    prompt = np.random.default_rng(2).integers(0, 97, 150).tolist()
    params = SamplingParams(temperature=0, max_new_tokens=2, logprobs=3, prompt_logprobs=3, ignore_eos=True)
    engine = Engine(backend, None, ())
    engine_answer(engine, prompt)  # a cache that must not be used, because its logits are gone
    request = engine_answer(engine, prompt, params)
    logits = torch.from_numpy(uncached(backend, prompt)).double()
    want = torch.log_softmax(logits, dim=-1)
    assert len(request.prompt_logprobs) == len(prompt) - 1
    for place, entry in enumerate(request.prompt_logprobs):
        assert entry.id == prompt[place + 1]
        assert entry.logprob == pytest.approx(float(want[place, entry.id]), abs=2e-4)
        assert [other.id for other in entry.top] == want[place].topk(3).indices.tolist()
    assert request.answers[0].completion.ids[0] == int(want[-1].argmax())


def uncached(backend: Any, prompt: list[int]) -> np.ndarray:
    """Logits of a pass over all of the prompt at once: at its whole length's NTK stretch."""
    return np.asarray(backend.logits(prompt))
