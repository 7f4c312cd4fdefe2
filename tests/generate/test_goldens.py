"""Greedy texts of the original code: same prompts, same ids, with its frozen rotary base."""

from __future__ import annotations

import pytest
from oracles.native_models import MemorySource, native_backend
from oracles.qwen1_golden import CASES, golden, golden_config, golden_network, golden_state
from support import shared

from kiloq import native
from kiloq.core.safe_json import load_object
from kiloq.generate.backend import Backend
from kiloq.generate.engine import Engine
from kiloq.generate.params import SamplingParams
from kiloq.generate.torch_backend import TorchBackend

SAFE_MARGIN = 1e-3  # below it the two likeliest tokens are too close for float32 sums in another order


@pytest.fixture(
    scope="module", params=[(case, engine) for case in CASES for engine in ("torch", "native")], ids="-".join
)
def case(request: pytest.FixtureRequest) -> tuple[str, Backend, dict]:
    name, engine = request.param
    info, _ = golden(name)
    # The reference ran past max_position_embeddings, which the original never checks.
    config = golden_config(name).replace(max_length=512)
    if engine == "torch":
        network = golden_network(name)
        network.config = config
        return name, TorchBackend(network), info["greedy"]
    if native.engine() is None:
        pytest.skip(native.MISSING)
    state = {key: value.numpy() for key, value in golden_state(name).items()}
    return name, native_backend(MemorySource(config, state)), info["greedy"]


def greedy(backend: Backend, eos: int, prompt: list[int], count: int, **sampling: object) -> list[int]:
    engine = Engine(backend, None, (eos,))
    params = SamplingParams(temperature=0, max_new_tokens=count, ntk="frozen", **sampling)
    request = engine.submit(prompt, params)
    while engine.step():
        pass
    return list(request.answers[0].completion.ids)


@pytest.mark.parametrize(
    "name",
    [
        "single",
        "cross_L",
        "long_prompt",
        "rep_penalty_1.1",
        "batch_row_0_alone",
        "batch_row_1_alone",
        "batch_row_2_alone",
    ],
)
def test_greedy_ids(case, name: str) -> None:
    label, backend, runs = case
    run = runs[name]
    if run["min_top2_margin"] < SAFE_MARGIN:
        pytest.skip("the reference itself is undecided here: its two likeliest tokens differ by less than 1e-3")
    eos = load_object(shared("goldens", "model", label, "generation_config.json"))["eos_token_id"]
    (prompt,), (sequence,) = run["prompt_ids"], run["sequences"]
    want = sequence[len(prompt) :]
    penalty = run["args"].get("repetition_penalty", 1.0)
    assert greedy(backend, eos, prompt, len(want), repetition_penalty=penalty) == want


def test_padded_rows_are_the_rows_alone(case) -> None:
    """The reference's left-padded batch equals our answers to each prompt alone (all are short: no NTK)."""
    label, backend, runs = case
    run = runs["batch_left_pad"]
    eos = load_object(shared("goldens", "model", label, "generation_config.json"))["eos_token_id"]
    for ids, mask, sequence in zip(run["prompt_ids"], run["attention_mask"], run["sequences"], strict=True):
        prompt = [token for token, real in zip(ids, mask, strict=True) if real]
        got = greedy(backend, eos, prompt, len(sequence) - len(ids))
        want = sequence[len(ids) :]
        want = want[: want.index(eos) + 1] if eos in want else want
        assert got == want
