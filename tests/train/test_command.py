"""`kiloq train` as people mistype it: one sentence before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kiloq.core.errors import BusyError, KiloqError, UsageError
from kiloq.core.work import WorkFolder
from kiloq.train.command import train_command

from .runs import make_corpus

RECIPE = """steps = 1
sequence = 16
batch = 2
precision = "fp32"
[model]
hidden_size = 32
num_layers = 1
num_heads = 2
ffn_size = 64
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    make_corpus(folder / "corpus")
    (folder / "train.toml").write_text(RECIPE)
    (folder / "file").write_text("x")
    return folder


def arguments(place: Path, *more: str) -> list[str]:
    return [str(place / "train.toml"), "--data", str(place / "corpus"), *more]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "give --out, the folder to write, or --dry-run"),
        (["--out", "OUT", "--set", "tokenizer=/nowhere"], "/nowhere: there is no such file or folder"),
        (["--out", "OUT", "--set", "model.num_heads=5"], "hidden_size 32 is not a multiple of num_heads 5"),
        (["--out", "OUT", "--set", "start=/nowhere"], "/nowhere: there is no such file or folder"),
        (["--dry-run", "--gpu", "h10"], "did you mean 'h100'"),
        (["--dry-run", "--peak", "3"], "give both --peak and --memory"),
    ],
)
def test_what_is_wrong_is_said_before_a_step(place: Path, tmp_path: Path, more: list[str], sentence: str) -> None:
    out = tmp_path / "out"
    found = CliRunner().invoke(train_command, arguments(place, *(str(out) if word == "OUT" else word for word in more)))
    assert isinstance(found.exception, KiloqError) and sentence in str(found.exception), found.output
    assert not (out / "metrics.jsonl").exists()


def test_devices_and_places_that_are_none(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(train_command, arguments(place, "--device", "tpu")).exit_code == 2
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = CliRunner().invoke(train_command, arguments(place, "--out", str(tmp_path / "out"), "--device", "cuda"))
    assert isinstance(found.exception, UsageError) and "sees no GPU here" in str(found.exception)
    found = CliRunner().invoke(train_command, arguments(place, "--out", str(place / "file")))
    assert isinstance(found.exception, UsageError) and "is a file: give a folder" in str(found.exception)


def test_a_second_run_in_the_same_folder_is_refused(place: Path, tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "out").locked():
        found = CliRunner().invoke(train_command, arguments(place, "--out", str(tmp_path / "out")))
    assert isinstance(found.exception, BusyError) and "another kiloq is at work here" in str(found.exception)
    assert CliRunner().invoke(train_command, arguments(place, "--out", str(tmp_path / "out"))).exit_code == 0
