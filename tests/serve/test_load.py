"""The load generator: what it counts, on a server whose pace is known."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from command_line import KILOQ, run
from serving import scripted_model, served

from kiloq.serve.load import Load, Seen, make_prompts, percentiles, report
from kiloq.serve.load import run as send


def test_percentiles_are_the_nearest_ranks() -> None:
    assert percentiles([float(value) for value in range(1, 101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_prompts_share_what_they_are_told_to_and_differ() -> None:
    prompts = make_prompts(5, 40, 0.5)
    assert len(set(prompts)) == 5 and len({tuple(prompt.split()[:20]) for prompt in prompts}) == 1
    assert make_prompts(5, 40, 0.5) == prompts != make_prompts(5, 40, 0.5, seed=1)


def test_goodput_counts_what_kept_both_limits() -> None:
    load = Load("http://x", "m", [], 8, first_s=1.0, between_s=0.1)
    fast = Seen(0.0, [0.5, 0.55, 0.6], 3, 0.6)
    late = Seen(0.0, [1.5, 1.55, 1.6], 3, 1.6)
    slow = Seen(0.0, [0.5, 0.9, 1.3], 3, 1.3)
    failed = Seen(0.0, [], 0, 0.1, "status 429")
    figures = report(load, [fast, late, slow, failed], 2.0)
    assert (figures["requests"], figures["answered"], figures["errors"]) == (4, 3, {"status 429": 1})
    assert (figures["tokens_per_s"], figures["goodput_requests_per_s"]) == (4.5, 0.5)
    assert figures["time_to_first_token_s"]["p50"] == 0.5


@pytest.mark.parametrize(("clients", "rate"), [(4, 0.0), (1, 200.0)])
def test_closed_and_open_loops_answer_everything(clients: int, rate: float) -> None:
    with served(scripted_model(delay_s=0.01)) as server:
        prompts = [f"say:{number} words" for number in range(12)]
        load = Load(server.url, "scripted", prompts, 50, clients, rate, ignore_eos=False)
        seen, seconds = asyncio.run(send(load))
        figures = report(load, seen, seconds)
    assert sorted(one.text for one in seen) == sorted(prompt.removeprefix("say:") for prompt in prompts)
    assert figures["answered"] == 12 and figures["tokens"] == sum(len(p) - 3 for p in prompts)
    assert figures["inter_token_s"]["p50"] <= figures["end_to_end_s"]["p99"]


def test_the_command_prints_one_object_and_fails_where_nobody_answers(tmp_path: Path) -> None:
    with served(scripted_model()) as server:
        command = ["bench", "serve", "--url", server.url, "--model", "scripted", "--requests", "3", "--json"]
        done = run(command, tmp_path, program=KILOQ)
        figures = json.loads(done.stdout)  # nobody told this model what to say
        assert (figures["requests"], figures["answered"], figures["errors"]) == (3, 0, {})
    done = run(["bench", "serve", "--url", "http://127.0.0.1:9", "--requests", "1"], tmp_path, program=KILOQ)
    assert done.returncode == 1 and "is a server there?" in done.stderr
