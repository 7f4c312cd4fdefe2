"""Recipes: what every kind of field takes and refuses, --set, and files that are none; errors name the place and the way out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError
from kiloq.core.recipe import MAX_RECIPE_BYTES, fitted, from_table, nearest, read_toml, set_values


@dataclass(frozen=True, kw_only=True)
class Example:
    """Each kind of field that the tables of recipes have."""

    name: str
    count: int = 1
    least: float | None = 0.5
    strict: bool = False
    rules: tuple[str, ...] = ("a",)
    weights: dict[str, float] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    either: bool | None = None
    made: int = field(default=7, init=False)


def test_a_table_fills_fields_and_leaves_the_defaults() -> None:
    assert from_table(Example, {"name": "x"}, "t") == Example(name="x")
    table = {"name": "x", "count": 2, "least": 1, "strict": True, "rules": ["b", "c"], "weights": {"a": 3}}
    example = from_table(Example, {**table, "limits": {"z": 4}}, "t")
    assert example == Example(
        name="x", count=2, least=1.0, strict=True, rules=("b", "c"), weights={"a": 3.0}, limits={"z": 4}
    )
    assert (type(example.least), type(example.weights["a"])) == (float, float)


def test_false_switches_off_what_may_be_none_unless_it_is_a_switch() -> None:
    assert from_table(Example, {"name": "x", "least": False}, "t").least is None
    assert from_table(Example, {"name": "x", "either": False}, "t").either is False


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"name": 1}, r"t: name is 1: a text was expected"),
        ({"name": False}, r"t: name is False: a text was expected"),
        ({"name": "x", "count": 1.0}, r"count is 1\.0: a whole number was expected"),
        ({"name": "x", "count": True}, r"count is True: a whole number was expected"),
        ({"name": "x", "least": True}, r"least is True: a number or false was expected"),
        ({"name": "x", "least": "0.5"}, r"least is '0\.5': a number or false was expected"),
        ({"name": "x", "strict": 1}, r"strict is 1: true or false was expected"),
        ({"name": "x", "rules": "abc"}, r"rules is 'abc': a list was expected"),
        ({"name": "x", "rules": ["a", 2]}, r"rules is 2: a text was expected"),
        ({"name": "x", "weights": [1]}, r"weights is \[1\]: a table was expected"),
        ({"name": "x", "weights": {"web": "much"}}, r"weights\.web is 'much': a number was expected"),
        ({"count": 1}, r"t: lacks the field name, a text: add name = … to it"),
        ({"name": "x", "cuont": 1}, r"t: the field 'cuont' is not known: did you mean 'count'"),
        ({"name": "x", "made": 1}, r"the field 'made' is not known"),
        ({"name": "x", "qqqq\x1b[2J": 1}, r"'qqqq\\x1b\[2J' is not known: choose one of name, count, least"),
    ],
)
def test_what_does_not_fit_is_one_sentence(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        from_table(Example, table, "t")
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_a_long_value_is_cut_in_the_error() -> None:
    with pytest.raises(UsageError) as caught:
        from_table(Example, {"name": ["x" * 100_000]}, "t")
    assert len(str(caught.value)) < 150


def test_set_changes_values_in_tables_and_lists() -> None:
    tables: dict[str, Any] = {"seed": 0, "step": [{"kind": "a"}, {"kind": "b", "rules": [1, 2]}]}
    settings = ["seed=7", "new.deep.x = 0.5", "step.1.kind=gopher", "step.1.rules.0=[3]", "step.0=false", 'text="1=2"']
    assert set_values(tables, settings) == {
        "seed": 7,
        "new": {"deep": {"x": 0.5}},
        "step": [False, {"kind": "gopher", "rules": [[3], 2]}],
        "text": "1=2",
    }
    assert set_values({}, ["a=b=c", "b=", "a=later"]) == {"a": "later", "b": ""}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("seed", "give name=value"),
        ("=1", "give name=value"),
        ("a..b=1", "give name=value"),
        ("seed.x=1", "seed is a value and has nothing inside"),
        ("step.0.kind.x=1", "kind is a value"),
        ("step.2=1", "'2' is no entry: give a number from 0 to 1"),
        ("step.-1.kind=1", "'-1' is no entry"),
        ("step.kind=1", "'kind' is no entry"),
    ],
)
def test_set_refuses_what_has_no_place(setting: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        set_values({"seed": 0, "step": [{"kind": "a"}, {"kind": "b"}]}, [setting])


@given(st.text(max_size=30))
def test_any_setting_is_read_or_refused(setting: str) -> None:
    for text in (setting, f"a={setting}", f"{setting}=1"):
        with suppress(KiloqError):
            assert set_values({"a": [1]}, [text])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a = \xff", "byte 4 is not UTF-8"),
        (b"a = 1\na = 2\n", "is not TOML"),
        (b"a = \n", "is not TOML.*line 1"),
        (b"a = " + b"[" * 100_000, "too deep"),
        (b"#" * (MAX_RECIPE_BYTES + 1), "a.toml"),
    ],
    ids=["bytes", "twice", "empty", "deep", "large"],
)
def test_a_file_that_is_no_recipe(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=sentence):
        read_toml(path)


def test_files_are_read_or_missing(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('seed = 1\n[[step]]\nkind = "混"\n')
    assert read_toml(tmp_path / "a.toml") == {"seed": 1, "step": [{"kind": "混"}]}
    with pytest.raises(MissingError, match=r"no\.toml"):
        read_toml(tmp_path / "no.toml")


def test_nearest_names_the_likeliest_or_all() -> None:
    assert nearest("wieghts", iter(["weights", "epochs"])) == "did you mean 'weights'"
    assert nearest("zzz", iter(["weights", "epochs"])) == "choose one of weights, epochs"


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = 1" + "0" * 5000 + ".0"])
def test_a_number_of_thousands_of_digits(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with contextlib.suppress(FormatError):
        read_toml(path)
    with contextlib.suppress(UsageError):
        set_values({"a": [1]}, ["a." + "9" * 5000 + "=1", text.replace(" ", "")])
    for hint in (int, float, str):
        with pytest.raises(UsageError, match=r"more than 18 digits|was expected"):
            fitted("here", "a", 10**5000, hint)
