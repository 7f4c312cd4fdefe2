"""The GGUF reader and writer against the `gguf` package, hostile headers, and random damage.

Damaged bytes may be refused (FormatError) or read; every other exception is a bug.
"""

from __future__ import annotations

import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import smollm2_gguf

from kiloq.core.errors import FormatError, MissingError
from kiloq.core.gguf import COMMON, GGUFFile
from kiloq.core.gguf_write import GGUFTensor, write_gguf

RNG = np.random.default_rng(0)
DECODED = [kind for kind in GGMLQuantizationType if kind in gguf.quants._type_traits]


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.name)
def test_every_type_that_the_package_decodes(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    raw = RNG.integers(0, 256, (5, 2 * size), np.uint8)
    if kind is GGMLQuantizationType.BF16:
        block, raw = 1, RNG.integers(0, 120, (5, 4), np.uint8)
    columns = raw.shape[1] // size * block
    write_gguf(tmp_path / "a.gguf", {}, [GGUFTensor("t", kind.name, (5, columns), lambda: raw)])
    file = GGUFFile(tmp_path / "a.gguf")
    assert file.info("t") == (kind.name, (5, columns))
    np.testing.assert_array_equal(file.raw("t"), raw)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, kind)
    np.testing.assert_array_equal(file.array("t").astype(np.float32), expected)


def test_decoding_in_pieces_equals_decoding_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.normal(size=(37, 64)).astype(np.float32)
    write_gguf(tmp_path / "a.gguf", {}, [GGUFTensor("t", "Q4_0", (37, 64), lambda: values)])
    whole = GGUFFile(tmp_path / "a.gguf").array("t")
    monkeypatch.setattr("kiloq.core.gguf.CHUNK_ELEMENTS", 100)
    np.testing.assert_array_equal(GGUFFile(tmp_path / "a.gguf").array("t"), whole)


METADATA: dict[str, Any] = {
    "general.architecture": "测试",
    "a.bool": True,
    "a.int": 7,
    "a.negative": -3,
    "a.large": 1 << 40,
    "a.float": 0.5,
    "a.text": "",
    "a.strings": ["a", "", "Ġb", "层"],
    "a.none": [],
    "a.ints": np.arange(5, dtype=np.int32),
    "a.floats": np.linspace(0, 1, 3, dtype=np.float32),
}


def test_the_package_reads_ours(tmp_path: Path) -> None:
    arrays = {"x.weight": RNG.normal(size=(3, 32)).astype(np.float32), "b": RNG.normal(size=7).astype(np.float32)}
    specs = [GGUFTensor(name, "F32", array.shape, lambda array=array: array) for name, array in arrays.items()]
    write_gguf(tmp_path / "a.gguf", METADATA, specs)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    ours = GGUFFile(tmp_path / "a.gguf")
    assert ours.version == 3
    for key, value in METADATA.items():
        expected = value.tolist() if isinstance(value, np.ndarray) else value
        assert ours.metadata[key] == expected
        if value != [] if isinstance(value, list) else True:
            assert reader.fields[key].contents() == expected
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, arrays[tensor.name])
        np.testing.assert_array_equal(ours.array(tensor.name), arrays[tensor.name])


def test_we_read_the_package(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int16("i16", -5)
    writer.add_float64("f64", 1e-300)
    writer.add_array("mixed", [[1, 2], [3]])
    writer.add_array("bools", [True, False])
    array = RNG.normal(size=(4, 64)).astype(np.float32)
    writer.add_tensor("w", array)
    writer.add_tensor("q", gguf.quants.quantize(array, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "a.gguf")
    assert (file.metadata["u8"], file.metadata["i16"], file.metadata["f64"]) == (200, -5, 1e-300)
    assert file.metadata["mixed"] == [[1, 2], [3]]
    assert file.metadata["bools"] == [True, False]
    np.testing.assert_array_equal(file.array("w"), array)
    assert np.abs(file.array("q") - array).max() < 0.02


@pytest.mark.default_model
def test_a_real_file_equals_the_package() -> None:
    path = smollm2_gguf()
    ours = GGUFFile(path)
    reader = gguf.GGUFReader(path)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type", "llama.block_count"):
        assert ours.metadata[key] == reader.fields[key].contents()
    assert ours.names() == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors[:12]:
        np.testing.assert_array_equal(ours.array(tensor.name), gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)


def build(
    pairs: list[bytes] | None = None,
    infos: list[bytes] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    pairs, infos = pairs or [], infos or []
    tensors, metadata = counts or (len(infos), len(pairs))
    head = magic + struct.pack("<IQQ", version, tensors, metadata) + b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def nested(depth: int) -> bytes:
    return array(9, 1) * depth + array(4, 0)


U32, STRING, ARRAY = 4, 8, 9
HOSTILE: dict[str, bytes] = {
    "empty file": b"",
    "magic only": b"GGUF",
    "another format": build(magic=b"GGML"),
    "version 1": build(version=1),
    "version 99": build(version=99),
    "big endian": build(version=3 << 24),
    "2^63 tensors": build(counts=(1 << 63, 0)),
    "2^64-1 pairs": build(counts=(0, (1 << 64) - 1)),
    "a million tensors in a small file": build(counts=(10**6, 0), data=bytes(1000)),
    "one tensor that is not there": build(counts=(1, 0)),
    "key of 2^63 bytes": build([struct.pack("<Q", 1 << 63) + b"k"]),
    "key of 1 MB": build([pair("k" * 1_000_000, U32, bytes(4))]),
    "key is not UTF-8": build([text(b"\xff\xfe") + struct.pack("<II", 4, 0)]),
    "unknown value type": build([pair("k", 77, bytes(8))]),
    "unknown array type": build([pair("k", ARRAY, array(77, 1, bytes(8)))]),
    "string of 2^62 bytes": build([pair("k", STRING, struct.pack("<Q", 1 << 62))]),
    "string is not UTF-8": build([pair("k", STRING, text(b"\x80"))]),
    "truncated number": build([pair("k", 12, b"")], counts=(0, 1))[:40],
    "2^60 numbers": build([pair("k", ARRAY, array(4, 1 << 60))]),
    "2^61 doubles, which overflow": build([pair("k", ARRAY, array(12, 1 << 61))]),
    "2^60 strings": build([pair("k", ARRAY, array(STRING, 1 << 60))]),
    "strings that run past the end": build([pair("k", ARRAY, array(STRING, 2, text("a") + struct.pack("<Q", 999)))]),
    "string in an array of 2^63 bytes": build([pair("k", ARRAY, array(STRING, 1, struct.pack("<Q", 1 << 63)))]),
    "string in an array not UTF-8": build([pair("k", ARRAY, array(STRING, 1, text(b"\xff")))]),
    "2^60 arrays": build([pair("k", ARRAY, array(ARRAY, 1 << 60))]),
    "arrays 6 deep": build([pair("k", ARRAY, nested(6))]),
    "arrays 100,000 deep": build([pair("k", ARRAY, nested(100_000))]),
    "duplicate key": build([pair("k", U32, bytes(4)), pair("k", U32, bytes(4))]),
    "alignment 0": build([pair("general.alignment", U32, struct.pack("<I", 0))], [info()], bytes(64)),
    "alignment 3": build([pair("general.alignment", U32, struct.pack("<I", 3))], [info()], bytes(64)),
    "alignment 2^31": build([pair("general.alignment", U32, struct.pack("<I", 1 << 31))], [info()], bytes(64)),
    "alignment as text": build([pair("general.alignment", STRING, text("32"))], [info()], bytes(64)),
    "alignment is true": build([pair("general.alignment", 7, b"\1")], [info()], bytes(2)),
    "duplicate tensor": build([], [info(), info(offset=32)], bytes(64)),
    "tensor name of 2^40 bytes": build([], [struct.pack("<Q", 1 << 40)], counts=(1, 0), data=bytes(64)),
    "no dimensions": build([], [info(shape=())], bytes(64)),
    "five dimensions": build([], [info(shape=(1, 1, 1, 1, 1))], bytes(64)),
    "2^32 - 1 dimensions": build([], [text("t") + struct.pack("<I", 0xFFFFFFFF)], bytes(64), counts=(1, 0)),
    "size 0": build([], [info(shape=(0, 4))], bytes(64)),
    "size 2^63": build([], [info(shape=(1 << 63,))], bytes(64)),
    "sizes that overflow to 4 bytes": build([], [info(shape=(1 << 32, 1 << 32, 1))], bytes(64)),
    "unknown tensor type": build([], [info(kind=999)], bytes(64)),
    "type that was removed": build([], [info(kind=4)], bytes(64)),
    "rows that are no whole blocks": build([], [info(shape=(33,), kind=2)], bytes(64)),
    "offset off the alignment": build([], [info(offset=4)], bytes(64)),
    "offset 2^63": build([], [info(offset=1 << 63)], bytes(64)),
    "data beyond the end": build([], [info(shape=(400,))], bytes(64)),
    "truncated by one byte": build([], [info(shape=(16,))], bytes(63)),
    "overlap": build([], [info("a", (16,)), info("b", (16,), offset=32)], bytes(96)),
    "same place": build([], [info("a"), info("b")], bytes(64)),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE[fault])
    tracemalloc.start()
    with pytest.raises(FormatError) as caught:
        dict(GGUFFile(path).metadata)  # lists of strings are read when they are asked for
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert sentence.isprintable()
    assert len(sentence) < 500
    assert peak < 16 * len(HOSTILE[fault]) + (1 << 20)


def test_a_type_that_cannot_be_decoded_is_refused_when_read(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {}, [GGUFTensor("t", "Q8_1", (32,), lambda: np.zeros(40, np.uint8))])
    file = GGUFFile(tmp_path / "a.gguf")
    with pytest.raises(FormatError, match="Q8_1"):
        file.array("t")
    with pytest.raises(MissingError, match="no tensor"):
        file.array("u")


def test_version_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(build([], [info(shape=(4,))], struct.pack("<4f", 1, 2, 3, 4), version=2))
    assert GGUFFile(tmp_path / "a.gguf").array("t").tolist() == [1, 2, 3, 4]


def test_a_maker_that_breaks_its_word_leaves_no_file(tmp_path: Path) -> None:
    for shape in ((3, 32), (2, 16)):
        with pytest.raises(ValueError, match="made"):
            write_gguf(tmp_path / "a", {}, [GGUFTensor("t", "F32", (2, 32), lambda shape=shape: np.zeros(shape))])
    with pytest.raises(TypeError, match="metadata"):
        write_gguf(tmp_path / "a", {"k": None}, [])
    assert list(tmp_path.iterdir()) == []


SMALL = build(
    [
        pair("general.alignment", U32, struct.pack("<I", 32)),
        pair("s", STRING, text("text")),
        pair("v", ARRAY, array(STRING, 2, text("a") + text("b"))),
        pair("n", ARRAY, array(ARRAY, 1, array(U32, 2, bytes(8)))),
    ],
    [info("a", (32, 2), 2), info("b", (4,), 0, 64)],
    bytes(80),
)


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_gives_only_format_errors(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        match data.draw(st.sampled_from(["byte", "cut", "insert", "word"])):
            case "byte" if damaged:
                damaged[at] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 16))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(max_size=16))
            case _:
                word = data.draw(st.sampled_from([0, 1, 7, 8, 9, 255, 1 << 31, 1 << 32, 1 << 62, (1 << 64) - 1]))
                damaged[at : at + 8] = struct.pack("<Q", word)
    path = tmp_path / "model.gguf"
    path.write_bytes(damaged)
    try:
        file = GGUFFile(path)
        for name in file.names():
            assert file.array(name).size == math.prod(file.info(name)[1])
    except FormatError as error:
        assert str(error).startswith(str(path))


def test_common_types_are_those_of_the_gguf_package() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    known = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in COMMON} == COMMON


def test_lists_of_strings_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """A file whose list cannot be read opens; the list is refused, each time, and nothing else is."""
    path = tmp_path / "model.gguf"
    good = pair("good", ARRAY, array(STRING, 2, text("a") + text("层")))
    path.write_bytes(build([pair("bad", ARRAY, array(STRING, 2, text("a") + text(b"\xff"))), good]))
    metadata = GGUFFile(path).metadata
    assert list(metadata) == ["bad", "good"]
    assert "bad" in metadata
    for _ in range(2):
        with pytest.raises(FormatError, match=str(path)):
            metadata["bad"]
    assert metadata["good"] == ["a", "层"]
    assert metadata["good"] is metadata["good"]
