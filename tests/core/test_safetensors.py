"""The safetensors reader and writer against the `safetensors` package, hostile headers, and random damage.

A reader that is given damaged bytes may refuse them (FormatError) or read them; every other exception is a bug.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kiloq.core.dtypes import SAFETENSORS_DTYPES
from kiloq.core.errors import FormatError, MissingError
from kiloq.core.safetensors import SafetensorsFile, TensorSpec, write_safetensors

RNG = np.random.default_rng(0)


def everything() -> dict[str, np.ndarray]:
    """One array of every type, an empty one, a scalar, and odd sizes that would misalign their successors."""
    arrays = {f"t.{code}": RNG.integers(0, 2, (3, 5)).astype(dtype) for code, dtype in SAFETENSORS_DTYPES.items()}
    arrays |= {"empty": np.zeros((0, 4), np.float32), "scalar": np.float32(3).reshape(())}
    return arrays | {"层.weight": RNG.normal(size=(7,)).astype(ml_dtypes.bfloat16)}


def test_the_package_reads_ours_and_we_read_the_package(tmp_path: Path) -> None:
    arrays = everything()
    write_safetensors(tmp_path / "ours.safetensors", arrays, {"format": "pt"})
    theirs = load_file(tmp_path / "ours.safetensors")
    assert set(theirs) == set(arrays)
    save_file(theirs, tmp_path / "theirs.safetensors", {"a": "b"})
    back = SafetensorsFile(tmp_path / "theirs.safetensors")
    assert back.metadata == {"a": "b"}
    for name, array in arrays.items():
        assert back.info(name)[1] == array.shape
        assert back.array(name).dtype == array.dtype
        assert back.array(name).tobytes() == array.tobytes()


def test_writing_is_deterministic_and_aligned(tmp_path: Path) -> None:
    arrays = everything()
    write_safetensors(tmp_path / "a", arrays)
    write_safetensors(tmp_path / "b", arrays)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    file = SafetensorsFile(tmp_path / "a")
    for name in file.names():
        assert file.array(name).flags.aligned
        assert file.array(name).base is not None or not file.array(name).size  # a view, not a copy


def test_arrays_are_writable_and_never_written_back(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", {"x": np.ones(4, np.float32)})
    before = (tmp_path / "a").read_bytes()
    tensor = torch.from_numpy(SafetensorsFile(tmp_path / "a").array("x"))  # warns, and so fails, if not writable
    tensor.mul_(2)
    assert (tmp_path / "a").read_bytes() == before


def test_writing_makes_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []
    size = 1 << 20

    def make() -> np.ndarray:
        alive.append(1)
        return np.full(size // 4, len(alive), np.float32)

    tracemalloc.start()
    write_safetensors(tmp_path / "a", [TensorSpec(f"t{i}", "F32", (size // 4,), make) for i in range(16)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size  # of 16: the current one, the next one while it is made, and slack


def test_a_maker_that_breaks_its_word_is_our_bug_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="declared"):
        write_safetensors(tmp_path / "a", [TensorSpec("t", "F32", (3,), lambda: np.zeros(4, np.float32))])
    assert list(tmp_path.iterdir()) == []


def pack(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, bytes] = {
    "empty file": b"",
    "shorter than a length": b"\1\0\0",
    "length without header": struct.pack("<Q", 10),
    "length 2^63": pack(b"{}", length=1 << 63),
    "length 2^64-1": pack(b"{}", length=(1 << 64) - 1),
    "length above the limit": pack(b"{}" + b" " * 100, length=100_000_001),
    "header is not JSON": pack(b"{not json}"),
    "header is a list": pack([]),
    "header is not UTF-8": pack(b'{"\xff": 1}'),
    "header 100,000 deep": pack(b"[" * 100_000 + b"]" * 100_000),
    "objects 100,000 deep": pack(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "duplicate tensor": pack(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    "entry is a number": pack({"a": 1}),
    "entry lacks its shape": pack({"a": {"dtype": "F32", "data_offsets": [0, 0]}}),
    "entry with an extra key": pack({"a": entry(0, 4) | {"x": 1}}, b"0123"),
    "unknown dtype": pack({"a": entry(0, 4, dtype="F31")}, b"0123"),
    "dtype is a number": pack({"a": entry(0, 4, dtype=3)}, b"0123"),
    "dtype is a list": pack({"a": entry(0, 4, dtype=["F32"])}, b"0123"),
    "negative size": pack({"a": entry(0, 4, [-1])}, b"0123"),
    "fractional size": pack({"a": entry(0, 4, [1.0])}, b"0123"),
    "boolean size": pack({"a": entry(0, 4, [True])}, b"0123"),
    "size as text": pack({"a": entry(0, 4, ["1"])}, b"0123"),
    "shape is no list": pack({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"0123"),
    "too many dimensions": pack({"a": entry(0, 4, [1] * 100)}, b"0123"),
    "sizes that overflow to 4 bytes": pack({"a": entry(0, 4, [1 << 32, 1 << 32, 1])}, b"0123"),
    "size 2^63": pack({"a": entry(0, 4, [1 << 63])}, b"0123"),
    "size of 5,000 digits": pack(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'),
    "offsets beyond the file": pack({"a": entry(0, 4096)}, b"0123"),
    "offsets 2^62": pack({"a": entry(1 << 62, (1 << 62) + 4)}, b"0123"),
    "end before begin": pack({"a": entry(4, 0, [1])}, b"0123"),
    "one offset": pack({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, b"0123"),
    "overlap": pack({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "same bytes twice": pack({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
    "hole": pack({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "hole at the start": pack({"a": entry(4, 8)}, bytes(8)),
    "bytes left over": pack({"a": entry(0, 4)}, bytes(40)),
    "truncated data": pack({"a": entry(0, 400)}, bytes(399)),
    "metadata with a number": pack({"__metadata__": {"a": 1}}),
    "metadata is a list": pack({"__metadata__": []}),
    "NaN in the header": pack(b'{"a": NaN}'),
    "name with control characters": pack({"\x1b[2J\n": entry(0, 400)}, bytes(4)),
    "name of 1 MB": pack({"n" * 1_000_000: entry(0, 400)}, bytes(4)),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[fault])
    tracemalloc.start()
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert sentence.isprintable()
    assert len(sentence) < 600
    assert peak < 16 * len(HOSTILE[fault]) + (2 << 20)  # brackets, their depth and the header itself


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MissingError, match="no such file"):
        SafetensorsFile(tmp_path / "nothing")
    for name in ("pipe", "."):
        with pytest.raises(FormatError, match="regular file"):
            SafetensorsFile(tmp_path / name)
    with pytest.raises(FormatError, match="cannot be opened"):
        SafetensorsFile("a\0b")


def small() -> bytes:
    return pack({"a": entry(0, 8, [2, 1]), "b": entry(8, 10, [1], "F16"), "__metadata__": {"k": "v"}}, bytes(range(10)))


Edit = Callable[[bytes], bytes]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """`small()` with bytes changed, cut, repeated, or a word of the header replaced by a nastier one."""
    data = bytearray(small())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["byte", "cut", "insert", "word"]))
        if kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 20))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        else:
            words = [
                b"[",
                b"{",
                b'"',
                b"-1",
                b"1e9",
                b"9223372036854775808",
                b"null",
                b"true",
                b"\\ud800",
                b"F64",
                b"10",
            ]
            data[at : at + draw(st.integers(0, 4))] = draw(st.sampled_from(words))
    return bytes(data)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged())
def test_random_damage_gives_only_format_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except FormatError as error:
        assert str(error).startswith(str(path))
        return
    for name in file.names():
        assert file.array(name).shape == file.info(name)[1]
    try:  # what we take, the reference implementation takes too
        with safetensors.safe_open(path, "np") as theirs:
            assert set(theirs.keys()) == set(file.names())
    except safetensors.SafetensorError as error:
        raise AssertionError(f"the reference refuses {data!r}: {error}") from error
