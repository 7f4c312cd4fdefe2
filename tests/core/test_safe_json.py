"""JSON of strangers: depth, size, duplicate keys, numbers, and what a normal file costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiloq.core.errors import FormatError, MissingError
from kiloq.core.safe_json import load_object, parse, parse_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_valid_json_is_read_as_python_reads_it(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # lone surrogates have no UTF-8
        return
    assert parse(data, "x") == json.loads(text)


REFUSED = {
    "100,000 arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"0" + b"}" * 100_000,
    "depth hidden behind closing brackets in strings": b'["]]]]]]]]",' * 70 + b"1" + b"]" * 70,
    "depth hidden behind an escaped quote": b'["\\"]]]]",' * 70 + b"1" + b"]" * 70,
    "unclosed": b"[" * 100_000,
    "many values": b"[" + b"[]," * 4_000_001 + b"[]]",
    "duplicate key": b'{"a": 1, "a": 2}',
    "duplicate key inside": b'{"x": [{"a": 1, "b": 1, "a": 2}]}',
    "duplicate key by escape": b'{"a": 1, "\\u0061": 2}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "too large a float": b'{"a": 1e999}',
    "5,000 digits": b'{"a": ' + b"7" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "trailing text": b"{} {}",
    "nothing": b"",
    "unclosed string with many quotes": b'{"' + b'\\"' * 500_000,
}


@pytest.mark.timeout(20)  # a parser that starts over at every quote would take minutes
@pytest.mark.parametrize("fault", REFUSED)
def test_refused_in_one_sentence_and_at_once(fault: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(REFUSED[fault], "place.json")
    assert str(caught.value).startswith("place.json: ")
    assert str(caught.value).isprintable()


def test_brackets_in_strings_do_not_count() -> None:
    assert parse_object(json.dumps({"a": "[" * 500 + '"' + "{" * 500}).encode(), "x")["a"].count("[") == 500


def test_an_object_is_an_object(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="object"):
        parse_object(b"[]", "x")
    (tmp_path / "big.json").write_bytes(b"{}" + b" " * 100)
    with pytest.raises(FormatError, match=r"big\.json.*102"):
        load_object(tmp_path / "big.json", max_bytes=50)
    with pytest.raises(MissingError):
        load_object(tmp_path / "none.json")
