"""The engine's rules on a scripted backend, then on the real network: stops, lengths, n, NTK crossings, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.scripted_backend import EOS, ByteVocabulary, ScriptedBackend

from kiloq.core.errors import ContextError, UsageError
from kiloq.generate.backend import PREFILL_CHUNK, Row
from kiloq.generate.engine import Engine
from kiloq.generate.params import SamplingParams
from kiloq.generate.records import Completion
from kiloq.generate.stop import StopMatcher
from kiloq.generate.torch_backend import TorchBackend
from kiloq.model.config import ModelConfig
from kiloq.model.network import Network
from kiloq.model.ntk import ntk_alpha

PROMPT = "say:"


def scripted(answer: str, **config: object) -> Engine:
    """An engine that answers `answer` to PROMPT and then ends."""
    script = [*answer.encode(), EOS]
    start = len(PROMPT.encode())
    backend = ScriptedBackend(lambda sequence: script[min(len(sequence) - start, len(script) - 1)], **config)
    return Engine(backend, ByteVocabulary(), (EOS,))


def run(engine: Engine, **sampling: object) -> Completion:
    request = engine.submit(list(PROMPT.encode()), SamplingParams(temperature=0, **sampling))
    while not request.done:
        assert engine.step()
    completion = request.answers[0].completion
    assert completion is not None and completion.text == "".join(request.answers[0].pieces)
    return completion


def test_ends_at_the_end_token() -> None:
    done = run(scripted("hello"))
    assert (done.text, done.finish_reason) == ("hello", "stop")
    assert done.ids == (*b"hello", EOS)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (4, 6, 10)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_last_token_before_a_limit_is_kept(limit: int) -> None:
    done = run(scripted("hello"), max_new_tokens=limit)
    assert (done.text, done.finish_reason) == ("hello"[:limit], "length")
    assert len(done.ids) == limit


def test_a_character_cut_by_the_limit_is_shown_as_replacement_only_at_the_end() -> None:
    done = run(scripted("é"), max_new_tokens=1)
    assert done.text == "�"
    assert run(scripted("é")).text == "é"


def test_ignore_eos_and_min_new_tokens() -> None:
    assert run(scripted("hi"), ignore_eos=True, max_new_tokens=5).finish_reason == "length"
    done = run(scripted("hi"), min_new_tokens=4, max_new_tokens=5)
    assert EOS not in done.ids[:4] and len(done.ids) == 5


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("lo",), "hel"),
        (("lo", "ello"), "h"),
        (("h",), ""),
        (("xyz",), "hello 世界"),
        (("世",), "hello "),
        (("l", "ello"), "he"),
        (("o 世界!",), "hello 世界"),
    ],
)
def test_stop_strings_never_show(stop: tuple[str, ...], text: str) -> None:
    done = run(scripted("hello 世界"), stop=stop)
    assert (done.text, done.finish_reason) == (text, "stop")


def test_stop_ids_end_without_showing() -> None:
    done = run(scripted("hello"), stop_ids=(ord("l"),))
    assert (done.text, done.ids) == ("he", tuple(b"hel"))


@given(
    st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.integers(1, 5))
)
def test_any_cut_of_the_stream_gives_the_same_text(text: str, stops: list[str], cuts: list[int]) -> None:
    """What comes out is the text before the stop that is complete first, and no piece goes past it on the way."""
    ends = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    want = text[: min(ends)[1]] if ends else text
    matcher, shown, rest = StopMatcher(stops), "", text
    for cut in [*cuts, len(text) + 1]:
        shown += matcher.push(rest[:cut])
        rest = rest[cut:]
        assert want.startswith(shown)
    assert shown + matcher.flush() == want


def test_context_limit_ends_the_answer_and_refuses_the_prompt() -> None:
    engine = scripted("hello world", train_length=8, max_length=8)
    done = run(engine)
    assert (done.text, done.finish_reason) == ("hell", "length")
    with pytest.raises(ContextError, match=r"12 tokens .* 8"):
        engine.submit([1] * 12, SamplingParams())
    assert not engine.step()


@pytest.mark.parametrize(
    ("prompt", "params"),
    [([], {}), ([257], {}), ([-1], {}), ([1], {"stop_ids": (999,)}), ([1], {"logit_bias": {300: 1.0}})],
)
def test_requests_that_cannot_run_are_refused(prompt: list[int], params: dict) -> None:
    with pytest.raises(UsageError):
        scripted("x").submit(prompt, SamplingParams(**params))


def test_long_prompts_are_prefilled_in_chunks_while_others_run() -> None:
    engine = scripted("a" * 50)
    short = engine.submit(list(PROMPT.encode()), SamplingParams(temperature=0))
    engine.step()
    long = engine.submit([1] * (2 * PREFILL_CHUNK + 3), SamplingParams(temperature=0, max_new_tokens=2))
    while not (short.done and long.done):
        engine.step()
    widths = [max(width for width, _ in call) for call in engine.backend.calls]
    assert max(widths) == PREFILL_CHUNK
    assert short.answers[0].completion.text == "a" * 50


def test_cancel_keeps_the_text_so_far_and_frees_the_rest() -> None:
    engine = scripted("a" * 50)
    request = engine.submit(list(PROMPT.encode()), SamplingParams(temperature=0, n=3))
    for _ in range(5):
        engine.step()
    engine.cancel(request)
    assert engine.step() is False
    assert request.done
    assert all(answer.completion.finish_reason == "cancelled" for answer in request.answers)
    assert request.answers[0].completion.text == "aaaaa"
    waiting = engine.submit([1] * 3000, SamplingParams(n=2))
    engine.step()
    engine.cancel(waiting)
    engine.step()
    assert waiting.done and waiting.answers[1].completion.text == ""


CONFIG = ModelConfig(
    vocab_size=200, hidden_size=32, num_layers=2, num_heads=4, ffn_size=48, train_length=16, max_length=128,
    dynamic_ntk=True, logn=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Network:
    network = Network(CONFIG).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(float("norm" in name) + 0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def answer_ids(network: Network, prompt: list[int], **sampling: object) -> list[tuple[int, ...]]:
    engine = Engine(TorchBackend(network), None, ())
    request = engine.submit(prompt, SamplingParams(**sampling))
    while engine.step():
        pass
    return [answer.completion.ids for answer in request.answers]


def uncached_greedy(network: Network, prompt: list[int], count: int, frozen: bool) -> tuple[int, ...]:
    """One full pass a token: exact NTK by default, or with the alpha of the prompt's length."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            alpha = [ntk_alpha(len(prompt) if frozen else len(ids), CONFIG.train_length)]
            ids.append(int(network(torch.tensor([ids]), alpha=alpha)[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("length", [3, 14, 16, 17, 31, 33])
@pytest.mark.parametrize("ntk", ["exact", "frozen"])
def test_greedy_equals_uncached_passes_across_ntk_boundaries(network: Network, length: int, ntk: str) -> None:
    prompt = np.random.default_rng(length).integers(0, 200, length).tolist()
    (got,) = answer_ids(network, prompt, temperature=0, max_new_tokens=40, ntk=ntk)
    assert got == uncached_greedy(network, prompt, 40, frozen=ntk == "frozen")


def test_exact_and_frozen_differ_once_a_boundary_is_crossed(network: Network) -> None:
    prompt = list(range(10, 24))
    exact, frozen = (
        answer_ids(network, prompt, temperature=0, max_new_tokens=60, ntk=ntk)[0] for ntk in ("exact", "frozen")
    )
    assert exact != frozen


def test_same_seed_same_answers_whatever_else_runs(network: Network) -> None:
    """n answers differ from each other, repeat with the seed, and do not notice batch mates."""
    sampling = dict(temperature=1.0, top_p=0.95, seed=5, max_new_tokens=24)
    first = answer_ids(network, [1, 2, 3], n=3, **sampling)
    assert first == answer_ids(network, [1, 2, 3], n=3, **sampling)
    assert len(set(first)) == 3
    assert answer_ids(network, [1, 2, 3], **sampling) == first[:1]
    assert answer_ids(network, [1, 2, 3], n=3, **(sampling | {"seed": 6})) != first
    engine = Engine(TorchBackend(network), None, ())
    requests = [engine.submit([1, 2, 3], SamplingParams(n=3, **sampling))]
    requests += [engine.submit(list(range(length)), SamplingParams(seed=length)) for length in (5, 40)]
    while engine.step():
        pass
    assert [answer.completion.ids for answer in requests[0].answers] == first


def test_without_a_seed_answers_vary_and_report_theirs(network: Network) -> None:
    engine = Engine(TorchBackend(network), None, ())
    requests = [engine.submit([1], SamplingParams(max_new_tokens=20)) for _ in range(2)]
    while engine.step():
        pass
    one, two = (request.answers[0].completion for request in requests)
    assert one.seed != two.seed and one.ids != two.ids
    assert answer_ids(network, [1], max_new_tokens=20, seed=one.seed) == [one.ids]


def test_logprobs_are_of_the_uncached_logits(network: Network) -> None:
    engine = Engine(TorchBackend(network), None, ())
    request = engine.submit([4, 5, 6], SamplingParams(seed=1, max_new_tokens=20, logprobs=5, temperature=0.7, top_k=9))
    while engine.step():
        pass
    completion = request.answers[0].completion
    assert len(completion.logprobs) == len(completion.ids)
    ids = [4, 5, 6]
    for token, entry in zip(completion.ids, completion.logprobs, strict=True):
        want = TorchBackend(network).logits(ids)[-1].astype(np.float64)
        want -= np.log(np.exp(want).sum())
        assert entry.id == token
        assert entry.logprob == pytest.approx(want[token], abs=1e-4)
        assert [other.id for other in entry.top] == np.argsort(-want, kind="stable")[:5].tolist()
        ids.append(token)


def test_a_half_precision_cache_changes_logits_by_its_rounding_only(network: Network) -> None:
    """bf16 keeps 8 bits: about 0.4 % of keys and values, which moves logits of size ~10 by less than 0.3 here."""
    prompt = [4, 5, 6, 7, 8]
    exact = TorchBackend(network).logits(prompt)[-1]
    backend = TorchBackend(network, cache_dtype=torch.bfloat16)
    (outcome,) = backend.step([Row(backend.open(), prompt, 1.0, wanted=1)])
    halved = outcome.logits_NV[-1]
    assert 0 < np.abs(halved - exact).max() < 0.3
