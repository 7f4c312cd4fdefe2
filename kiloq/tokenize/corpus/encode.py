"""Texts to token ids, many at a time: fastokens where the vocabulary is byte-level, checked against the slow exact way.

fastokens (Apache-2.0) is six times as fast as tiktoken and gives the same ids on all that we have tried; here it gets
text in the vocabulary's normal form and knows no control tokens, so text never becomes one. What it says of a sample of
every shard is compared with kiloq's own Tokenizer, which is tiktoken for these vocabularies, so that a text on which
they differ cannot go by unnoticed for long. SentencePiece vocabularies, and those with tokens added for plain text, are
encoded by the Tokenizer itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Self

import numpy as np

from kiloq.core.errors import KiloqError, MissingError, UsageError
from kiloq.core.files import shown
from kiloq.tokenize.export import tokenizer_json
from kiloq.tokenize.normalize import nfc_batch, well_formed
from kiloq.tokenize.texts import Text
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.vocabulary import Vocabulary

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")  # what ends a document in the vocabularies that people use
CHECKED_CHARS = 20_000  # of a document that is checked; ours

Ids = np.ndarray[Any, np.dtype[np.uint32]]


class Encoder:
    """Documents to ids, each ended by the token that ends a document."""

    def __init__(self, tokenizer: Tokenizer, end_id: int) -> None:
        self.tokenizer, self.end_id = tokenizer, end_id

    @classmethod
    def load(cls, source: str, end: str | None = None) -> Self:
        """The encoder of a vocabulary by name, folder or file; `end` names the token that ends a document."""
        tokenizer = Tokenizer.load(source)
        return cls(tokenizer, _end_id(tokenizer, end))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer.json that the vocabulary is written as: two that encode alike have the same."""
        return hashlib.sha256(json.dumps(self._document, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _document(self) -> dict[str, Any]:
        return tokenizer_json(self.tokenizer.vocabulary)

    @property
    def fast(self) -> bool:
        """Whether fastokens can do it: a byte-level vocabulary whose added tokens all are control tokens."""
        vocabulary = self.tokenizer.vocabulary
        return isinstance(vocabulary, Vocabulary) and all(token.special for token in vocabulary.added)

    def encode(self, texts: Sequence[Text]) -> tuple[Ids, Ids]:
        """The ids of all texts in a row, uint32 [tokens], and how many each has, uint32 [texts]. No end tokens."""
        if not self.fast:
            lists = [self.tokenizer.encode(one.text, continues=one.continues) for one in texts]
            return np.array([id_ for ids in lists for id_ in ids], np.uint32), np.array(
                list(map(len, lists)), np.uint32
            )
        normal = nfc_batch if self.tokenizer.vocabulary.nfc else partial(map, well_formed)
        ids, offsets = self._fastokens.encode_batch_flat(list(normal([one.text for one in texts])))
        return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64)).astype(np.uint32)

    def check(self, text: str) -> None:
        """Raises KiloqError if the fast way gives other ids than the Tokenizer for the beginning of `text`."""
        sample = text[:CHECKED_CHARS]
        fast, _ = self.encode([Text("", sample)])
        if fast.tolist() != self.tokenizer.encode(sample):
            raise KiloqError(
                f"fastokens and tiktoken give different ids for the text that begins {shown(sample, 60)}: "
                "report this text, and use --exact meanwhile"
            )

    @cached_property
    def _fastokens(self) -> Any:
        os.environ.setdefault("RAYON_NUM_THREADS", "1")  # there is a process for every core already
        try:
            from fastokens import Tokenizer as Fast  # type: ignore[import-untyped]
        except ImportError:
            raise MissingError("encoding a corpus needs fastokens: run `pip install 'kiloq[data]'` to get it") from None
        plain: dict[str, Any] = {"added_tokens": [], "normalizer": None, "post_processor": None}
        return Fast.from_json_str(json.dumps({**self._document, **plain}))


class ExactEncoder(Encoder):
    """The same by the Tokenizer alone."""

    fast = False


def _end_id(tokenizer: Tokenizer, end: str | None) -> int:
    names = tokenizer.special_tokens
    if end is not None:
        if end not in names:
            raise UsageError(f"--end {shown(end)} is no control token: give one such as {shown(next(iter(names), ''))}")
        return names[end]
    found = next((names[name] for name in ENDS if name in names), None)
    if found is None and not tokenizer.eos_ids:
        raise UsageError("the vocabulary has no token that ends a document: name one of its control tokens by --end")
    return tokenizer.eos_ids[0] if found is None else found
