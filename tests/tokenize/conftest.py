"""Vocabularies once for all tests of this folder, and input of many shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import qwen_vocabulary

from kiloq.tokenize.corpus import run as corpus_run
from kiloq.tokenize.counting import count_pieces
from kiloq.tokenize.texts import Text
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.train import train
from kiloq.tokenize.vocabulary import qwen as qwen_of

from .corpora import SENTENCES, many_files


@pytest.fixture(scope="session")
def qwen() -> Tokenizer:
    return Tokenizer.load(qwen_vocabulary())


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small vocabulary."""
    pieces = count_pieces([Text("all", text) for text in SENTENCES], {}, 1, 1).pieces
    folder = tmp_path_factory.mktemp("vocabulary")
    Tokenizer(qwen_of(train(pieces, 300))).save(folder)
    return folder


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Input that becomes nine shards."""
    monkeypatch.setattr(corpus_run, "SHARD_BYTES", 1)
    return many_files(tmp_path / "many")
