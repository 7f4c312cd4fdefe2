"""What form an answer must have, as data: checked, bounded and hashable before anything compiles it.

A `ConstraintSpec` comes from a stranger's request, so its constructors refuse what is too large, too deep or points
outside the schema, and they keep one canonical text: equal texts are equal specs, and the compiler's cache keys on it.
The order of a schema's properties is part of that text, because answers follow it. Nothing here knows llguidance.
Sources: the advisories on grammar compilers (xgrammar GHSA-389x-67px-mjg3, vLLM issues 17248 and 17313) for what to
bound; OpenAI's `response_format` and vLLM's `guided_*` for the kinds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kiloq.core.errors import UsageError
from kiloq.core.files import shown

Kind = Literal["json_object", "json_schema", "regex", "grammar", "choice"]

NAMES: Mapping[Kind, str] = {
    "json_object": "JSON object",
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "grammar": "grammar",
    "choice": "list of choices",
}

MAX_TEXT_BYTES = 64 << 10  # ours; the largest tool schemas in use have about 30 KB, and compiling grows with the text
MAX_REGEX_BYTES = 8 << 10  # ours; a longer expression is a word list, which "choice" does faster
MAX_DEPTH = 32  # ours; every level of objects takes two; OpenAI's structured outputs allow 10 levels
MAX_ENUM_ENTRIES = 1_000  # OpenAI's structured outputs allow 1,000 in a schema
MAX_ALL_ENUM_ENTRIES = 10_000  # ours; of all lists of a schema together
MAX_CHOICES = 1_000  # as for an enum, which it is


@dataclass(frozen=True)
class ConstraintSpec:
    """A form that an answer must have. Make one with the constructor of its kind: each raises UsageError."""

    kind: Kind
    text: str  # canonical: JSON of a schema or of a list of choices, an expression or grammar as it came

    @classmethod
    def json_object(cls) -> ConstraintSpec:
        """Any JSON object."""
        return cls("json_object", '{"type":"object"}')

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> ConstraintSpec:
        """JSON that satisfies `schema` (draft 2020-12, as far as llguidance has it); nothing remote is ever fetched."""
        if not isinstance(schema, dict):
            raise UsageError(f"the JSON schema is {_kind(schema)}: give an object in braces")
        _check_schema(schema)
        try:
            text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:  # what JSON has no word for, NaN, numbers of thousands of digits
            raise UsageError(f"the JSON schema is not JSON: {str(error).splitlines()[0]}: correct it") from None
        return cls("json_schema", _checked(text, "json_schema", MAX_TEXT_BYTES))

    @classmethod
    def regex(cls, pattern: str) -> ConstraintSpec:
        """A text that `pattern` matches from its beginning to its end, in the syntax of Rust's regex crate."""
        return cls("regex", _checked(pattern, "regex", MAX_REGEX_BYTES))

    @classmethod
    def grammar(cls, lark: str) -> ConstraintSpec:
        """A text of a context-free grammar, in llguidance's variant of Lark's syntax."""
        return cls("grammar", _checked(lark, "grammar", MAX_TEXT_BYTES))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> ConstraintSpec:
        """Exactly one of `texts`."""
        if (
            isinstance(texts, str)
            or not isinstance(texts, Sequence)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise UsageError("the list of choices is not a list of texts: give a list of strings")
        if not 1 <= len(texts) <= MAX_CHOICES:
            raise UsageError(f"the list of choices has {len(texts):,} entries: give 1 to {MAX_CHOICES:,}")
        text = json.dumps(list(texts), ensure_ascii=False, separators=(",", ":"))
        return cls("choice", _checked(text, "choice", MAX_TEXT_BYTES))


def _checked(text: object, kind: Kind, limit: int) -> str:
    """`text`, if it is one that UTF-8 can hold, not empty and within `limit` bytes."""
    if not isinstance(text, str):
        raise UsageError(f"the {NAMES[kind]} is {_kind(text)}: give a text")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X}"
        raise UsageError(f"the {NAMES[kind]} holds half a surrogate pair, {found}: give whole characters") from None
    if not text:
        raise UsageError(f"the {NAMES[kind]} is empty: give one, or leave it out")
    if size > limit:
        raise UsageError(f"the {NAMES[kind]} has {size:,} bytes: at most {limit:,} are compiled, so make it shorter")
    return text


def _check_schema(schema: dict[str, Any]) -> None:
    """Refuses a schema that is too deep or large, fetches, or switches llguidance's own rules."""
    if "x-guidance" in schema:  # "lenient" would ignore keywords, separators could make the answer something else
        raise UsageError("the JSON schema has the key x-guidance, which changes how it is read: remove it")
    entries = 0
    for key, value in _members(schema):
        if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str) and not value.startswith("#"):
            raise UsageError(f"the JSON schema refers to {shown(value)}: only references inside it, #..., are followed")
        if key == "enum" and isinstance(value, list):
            entries += len(value)
            if len(value) > MAX_ENUM_ENTRIES:
                raise UsageError(
                    f"an enum of the JSON schema has {len(value):,} entries: give up to {MAX_ENUM_ENTRIES:,}"
                )
    if entries > MAX_ALL_ENUM_ENTRIES:
        raise UsageError(
            f"the enums of the JSON schema have {entries:,} entries together: give up to {MAX_ALL_ENUM_ENTRIES:,}"
        )


def _members(schema: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Every key with its value in all objects of a schema. Bounds depth and number of values on the way.

    A value takes a byte of text at least, so a schema with more values than bytes are allowed is refused before it is
    written: one made in Python may hold the same part twice at each of its levels, and so be of any size.
    """
    pending: list[tuple[Any, int]] = [(schema, 1)]
    seen = 0
    while pending:
        value, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise UsageError(f"the JSON schema is nested more than {MAX_DEPTH} deep: use $defs and $ref, or flatten it")
        if seen + len(pending) > MAX_TEXT_BYTES:
            raise UsageError(f"the JSON schema has more than {MAX_TEXT_BYTES:,} values: make it shorter")
        if isinstance(value, dict):
            yield from value.items()
            pending += [(inner, depth + 1) for inner in value.values() if isinstance(inner, (dict, list, tuple))]
        else:
            pending += [(inner, depth + 1) for inner in value if isinstance(inner, (dict, list, tuple))]


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
