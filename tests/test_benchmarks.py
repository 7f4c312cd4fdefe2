"""The benchmark programs of kiloq's own growth, memory and speculation run to their end and write what they promise.

Each runs as a command, in its short version; what it measures on a machine that others use says nothing, so no figure
that has to do with time is looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import shared, smollm2_gguf

PROGRAMS = Path(__file__).parents[1] / "benchmarks"

pytest.importorskip(
    "kiloq.native._native", reason="the native engine is not built: install kiloq where a C++ compiler is"
)


def figures_of(program: str, tmp_path: Path, *options: str) -> Any:
    """What a program's short version writes; skips where the default model or a tool is absent."""
    smollm2_gguf()
    if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler is here: the read bandwidth is measured by a C program")
    out = tmp_path / "out.json"
    command = [sys.executable, PROGRAMS / program, "--quick", "--cache", tmp_path, "--out", out, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert {"name", "command", "date", "machine", "commit", "figures"} == set(record)
    return record["figures"]


def text_is_here() -> None:
    """Skips where WikiText-2 or the program that unpacks it is absent."""
    shared("data", "pretrain_text", "wikitext2_test.txt.zst")
    if not shutil.which("zstd"):
        pytest.skip("the zstd program is not here: it unpacks the text")


def test_growth(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: it measures the rate of matrix products")
    figures = figures_of("growth.py", tmp_path)
    assert len(figures) == 5
    for series in figures.values():
        assert len(series["x"]) == len(series["measured_s"]) == len(series["computed_s"]) > 0
        assert min(series["measured_s"] + series["computed_s"]) > 0
        assert set(series["measured_fit_s"]) == set(series["computed_fit_s"])


def test_long_context(tmp_path: Path) -> None:
    text_is_here()
    figures = figures_of("long_context.py", tmp_path)
    full, windows = (figures["growth"][name]["cache_bytes"] for name in ("full", "windows of 64"))
    assert full["largest_residue"] < 0.01
    assert full["last_over_first"] == 4
    assert windows["last_over_first"] == 1
    plot = ElementTree.parse(tmp_path / "out.svg").getroot()
    assert len(plot.findall(".//{*}polyline")) == 6


def test_kv_cache(tmp_path: Path) -> None:
    text_is_here()
    figures = figures_of("kv_cache.py", tmp_path)
    cells = {(cell["length"], cell["streams"]): cell for cell in figures["cells"]}
    assert sorted(cells) == [(64, 1), (64, 2), (128, 1), (128, 2)]
    for (length, streams), cell in cells.items():
        assert cell["bf16"]["cache_bytes"] == length * streams * cells[64, 1]["bf16"]["cache_bytes"] // 64
        assert cell["int8"]["cache_bytes"] <= 0.55 * cell["bf16"]["cache_bytes"]
    (perplexity,) = figures["perplexity"].values()
    assert 1 < perplexity["bf16"] < 1000
    assert abs(perplexity["rise_percent"]) < 5


def test_speculation(tmp_path: Path) -> None:
    """That the answers are equal is checked by the program."""
    figures = figures_of("speculation.py", tmp_path)
    assert {ratio["floor"] for ratio in figures["ratios"]} == {1.5, 0.97}
    assert len(figures["answers"]) == 4
    assert all(0 < answer["steps_with_guesses"] <= answer["steps"] for answer in figures["answers"])


def test_sampling(tmp_path: Path) -> None:
    figures = figures_of("sampling.py", tmp_path)
    assert set(figures["share_of_step"]) == set(figures["steps_over_bare_steps"])
    assert figures["step_ms"] > 0
    assert len(figures["share_of_step"]) == 10


def test_loading(tmp_path: Path) -> None:
    figures = figures_of("loading.py", tmp_path)
    assert figures["packed_bytes"] > 0
    packed, mapped = (figures["ways"][name]["bytes"] for name in ("packed from the model", "mapped"))
    assert packed["own"] > 0 < mapped["own"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "quick.q4_0.gguf"]


def test_quantisation_speed(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: quantising needs it")
    figures = figures_of("quantisation_speed.py", tmp_path)
    assert figures["samples"] == 2
    assert min(figures[name] for name in ("seconds", "planned_seconds", "peak_bytes", "planned_bytes")) > 0


def test_quantisation_quality(tmp_path: Path) -> None:
    """One variant on the model that is trained here, in its place a folder that is quick to make."""
    pytest.importorskip("torch", reason="PyTorch is not installed: quantising needs it")
    text_is_here()
    train = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import trained; trained.STEPS = 2; trained.trained_folder(Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", train, PROGRAMS, tmp_path], check=True, timeout=100)
    out = tmp_path / "out.json"
    command = [
        sys.executable,
        PROGRAMS / "quantisation_quality.py",
        "--model",
        "trained",
        "--cache",
        tmp_path,
        "--out",
        out,
    ]
    subprocess.run([*command, "int4 rtn"], check=True, timeout=100)
    (variant,) = json.loads(out.read_text())["figures"]["trained"]["variants"].values()
    assert 10 < variant["perplexity_before"] < 256  # of 256 bytes, hardly trained
    assert variant["perplexity"] == pytest.approx(variant["perplexity_before"], rel=0.05)
