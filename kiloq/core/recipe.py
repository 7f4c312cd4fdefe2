"""Recipes: a TOML file with only the differences from the defaults, read into frozen dataclasses.

A recipe is data and never code. Every table becomes one dataclass whose fields say what it can hold; an unknown key is
an error that names the nearest one, a value of another type an error that says what was expected. TOML has no null, so
`false` switches off a field that may be None, and a list stands for a tuple. `--set a.b=c` changes a value before the
tables are read. Source: TOML 1.0.
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from kiloq.core.errors import FormatError, UsageError
from kiloq.core.files import read_bounded, shown

MAX_RECIPE_BYTES = 1 << 20  # ours; a recipe is read by people
MOST = 10**18  # of a whole number; no field needs more
MAPPINGS = (dict, Mapping)

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a recipe. Raises MissingError or FormatError with the line that cannot be read."""
    data = read_bounded(path, MAX_RECIPE_BYTES)
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: byte {error.start:,} is not UTF-8: save the recipe as UTF-8 text") from None
    except ValueError as error:  # TOMLDecodeError, and Python's own for numbers of thousands of digits
        raise FormatError(f"{path}: is not TOML: {str(error)[:200]}") from None
    except RecursionError:
        raise FormatError(f"{path}: has tables in tables too deep to read: this is no recipe") from None


def set_values(tables: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`tables` changed by each `a.b=c`: c is a TOML value, or else a text; a number after a list chooses its entry."""
    for setting in settings:
        path, equals, value = setting.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise UsageError(f"--set {shown(setting)}: give name=value, such as --set seed=1 or --set step.0.least=0.5")
        _set(tables, names, _value(value.strip()), setting)
    return tables


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _set(table: Any, names: list[str], value: Any, setting: str) -> None:
    for name in names[:-1]:
        table = _inside(table, name, setting) if isinstance(table, list) else table.setdefault(name, {})
        if not isinstance(table, dict | list):
            raise UsageError(f"--set {shown(setting)}: {name} is a value and has nothing inside")
    if isinstance(table, list):
        _inside(table, names[-1], setting)
        table[int(names[-1])] = value
    else:
        table[names[-1]] = value


def _inside(entries: list[Any], name: str, setting: str) -> Any:
    if not (name.isascii() and name.isdecimal()) or len(name) > 9 or int(name) >= len(entries):
        raise UsageError(
            f"--set {shown(setting)}: {shown(name, 20)} is no entry: give a number from 0 to {len(entries) - 1}"
        )
    return entries[int(name)]


def from_table(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """The dataclass `kind` filled from `table`. Raises UsageError for what is unknown, missing or of another type."""
    return kind(**field_values(kind, table, where))


def field_values(kind: type[Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of the dataclass `kind` that `table` gives, each checked by itself."""
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{where}: the field {shown(key, 60)} is not known: {nearest(key, known)}")
        values[key] = fitted(where, key, value, hints[key])
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{where}: lacks the field {name}, {_called(hints[name])}: add {name} = … to it")
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error's sentence: the likeliest name, or all."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(known)}"


def fitted(where: str, key: str, value: Any, hint: Any) -> Any:
    """`value` as a field of type `hint` takes it."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if types.NoneType in options and (value is None or (value is False and bool not in options)):
        return None
    for option in options:
        if get_origin(option) is tuple and isinstance(value, list | tuple):
            inner = get_args(option)[0]
            return tuple(fitted(where, key, item, inner) for item in value)
        if get_origin(option) in MAPPINGS and isinstance(value, Mapping):
            inner = get_args(option)[1]
            return {name: fitted(where, f"{key}.{name}", item, inner) for name, item in value.items()}
        if type(value) is int and abs(value) >= MOST:
            continue
        if option is float and type(value) in (int, float):
            return float(value)
        if option in (bool, str, int) and type(value) is option:
            return value
    expected = " or ".join(_called(option) for option in options)
    said = repr(value)[:60] if not isinstance(value, int) or abs(value) < MOST else "a number of more than 18 digits"
    raise UsageError(f"{where}: {key} is {said}: {expected} was expected")


def _called(hint: Any) -> str:
    """A type as people call it."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "false"}
    if get_origin(hint) is tuple:
        return "a list"
    return "a table" if get_origin(hint) in MAPPINGS else plain.get(hint, str(hint))
