"""The Qwen tokenizer once for all tests of this folder."""

from __future__ import annotations

import pytest
from support import qwen_vocabulary

from kiloq.tokenize.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def qwen() -> Tokenizer:
    return Tokenizer.load(qwen_vocabulary())
