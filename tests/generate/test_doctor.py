"""`kiloq doctor`: it works when things are missing, and says what to do."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import KILOQ, run

from kiloq.generate import doctor


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setenv("KILOQ_HOME", str(tmp_path))
    return doctor.examine()


def test_json_is_one_object_and_text_has_every_fact(tmp_path: Path) -> None:
    secret = "sk-very-secret"
    done = run(["doctor", "--json"], tmp_path, program=KILOQ, OPENAI_API_KEY=secret, KILOQ_TOKEN=secret)
    shape = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert shape["packages"]["click"]
    assert shape["cpu"]["cores_allowed"] >= 1
    assert shape["memory"]["total"] > 0
    assert shape["assets"] == {"smollm2": False, "qwen-tokenizer": False}
    assert "smollm2 is not here: run kiloq get smollm2" in shape["warnings"]
    assert secret not in done.stdout


def test_assets_that_are_there(report: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models" / "smollm2"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert doctor.examine()["assets"] == {"smollm2": True, "qwen-tokenizer": False}


def test_torch_is_described(report: dict[str, Any]) -> None:
    import torch

    assert report["torch"]["version"] == torch.__version__
    assert "cpu" in report["torch"]["attention"]
    assert torch.__version__ in doctor.render(report)


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torch" else known(name))
    report = doctor.examine()
    assert report["torch"] is None
    assert not any("torch" in warning for warning in report["warnings"])  # the native engine needs none
    monkeypatch.setattr(doctor, "_native", lambda: None)
    report = doctor.examine()
    assert any("kiloq[train]" in warning for warning in report["warnings"])
    assert any("compiler" in warning for warning in report["warnings"])
    assert "missing" in doctor.render(report)
    assert "not built" in doctor.render(report)


def test_with_a_broken_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    report = doctor.examine()
    assert "error" in report["torch"]
    assert any(warning.startswith("torch does not start") for warning in report["warnings"])
    assert "broken" in doctor.render(report)


@pytest.mark.parametrize(
    ("section", "change", "warning"),
    [
        ("packages", {"regex": None}, "regex is not installed: run pip install regex"),
        ("memory", {"available": 1 << 30}, "1.0 GiB of memory can be used"),
        ("memory", {"limit": 1 << 30}, "1.0 GiB of memory can be used"),
        ("disk", {"free": 1 << 29}, "0.5 GiB of disk are free"),
        ("cpu", {"flags": ["fma"]}, "the processor has neither AVX2 nor NEON"),
        ("cpu", {"core_quota": 0.5}, "torch uses"),
        ("terminal", {"encoding": "latin-1"}, "the terminal's encoding is not UTF-8"),
        ("terminal", {"encoding": None}, "the terminal's encoding is not UTF-8"),
    ],
)
def test_advice(section: str, change: dict[str, Any], warning: str, report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed[section] |= change
    assert any(sentence.startswith(warning) for sentence in doctor.advise(changed))


def test_a_machine_that_says_nothing(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["memory"] = {"total": None, "available": None, "limit": None}
    changed["disk"]["free"] = None
    changed["cpu"] |= {"flags": [], "model": "", "core_quota": None}
    changed["warnings"] = doctor.advise(changed)
    assert "unknown of unknown" in doctor.render(changed)
