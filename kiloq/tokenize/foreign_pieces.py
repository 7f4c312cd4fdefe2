"""SentencePiece vocabularies in GGUF metadata ("llama") and in tokenizer.json (BPE with byte_fallback).

GGUF has tokens with scores and types; a missing setting is llama.cpp's default. tokenizer.json lists pairs, and says
with normalisers (Prepend, Replace) or with the pre-tokeniser Metaspace what becomes of spaces. Names of bytes are
never looked for in text, not even where a file lists them as added tokens. Sources: huggingface/tokenizers'
serialisation; llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiloq.core.errors import FormatError
from kiloq.core.files import shown
from kiloq.tokenize import fields
from kiloq.tokenize.sentencepiece import BYTE_NAMES, SPACE, PieceVocabulary, Spaces
from kiloq.tokenize.vocabulary import END_NAMES, IM_START, AddedToken

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # GGUF token types; all others are tokens that a text can become
CONTROL_NAMES = frozenset({*END_NAMES, IM_START})  # whatever their type: converters of 2023 called them user-defined
DEFAULT_BOS, DEFAULT_EOS = 1, 2  # llama.cpp's, where the file does not say; there are at least 256 tokens
BYTES = frozenset(BYTE_NAMES)
MAX_TOKEN_CHARS = 1024  # ours; SentencePiece makes tokens of 16 characters unless told otherwise

_LLAMA, _FALLBACK = "has a tokenizer of the kind 'llama'", "sets byte_fallback"  # what needs all bytes
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREFIXES = {"always": "missing", "first": "first", "never": "never"}  # Metaspace's prepend_scheme -> Spaces.prefix
_DIRECTIVES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


def from_gguf(metadata: Mapping[str, Any], path: Path) -> PieceVocabulary:
    """The vocabulary of GGUF metadata; roles are llama.cpp's defaults."""
    tokens, types = fields.tokens_and_types(metadata, path)
    if fields.entry(metadata, "ggml.remove_extra_whitespaces", bool, path):
        raise FormatError(
            f"{path}: removes extra white space from text, which kiloq does not do: use the model's folder"
        )
    prefix = fields.entry(metadata, "ggml.add_space_prefix", bool, path) is not False
    added, ids, order = [], {}, {}
    for token_id, (text, kind, score) in enumerate(
        zip(tokens, types, _scores(metadata, len(tokens), path), strict=True)
    ):
        kind = CONTROL if text in CONTROL_NAMES else kind  # noqa: PLW2901
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and text:
            added.append(AddedToken(text, token_id, special=kind != USER_DEFINED))
        if kind not in (UNKNOWN, CONTROL, BYTE) and text and text not in BYTES:
            ids[text] = token_id  # of equal tokens the last one counts
            order[text] = -score
    byte_ids = _byte_ids({text: token_id for token_id, text in enumerate(tokens) if text in BYTES}, _LLAMA, path)
    _check_lengths(ids, path)
    used = {*ids.values(), *byte_ids, *(token.id for token in added)}
    return PieceVocabulary(
        ids,
        byte_ids,
        {text: rank for text, rank in order.items() if len(text) > 1},
        Spaces("always" if prefix else "never"),
        unk_id=fields.role(metadata, "unknown", len(tokens), path),
        added=tuple(added),
        unreachable={at: text.encode("utf-8", "replace") for at, text in enumerate(tokens) if at not in used},
        add_bos=True,
        bos_id=DEFAULT_BOS,
        eos_id=DEFAULT_EOS,
    )


def _scores(metadata: Mapping[str, Any], count: int, path: Path) -> list[float]:
    """A score for each token; files without have 0 for all."""
    scores: list[float] | None = fields.entry(metadata, "ggml.scores", list, path)
    if scores is None:
        return [0.0] * count
    if len(scores) != count or not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
        raise FormatError(f"{path}: its scores are not one finite number for each of the {count:,} tokens")
    return scores


def _byte_ids(found: Mapping[str, int], said: str, path: Path) -> tuple[int, ...]:
    missing = [name for name in BYTE_NAMES if name not in found]
    if missing:
        raise FormatError(
            f"{path}: {said}, but has no token for {len(missing)} of the 256 bytes (the first is {missing[0]}): "
            "some characters could not be written"
        )
    return tuple(found[name] for name in BYTE_NAMES)


def _check_lengths(ids: Mapping[str, int], path: Path) -> None:
    longest = max(ids, key=len, default="")
    if len(longest) > MAX_TOKEN_CHARS:
        raise FormatError(f"{path}: has a token of {len(longest):,} characters: at most {MAX_TOKEN_CHARS:,} are read")


def from_json(document: Mapping[str, Any], path: Path) -> PieceVocabulary:
    """The vocabulary of a tokenizer.json whose model is BPE with byte_fallback; without roles."""
    model = fields.table(document.get("model"), "model", path)
    for setting in _DIRECTIVES:
        if model.get(setting):
            raise FormatError(
                f"{path}: sets {setting} = {shown(model[setting])}, which SentencePiece models do not use"
            )
    listed = fields.token_ids(model.get("vocab"), path)
    rows = fields.rows(document.get("added_tokens", []), "added_tokens", path)
    added = [token for row in rows if (token := fields.added_token(row, path)).text not in BYTES]
    control = {token.text for token in added if token.special}
    ids = {text: token_id for text, token_id in listed.items() if text not in control and text not in BYTES}
    _check_lengths(ids, path)
    merges: dict[tuple[str, str], int] = {}
    for rank, entry in enumerate(fields.rows(model.get("merges"), "merges", path)):
        left, right = fields.pair(entry, path)
        if left not in listed or right not in listed or left + right not in listed:
            raise FormatError(
                f"{path}: merge {rank + 1} ({shown(f'{left} {right}')}) does not make a token of the vocabulary"
            )
        if left in ids and right in ids and left + right in ids:  # else it would make, or use, a control token or byte
            merges[left, right] = rank
    unknown = model.get("unk_token")
    byte_ids = _byte_ids({name: token_id for name, token_id in listed.items() if name in BYTES}, _FALLBACK, path)
    used = {*ids.values(), *byte_ids}
    return PieceVocabulary(
        {text: token_id for text, token_id in ids.items() if text},
        byte_ids,
        merges,
        _spaces(document.get("normalizer"), document.get("pre_tokenizer"), path),
        unk_id=listed.get(unknown) if isinstance(unknown, str) else None,
        added=tuple(added),
        unreachable={number: text.encode("utf-8", "replace") for text, number in listed.items() if number not in used},
    )


def _spaces(normalizer: Any, pre_tokenizer: Any, path: Path) -> Spaces:
    """What becomes of spaces: normalisers Prepend and Replace, or the pre-tokeniser Metaspace."""
    steps = _steps(normalizer, "normalizers")
    if pre_tokenizer is None and steps in ([_PREPEND, _REPLACE], [_REPLACE]):
        return Spaces("always" if _PREPEND in steps else "never")
    known = isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Metaspace" and not steps
    if known and pre_tokenizer.get("replacement") == SPACE:
        old = "always" if pre_tokenizer.get("add_prefix_space", True) else "never"
        scheme = pre_tokenizer.get("prepend_scheme", old)
        if isinstance(scheme, str) and scheme in _PREFIXES:
            return Spaces(_PREFIXES[scheme], late=True, split=pre_tokenizer.get("split", True) is not False)  # type: ignore[arg-type]
    kinds = [step.get("type") if isinstance(step, dict) else step for step in [*steps, pre_tokenizer]]
    raise FormatError(
        f"{path}: prepares text with {shown(kinds)} in a form that is not read: a BPE with byte_fallback can have the "
        "normalisers Prepend and Replace, or the pre-tokeniser Metaspace"
    )


def _steps(value: Any, name: str) -> list[Any]:
    """The steps of a normaliser, one or a sequence of them."""
    if value is None:
        return []
    steps = value.get(name) if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    return steps if isinstance(steps, list) else [steps]
