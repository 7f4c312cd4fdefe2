"""What a caller may give in place of token ids and messages, and one sentence for everything else.

Ids may come as a list, a NumPy array or a torch tensor of whole numbers. Floats, booleans and bytes are refused even
where Python would take them for numbers: they are mistakes, and the answer to a mistake looks like an answer.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kiloq.core.errors import UsageError
from kiloq.tokenize.chatml import Message, checked_messages


def token_ids(value: object, *, name: str = "the prompt") -> list[int]:
    """Token ids as a list of Python's own whole numbers. Raises UsageError, which calls them `name`, for all else."""
    ordered = isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, Mapping, set, frozenset))
    if not ordered or getattr(value, "ndim", 1) != 1:
        raise UsageError(
            f"{name} is {_kind(value)}: it can be {'a text or ' * (name == 'the prompt')}a list of token ids"
        )
    if getattr(getattr(value, "dtype", None), "kind", "i") not in "iu":
        raise UsageError(f"{name} is {_kind(value)}, but token ids are whole numbers")
    return [_token_id(item, place, name) for place, item in enumerate(value)]  # type: ignore[arg-type, var-annotated]


def _token_id(item: Any, place: int, name: str) -> int:
    try:
        if not isinstance(item, bool):
            return operator.index(item)
    except TypeError:
        pass
    raise UsageError(f"item {place} of {name} is {item!r:.60}: a token id must be a whole number")


def _kind(value: object) -> str:
    if value is None:
        return "None"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return f"of type {type(value).__name__}" + (
        f" with shape {tuple(shape)} and dtype {dtype}" if shape is not None else ""
    )


def conversation(messages: object) -> Sequence[Message]:
    """A conversation of at least one message dict. Raises UsageError for anything else."""
    checked = checked_messages(messages)
    if not checked:
        raise UsageError("'messages' is empty: give at least one message")
    return checked
