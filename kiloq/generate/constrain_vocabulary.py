"""A model's vocabulary as llguidance sees it: bytes of the tokens that can be in a text, and masks over them.

Control tokens, end tokens and rows that only pad the embedding have no bytes here, so that no text is made of them and
no grammar can name them; masks are cut to what is left once more. Where a form prescribes the text, llguidance asks
for its ids and allows only the first: the model then writes it as it was trained to, and not letter by letter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import MissingError
from kiloq.tokenize.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

MAX_TOKEN_BYTES = 1_000  # llguidance panics somewhere above 1,024; the longest token of Qwen's vocabulary has 128


def library() -> Any:
    """llguidance, imported when a form is first compiled."""
    try:
        import llguidance
    except ImportError:
        raise MissingError(
            "answers of a set form need llguidance: run `pip install 'kiloq[serve]'` to get it"
        ) from None
    return llguidance


class ConstraintVocabulary:
    """What llguidance knows of a model's vocabulary, and masks over it. Bits beyond the vocabulary are never set."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: frozenset[int], vocab_size: int) -> None:
        """Takes 0.3 s for 49,152 tokens and 0.6 s for 151,936."""
        self.eos_ids = eos_ids
        self._size = vocab_size
        control = eos_ids | frozenset(tokenizer.special_tokens.values())
        tokens = tokenizer.export_vocabulary().tokens[:vocab_size]
        tokens += [b""] * (vocab_size - len(tokens))
        speller = _Speller(tokenizer, [_text(token, i in control) for i, token in enumerate(tokens)], min(eos_ids))
        self.text_bits = self._packed([bool(token) for token in speller.tokens])
        self.eos_bits = self._packed([i in eos_ids for i in range(vocab_size)])
        self.library_tokenizer = library().LLTokenizer(speller, eos_token=sorted(eos_ids))

    def is_text(self, token: int) -> bool:
        """Whether `token` can be part of a text."""
        return 0 <= token < self._size and bool(self.text_bits[token >> 5] >> np.uint32(token & 31) & np.uint32(1))

    def next_bits(self, matcher: llguidance.LLMatcher) -> NDArray[np.uint32] | None:
        """The tokens that may come next; None after an error, when the mask that llguidance returns means nothing."""
        packed = matcher.compute_bitmask()
        if matcher.is_error():
            return None
        bits: NDArray[np.uint32] = np.frombuffer(packed, np.uint32)[: len(self.text_bits)] & self.text_bits
        return bits | self.eos_bits if matcher.is_accepting() else bits

    def unpacked(self, bits: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """A mask as one truth value for each token."""
        return np.unpackbits(bits.view(np.uint8), bitorder="little", count=self._size).view(np.bool_)

    def _packed(self, flags: list[bool]) -> NDArray[np.uint32]:
        octets = np.packbits(np.array(flags, np.bool_), bitorder="little")
        return np.pad(octets, (0, -len(octets) % 4)).view(np.uint32)


class _Speller:
    """The tokenizer as llguidance asks for it: the tokens' bytes, and the ids of a text that the form prescribes."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()  # none: tokens without bytes are in no text, and no grammar can name them

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], eos_id: int) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_id
        self._tokenizer = tokenizer
        self._id_of = {token: i for i, token in enumerate(tokens) if token}
        self._longest = max(map(len, tokens), default=0)

    def __call__(self, text: str) -> list[int]:
        """Ids whose bytes are exactly those of `text`, as the model would write it where that is possible."""
        data = text.encode("utf-8")
        ids = self._tokenizer.encode(text, normalize=False, continues=True)
        if b"".join(self.tokens[i] if i < len(self.tokens) else b"" for i in ids) == data:
            return ids
        return self._greedy(data)  # SentencePiece put a space before it, say

    def _greedy(self, data: bytes) -> list[int]:
        ids = []
        at = 0
        while at < len(data):
            longest = range(min(self._longest, len(data) - at), 0, -1)
            length = next((n for n in longest if data[at : at + n] in self._id_of), 1)
            ids.append(self._id_of.get(data[at : at + length], self.eos_token_id))  # an end token is never allowed here
            at += length
        return ids


def _text(token: bytes, control: bool) -> bytes:
    """The bytes of a token that may be in a text, else none. The byte 255 marks control tokens in llguidance."""
    return b"" if control or len(token) > MAX_TOKEN_BYTES or token.startswith(b"\xff") else token
