"""GGUF metadata of a SentencePiece vocabulary ("llama"): tokens, scores and types, padded to the rows of the embedding.

llama.cpp merges by score alone and puts a space before every stretch of text or before none. So a token that is in a
tokenizer.json without merges that lead to it, and that llama.cpp would make all the same, is written under a name that
no text has; and of the ways to put a space only before some texts the nearest is written.
Source: llama.cpp, src/llama-vocab.cpp; gguf-py/gguf/constants.py for the types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kiloq.tokenize.sentencepiece import BYTE_NAMES, PieceBPE, PieceVocabulary
from kiloq.tokenize.vocabulary import AnyVocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of GGUF
LAST = -1e9  # a score below all others


def piece_metadata(vocabulary: PieceVocabulary, rows: int) -> dict[str, Any]:
    """tokenizer.ggml.* without roles. `rows` must not be less than the vocabulary's size."""
    types, scores = np.full(rows, UNUSED, np.int32), np.full(rows, LAST, np.float32)
    texts = _names(vocabulary, rows)
    for text, token_id in vocabulary.ids.items():
        if texts[token_id] == text:
            types[token_id], scores[token_id] = NORMAL, vocabulary.scores.get(text, LAST if len(text) > 1 else 0.0)
    types[list(vocabulary.byte_ids)], scores[list(vocabulary.byte_ids)] = BYTE, 0.0
    for added in vocabulary.added:
        types[added.id] = CONTROL if added.special else USER_DEFINED
        scores[added.id] = vocabulary.scores.get(added.text, 0.0)
    if vocabulary.unk_id is not None:
        types[vocabulary.unk_id] = UNKNOWN
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": vocabulary.puts_space,
        "tokenizer.ggml.add_eos_token": vocabulary.add_eos,
    }
    return values if vocabulary.unk_id is None else values | {"tokenizer.ggml.unknown_token_id": vocabulary.unk_id}


def piece_notes(vocabulary: AnyVocabulary) -> list[str]:
    """What llama.cpp will do otherwise, one sentence each."""
    if not isinstance(vocabulary, PieceVocabulary) or vocabulary.spaces.prefix not in ("missing", "first"):
        return []
    after = " and before text after a control token" if vocabulary.spaces.prefix == "first" else ""
    return [f"llama.cpp also puts a space before text that begins with one{after}, where this tokenizer puts none"]


def _names(vocabulary: PieceVocabulary, rows: int) -> list[str]:
    """A text for each row. llama.cpp ends the process where two are equal, so the less important one goes without."""
    hidden = _made_only_there(vocabulary)
    names: dict[int, str] = {token.id: token.text for token in reversed(vocabulary.added)}
    others = {token_id: text for text, token_id in vocabulary.ids.items() if text not in hidden}
    others |= {at: token.decode("utf-8", "replace") for at, token in vocabulary.unreachable.items()}
    for more in (dict(zip(vocabulary.byte_ids, BYTE_NAMES, strict=True)), others):
        taken = set(names.values())
        for token_id, text in more.items():
            if text and text not in taken and token_id not in names:
                names[token_id] = text
                taken.add(text)
    taken = set(names.values())
    for at in range(rows):
        blank = f"[PAD{at}]"
        while at not in names and blank in taken:
            blank = f"[{blank}]"
        names.setdefault(at, blank)
    return [names[at] for at in range(rows)]


def _made_only_there(vocabulary: PieceVocabulary) -> set[str]:
    """Tokens that llama.cpp would make from the written scores, and this vocabulary does not."""
    if not vocabulary.by_pair:
        return set()
    spare = [text for text in vocabulary.ids if len(text) > 1 and text not in vocabulary.pair_of]
    order = {text: -score for text, score in vocabulary.scores.items()} | dict.fromkeys(spare, -LAST)
    there = PieceBPE(vocabulary.ids, vocabulary.byte_ids, order)
    return {text for text in spare if there.merged(text)[0] == [text]}
