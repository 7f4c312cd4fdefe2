"""`kiloq bench` on a tiny model: what it prints is a record of plausible numbers, and bad input is one sentence."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from support import shared

from kiloq.core.errors import UsageError
from kiloq.generate import bench

MODEL = ("goldens", "model", "m18b")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LEAST_S", 0.01)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_the_record(engine: str) -> None:
    options = ["--prompt", "40", "--repeat", "2", "--json", "--engine", engine]
    done = CliRunner().invoke(bench.bench_command, [str(shared(*MODEL)), *options], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert record["weights"] == "fp32"
    assert record["engine"] in ("native", "torch")
    rates = [record[name] for name in record if name.endswith("_per_s")]
    assert len(rates) == 3
    assert all(rate > 1 for rate in rates)
    text = CliRunner().invoke(bench.bench_command, [str(shared(*MODEL)), *options[:4]], catch_exceptions=False).output
    assert "prefill tokens per s" in text


@pytest.mark.parametrize("options", [["--prompt", "0"], ["--repeat", "0"], ["--prompt", "100000"]])
def test_bad_numbers(options: list[str]) -> None:
    with pytest.raises(UsageError, match="--prompt is"):
        CliRunner().invoke(bench.bench_command, [str(shared(*MODEL)), *options], catch_exceptions=False)
