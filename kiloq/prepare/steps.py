"""The steps that a recipe can name, and how a table of a recipe becomes one.

A table has `kind`, the step's name, and its fields; everything else is an error that names the nearest. TOML has no
null, so `false` switches a rule off whose field may be None, and a list stands for a tuple.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin, get_type_hints

from kiloq.core.errors import UsageError
from kiloq.prepare.clean import Clean
from kiloq.prepare.documents import Step
from kiloq.prepare.extract import Extract
from kiloq.prepare.language import Language
from kiloq.prepare.pii import PersonalData
from kiloq.prepare.rules.c4 import C4
from kiloq.prepare.rules.chinese import Chinese
from kiloq.prepare.rules.fineweb import FineWeb
from kiloq.prepare.rules.gopher import Gopher, GopherRepetition
from kiloq.prepare.words import BadWords

STEPS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (Extract, Clean, Language, C4, Gopher, GopherRepetition, FineWeb, Chinese, PersonalData, BadWords)
}


def make_step(table: Mapping[str, Any]) -> Step:
    """The step that a recipe's table describes. Raises UsageError for what is unknown, missing or of another type."""
    name = table.get("kind")
    if not isinstance(name, str):
        raise UsageError(f"a step has no kind: give kind = one of {', '.join(STEPS)}")
    if name not in STEPS:
        raise UsageError(f"the step {name!r:.60} is not known: {_nearest(name, STEPS)}")
    kind = STEPS[name]
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(kind) if field.init}
    values = {}
    for key, value in table.items():
        if key == "kind":
            continue
        if key not in known:
            raise UsageError(f"{name}: the field {key!r:.60} is not known: {_nearest(key, known)}")
        values[key] = _fitted(name, key, value, known[key])
    step: Step = kind(**values)
    return step


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error's sentence: the likeliest name, or all."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(known)}"


def _fitted(step: str, key: str, value: Any, hint: Any) -> Any:
    """`value` as a field of type `hint` takes it."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if types.NoneType in options and (value is None or (value is False and bool not in options)):
        return None
    for option in options:
        if get_origin(option) is tuple and isinstance(value, list | tuple):
            inner = get_args(option)[0]
            return tuple(_fitted(step, key, item, inner) for item in value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (bool, str, int) and type(value) is option:
            return value
    expected = " or ".join(_called(option) for option in options)
    raise UsageError(f"{step}: {key} is {value!r:.60}: {expected} was expected")


def _called(hint: Any) -> str:
    """A type as people call it."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "false"}
    return "a list" if get_origin(hint) is tuple else plain.get(hint, str(hint))
