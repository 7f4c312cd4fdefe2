"""A backend whose next tokens are scripted, and a vocabulary of single bytes: the engine's rules without a network."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

import numpy as np

from kiloq.generate.backend import Outcome, Row, drawn
from kiloq.model.config import ModelConfig

EOS = 256


class ByteVocabulary:
    """Token ids 0..255 are bytes, 256 ends a text."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b"<end>"

    def stream(self, *, skip_special: bool = False, continues: bool = False) -> ByteDecoder:
        assert skip_special
        return ByteDecoder()


class ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]) if token < 256 else b"")

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ScriptedBackend:
    """Logits are a function of the whole sequence; counts what it was asked."""

    name, dtype, device, takes_guesses, exact_cuts = "scripted", "fp32", "cpu", False, True
    block_tokens, block_bytes = 4, 1

    def __init__(self, next_token: Callable[[list[int]], int], blocks: int = 1 << 20, **config: object) -> None:
        self.cache_limit_bytes = blocks
        sizes = dict(vocab_size=257, hidden_size=8, num_layers=1, num_heads=1, ffn_size=8, train_length=10_000)
        self.config = ModelConfig(**(sizes | config))
        self._next_token = next_token
        self.calls: list[list[tuple[int, float]]] = []  # (tokens, alpha) of every row of every call
        self.open_sequences = 0

    def open(self, pages: Sequence[list[int]] = ()) -> list[int]:
        return [token for page in pages for token in page]

    def page(self, sequence: list[int], index: int) -> list[int]:
        return sequence[index * self.block_tokens : (index + 1) * self.block_tokens]

    def fork(self, sequence: list[int]) -> list[int]:
        return list(sequence)

    def step(self, rows: list[Row]) -> list[Outcome]:
        self.calls.append([(len(row.ids), row.alpha) for row in rows])
        outcomes = []
        for row in rows:
            row.sequence.extend(row.ids)
            outcomes.append(drawn(row, self._rows(row)))
        return outcomes

    def _rows(self, row: Row) -> np.ndarray:
        count, length = max(row.wanted, 1), len(row.sequence)
        return np.stack([self._logits(row.sequence[: length - i]) for i in reversed(range(count))])

    def _logits(self, sequence: list[int]) -> np.ndarray:
        logits = np.full(self.config.vocab_size, -10.0, dtype=np.float32)
        logits[self._next_token(sequence)] = 10.0
        return logits

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.stack([self._logits(ids[: i + 1]) for i in range(len(ids))])
