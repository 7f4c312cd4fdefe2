"""Vocabularies on disk: the .tiktoken format, and which file of a model folder is the one to read.

The reader believes nothing: a damaged line is a FormatError with the path and the line's number, and sizes, ranks and
repetitions are checked before tiktoken sees them (it aborts the process on a vocabulary without all 256 bytes).
Format: one token a line, base64 of its bytes, a space, its rank, which is both merge priority and id.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kiloq.core.errors import FormatError, MissingError
from kiloq.core.files import read_bounded
from kiloq.core.safe_json import load_object
from kiloq.tokenize import foreign, vocabulary
from kiloq.tokenize.vocabulary import BYTES, MAX_ID, AnyVocabulary

MAX_FILE_BYTES = 64 << 20  # ours; qwen.tiktoken has 2.6 MB
MAX_TOKEN_BYTES = 4096  # ours; Qwen's longest token has 128

TIKTOKEN_FILE, EXTRA_FILE = "qwen.tiktoken", "qwen_extra.tiktoken"

# Possessive, so that a damaged file is not tried again and again: the match ends where the first bad line begins.
_LINES = re.compile(rb"(?:[A-Za-z0-9+/]{1,%d}+={0,2}+ [0-9]{1,9}+\r?\n)*+" % (MAX_TOKEN_BYTES * 4 // 3 + 4))


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """The ranks of a complete .tiktoken file: from 0 without gaps, all 256 bytes among them."""
    ranks = read_ranks(path)
    if max(ranks.values()) != len(ranks) - 1:
        raise FormatError(
            f"{path}: has {len(ranks):,} tokens but ranks up to {max(ranks.values()):,}: "
            f"ranks must be 0 to {len(ranks) - 1:,}"
        )
    _need_all_bytes(ranks, path)
    return ranks


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and ranks (or ids) of a .tiktoken file: lines of base64, one space, a number; none twice."""
    data = read_bounded(path, MAX_FILE_BYTES)
    if not data.endswith(b"\n"):
        data += b"\n"
    good = _LINES.match(data)
    assert good is not None, "the expression matches the empty string"
    if good.end() != len(data) or not good.end() or data == b"\n":
        line = data.count(b"\n", 0, good.end()) + 1
        raise FormatError(f"{path}: line {line} is not a token in base64, a space and a rank")
    fields = data.split()
    try:
        tokens = list(map(binascii.a2b_base64, fields[::2]))
    except binascii.Error:
        raise FormatError(f"{path}: line {_first_bad_base64(fields[::2])} is not valid base64") from None
    numbers = list(map(int, fields[1::2]))
    ranks = dict(zip(tokens, numbers, strict=True))
    if b"" in ranks or len(ranks) != len(tokens) or len(set(numbers)) != len(numbers) or max(numbers) >= MAX_ID:
        raise FormatError(_first_fault(path, tokens, numbers))
    return ranks


def _first_bad_base64(fields: Sequence[bytes]) -> int:
    for line, text in enumerate(fields, start=1):
        try:
            binascii.a2b_base64(text)
        except binascii.Error:
            return line
    return 0


def _first_fault(path: Path, tokens: Sequence[bytes], numbers: Sequence[int]) -> str:
    seen_tokens: set[bytes] = set()
    seen_numbers: set[int] = set()
    for line, (token, number) in enumerate(zip(tokens, numbers, strict=True), start=1):
        if token in seen_tokens or number in seen_numbers:
            return f"{path}: line {line} repeats a {'token' if token in seen_tokens else 'rank'} of an earlier line"
        if number >= MAX_ID or not token:
            fault = f"the rank {number:,}" if token else "no token"
            return f"{path}: line {line} has {fault}: ranks must be below {MAX_ID:,} and tokens not empty"
        seen_tokens.add(token)
        seen_numbers.add(number)
    return f"{path}: has no usable lines"


def _need_all_bytes(tokens: Mapping[bytes, int], where: object) -> None:
    missing = [value for value in BYTES if value not in tokens]
    if missing:
        raise FormatError(
            f"{where}: has no token for {len(missing)} of the 256 bytes (the first is 0x{missing[0].hex()}): "
            "it is not a byte-level vocabulary"
        )


def read_folder(folder: Path) -> AnyVocabulary:
    """The vocabulary of a model folder: qwen.tiktoken, else tokenizer.json, else vocab.json with merges.txt."""
    if (folder / TIKTOKEN_FILE).is_file():
        found: AnyVocabulary = vocabulary.qwen(read_tiktoken(folder / TIKTOKEN_FILE))
        if (folder / EXTRA_FILE).is_file():
            found = found.extended(read_ranks(folder / EXTRA_FILE))
    elif (folder / "tokenizer.json").is_file():
        found = foreign.read_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        found = foreign.read_merges_txt(folder / "vocab.json", folder / "merges.txt")
    else:
        raise MissingError(f"{folder}: has no {TIKTOKEN_FILE}, tokenizer.json or vocab.json with merges.txt")
    config = folder / "tokenizer_config.json"
    return foreign.apply_config(found, load_object(config), folder) if config.is_file() else found
