"""A network in several processes: to the last bit the answers of one; what is asked for, and what cannot be."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from staged_models import GONE_S, LAYERS, TRAIN_LENGTH, backend_of, some_ids, staged_folder

import kiloq
from kiloq.convert.source import ModelSource, open_model
from kiloq.core.errors import UsageError
from kiloq.generate.backend import Row
from kiloq.generate.engine import Engine, Limits
from kiloq.generate.params import SamplingParams
from kiloq.generate.stage_part import Piece, load_part
from kiloq.generate.stage_plan import StagePlan, shares
from kiloq.serve.command import serve_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=[(2, "fp32", False), (3, "bf16", True)], ids=["2 fp32", "3 bf16 tied"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[kiloq.Model, kiloq.Model]]:
    """(a model in one process, the same in several)."""
    stages, weights, tied = request.param
    folder = staged_folder(tmp_path_factory.mktemp("model"), tied=tied)
    whole = kiloq.load(folder, weights=weights, engine="torch")
    split = kiloq.load(folder, weights=weights, stages=stages)
    yield whole, split
    backend_of(split).close()


@pytest.mark.parametrize("tokens", [1, 7, TRAIN_LENGTH + 1, 700])
def test_logits_and_means_have_the_bits_of_one_process(pair: tuple[kiloq.Model, kiloq.Model], tokens: int) -> None:
    whole, split = pair
    ids = some_ids(tokens)
    np.testing.assert_array_equal(split.logits(ids), whole.logits(ids))
    np.testing.assert_array_equal(split.embedding(ids), whole.embedding(ids))


def test_answers_under_load_are_those_of_one_process(pair: tuple[kiloq.Model, kiloq.Model]) -> None:
    """Greedy and seeded, with n > 1, logprobs, NTK crossings, prefixes that are reused, cancellations, a small cache."""
    shared = some_ids(600)
    jobs = []
    for number in range(8):
        prompt = some_ids(40 + number, number) if number % 2 else [*shared, *some_ids(number + 1, number)]
        params = SamplingParams(
            temperature=0.8 if number % 4 < 2 else 0.0, seed=number, max_new_tokens=30, n=2 if number % 3 == 0 else 1,
            repetition_penalty=1.1, ignore_eos=True, logprobs=2 if number == 5 else None,
            prompt_logprobs=1 if number == 3 else None,
        )  # fmt: skip
        jobs.append((prompt, params))
    answers = []
    for model in pair:
        backend = model.engine.backend
        engine = Engine(backend, None, (), Limits(cache_bytes=8 * backend.block_bytes, most_running=5))
        requests = []
        for prompt, params in jobs:
            requests.append(engine.submit(prompt, params))
            left = engine.submit(prompt[:-1], params)
            engine.step()
            engine.cancel(left)
        while engine.step():
            engine.scheduler.blocks.check()
        assert engine.scheduler.counters.prefix_hits > 0
        found = [answer.completion for request in requests for answer in request.answers]
        assert all(one is not None and len(one.ids) == 30 for one in found)
        answers.append([(one.ids, one.logprobs) for one in found if one is not None])
    assert answers[0] == answers[1]


def test_caches_that_nobody_has_are_dropped_everywhere(pair: tuple[kiloq.Model, kiloq.Model]) -> None:
    backend = backend_of(pair[1])
    pair[1].generate(some_ids(20), max_new_tokens=3)
    pair[1].engine.forget()
    gc.collect()
    sequences = [backend.open() for _ in range(3)]
    assert sorted(backend._part._caches) == sorted(sequence.number for sequence in sequences)


def test_ctrl_c_in_a_step_leaves_the_stages_in_step(
    pair: tuple[kiloq.Model, kiloq.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, split = pair
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.7, "seed": 3, "ignore_eos": True}
    crew, waits = backend_of(split)._crew, 0
    wait = crew.wait

    def interrupted(future: Any, **how: Any) -> Any:
        nonlocal waits
        waits += 1
        if waits % 3 == 0:
            raise KeyboardInterrupt
        return wait(future, **how)

    with monkeypatch.context() as patch:
        patch.setattr(crew, "wait", interrupted)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                split.generate(some_ids(90), **options)
    assert split.generate(some_ids(90), **options).ids == whole.generate(some_ids(90), **options).ids  # type: ignore[union-attr]


def test_a_stage_runs_the_next_row_while_later_ones_have_the_first(pair: tuple[kiloq.Model, kiloq.Model]) -> None:
    """The last stage stands still meanwhile, so that the order is no matter of luck."""
    whole, split = pair
    backend, rows = backend_of(split), 6
    sequences = [backend.open() for _ in range(rows)]
    pieces = [Piece(sequence.number, 5, 1.0, 1) for sequence in sequences]
    os.kill(backend.pids[-1], signal.SIGSTOP)
    try:
        before = backend._crew.done[0]
        answers = backend._ask(pieces, [some_ids(5, number) for number in range(rows)], sequences)
        until = time.monotonic() + GONE_S
        while backend._crew.done[0] < before + rows:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not any(answer.done() for answer in answers)
    finally:
        os.kill(backend.pids[-1], signal.SIGCONT)
    other = whole.engine.backend
    outcomes = other.step([Row(other.open(), some_ids(5, number), 1.0, wanted=1) for number in range(rows)])
    for answer, outcome in zip(answers, outcomes, strict=True):
        np.testing.assert_array_equal(answer.result(GONE_S), outcome.logits_NV)


def test_layers_are_split_evenly_and_every_stage_reads_only_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [(share.begin, share.end) for share in shares(22, 4)] == [(0, 6), (6, 12), (12, 17), (17, 22)]
    assert str(shares(22, 4)[3]) == "stage 4 of 4 (layers 17 to 21)"
    with pytest.raises(UsageError, match="stages is 5 and the model has 4 layers: give 2 to 4"):
        kiloq.load(folder, stages=5)
    source, read = open_model(folder), []
    tensor = ModelSource.tensor
    monkeypatch.setattr(ModelSource, "tensor", lambda self, name: read.append(name) or tensor(self, name))
    for share in shares(LAYERS, 3):
        before = len(read)
        load_part(source, share, "cpu", "fp32", "fp32", lambda share: None)
        layers = {int(name.split(".")[1]) for name in read[before:] if name.startswith("layers.")}
        assert layers == set(range(share.begin, share.end))
    assert sorted(read) == sorted(source.names())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--stages", "2", "--engine", "native"], "stages is 2 and engine is native, which runs in one process: leave"),
        (["--stages", "0"], "stages is 0: it must be a whole number from 1 to 64"),
        (["--rendezvous", "127.0.0.1:29500"], "there is one stage: it takes two to meet"),
        (["--stages", "2", "--rendezvous", "127.0.0.1"], "write HOST:PORT, such as 127.0.0.1:29500"),
        (["--stages", "2", "--rendezvous", "0.0.0.0:0"], "lets everyone in: take 127.0.0.1, or say --rendezvous-any"),
        (["--stages", "2", "--rendezvous", "192.0.2.1:29500"], "is 192.0.2.1, which others can reach"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_one_sentence(options: list[str], told: str) -> None:
    result = CliRunner().invoke(serve_command, ["nothing", *options])
    assert isinstance(result.exception, UsageError)
    assert told in str(result.exception)


def test_an_address_that_others_reach_has_to_be_asked_for() -> None:
    assert not StagePlan(2, rendezvous="192.0.2.1:0", anywhere=True).loopback
    with pytest.raises(UsageError, match=r"cannot listen at rendezvous 192\.0\.2\.1:0 .*choose another port"):
        StagePlan(2, rendezvous="192.0.2.1:0", anywhere=True).listen()
    assert StagePlan(2, rendezvous="[::1]:7").address() == ("::1", 7)


def test_every_stage_has_a_gpu_of_its_own_or_all_are_on_the_cpu() -> None:
    assert StagePlan(3).places("cpu", 1) == ["cpu"] * 3
    assert StagePlan(2).places("cuda:1", 3) == ["cuda:1", "cuda:2"]
    with pytest.raises(UsageError, match="stages is 3 and there is 2 GPUs from cuda on: each stage needs a GPU"):
        StagePlan(3).places("cuda", 2)
    with pytest.raises(UsageError, match="there is device mps"):
        StagePlan(2).places("mps", 0)
