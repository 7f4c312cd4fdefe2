"""Single entries of tokenizer.json and of GGUF metadata, checked: what is wrong is a FormatError that names file and entry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiloq.core.errors import FormatError
from kiloq.core.files import shown
from kiloq.tokenize.vocabulary import MAX_ID, AddedToken

MAX_TEMPLATE_CHARS = 64 << 10  # ours; the longest chat templates in use have 20 KB


def table(value: Any, name: str, path: Path) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise FormatError(f"{path}: its entry {name} is, or holds, something that is not an object")
    return value


def rows(value: Any, name: str, path: Path) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise FormatError(f"{path}: its entry {name} is not a list")
    return value


def token_ids(value: Any, path: Path) -> dict[str, int]:
    """The `vocab` of tokenizer.json or vocab.json: token to id, no id twice."""
    found = table(value, "vocab", path)
    if any(type(token_id) is not int or not 0 <= token_id < MAX_ID for token_id in found.values()):
        raise FormatError(f"{path}: has a token whose id is not a number from 0 to {MAX_ID - 1:,}")
    if len(set(found.values())) != len(found):
        raise FormatError(f"{path}: gives two tokens the same id")
    return found


def pair(value: Any, path: Path) -> tuple[str, str]:
    """A merge: two tokens in a list, or in a string with one space between them."""
    halves = value.split(" ") if type(value) is str else value
    if type(halves) is list and len(halves) == 2 and type(halves[0]) is type(halves[1]) is str:
        return halves[0], halves[1]
    raise FormatError(f"{path}: {shown(value)} is not a merge of two tokens")


def added_token(value: Any, path: Path) -> AddedToken:
    """An entry of `added_tokens`."""
    row = table(value, "added_tokens", path)
    text, token_id = row.get("content"), row.get("id")
    if not isinstance(text, str) or not text or type(token_id) is not int or not 0 <= token_id < MAX_ID:
        raise FormatError(f"{path}: the added token {shown(row)} has no text or no id from 0 to {MAX_ID - 1:,}")
    flags = {name: row.get(name) is True for name in ("special", "normalized", "lstrip", "rstrip", "single_word")}
    return AddedToken(text, token_id, **flags)


def entry(metadata: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    """A metadata entry of the right type, or None where it is absent; vocabularies must be there."""
    value = metadata.get(f"tokenizer.{key}")
    if value is None and key not in ("ggml.tokens", "ggml.merges", "ggml.model"):
        return None
    if not isinstance(value, kind):
        raise FormatError(f"{path}: its metadata entry tokenizer.{key} is missing or not of type {kind.__name__}")
    return value


def strings(values: list[Any], name: str, path: Path) -> list[str]:
    """A metadata list of strings, of sane length."""
    if not all(isinstance(value, str) for value in values) or len(values) > MAX_ID:
        raise FormatError(f"{path}: its {name} are not a list of at most {MAX_ID:,} strings")
    return values


def tokens_and_types(metadata: Mapping[str, Any], path: Path) -> tuple[list[str], list[int]]:
    """A GGUF's tokens with their types (gguf.TokenType; 1, normal, where the file has none)."""
    tokens = strings(entry(metadata, "ggml.tokens", list, path), "tokens", path)
    types = entry(metadata, "ggml.token_type", list, path) or [1] * len(tokens)
    if len(types) != len(tokens):
        raise FormatError(f"{path}: has {len(tokens):,} tokens but {len(types):,} token types")
    return tokens, types


def role(metadata: Mapping[str, Any], name: str, size: int, path: Path) -> int | None:
    """The id of a role such as "bos" in GGUF metadata, below `size`; None where there is none."""
    token_id: int | None = entry(metadata, f"ggml.{name}_token_id", int, path)
    if token_id is not None and not 0 <= token_id < size:
        raise FormatError(f"{path}: its {name} token is {token_id:,}, but the vocabulary has {size:,} tokens")
    return token_id


def checked_template(template: Any, path: Path) -> str | None:
    """A chat template that is a string of sane length, or None."""
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE_CHARS:
        raise FormatError(f"{path}: its chat template is not a string of at most {MAX_TEMPLATE_CHARS:,} characters")
    return template
