"""A kept vocabulary is the one that was read; anything wrong with it is as if it were not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import smollm2_gguf

from kiloq.tokenize import foreign
from kiloq.tokenize.kept import MOST_KEPT
from kiloq.tokenize.tokenizer import Tokenizer

TEXT = "Hello, wörld! 12345 \n\t 世界 <|im_start|> naïve"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KILOQ_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache" / "vocabularies"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(foreign.read_gguf(smollm2_gguf()))


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    target = tmp_path / "folder"
    target.mkdir()
    tokenizer.save(target)
    return target


def test_what_comes_back_is_what_was_read(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Tokenizer.load(folder)
    assert len(list(home.iterdir())) == 1
    monkeypatch.setattr(foreign, "read_tokenizer_json", None)  # is not called again
    again = Tokenizer.load(folder)
    assert again.vocabulary == read.vocabulary
    assert list(again.vocabulary.ranks) == list(read.vocabulary.ranks)
    assert again.encode(TEXT, special="all") == read.encode(TEXT, special="all")
    assert again.chat([{"role": "user", "content": TEXT}]) == read.chat([{"role": "user", "content": TEXT}])


def test_a_changed_source_is_read_again(home: Path, folder: Path) -> None:
    Tokenizer.load(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"<|im_end|>"', '"<|endoftext|>"'))
    os.utime(config, ns=(1, 1))
    assert Tokenizer.load(folder).vocabulary == Tokenizer.load(folder).vocabulary
    assert len(list(home.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"x", b"{}", b"0" * 64 + b"\n{}", b"\xff\xfe"])
def test_damage_is_not_believed(home: Path, folder: Path, damage: bytes) -> None:
    want = Tokenizer.load(folder).vocabulary
    (kept,) = home.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage or whole.replace(b'"nfc": false', b'"nfc": true '))
    assert Tokenizer.load(folder).vocabulary == want
    assert kept.read_bytes() == whole


def test_a_place_that_cannot_be_written_to_is_no_error(home: Path, folder: Path) -> None:
    home.parent.mkdir(parents=True)
    home.write_text("a file where the folder should be")
    assert Tokenizer.load(folder).encode("Hello")


def test_few_are_kept(home: Path, folder: Path) -> None:
    for day in range(MOST_KEPT + 3):
        os.utime(folder / "tokenizer.json", ns=(day, day))
        Tokenizer.load(folder)
    assert len(list(home.iterdir())) == MOST_KEPT
