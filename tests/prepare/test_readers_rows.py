"""Rows of JSON lines and Parquet: the fields that are kept, and one bad record for each row that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import jsonl_gz, shared

from kiloq.core.errors import UsageError
from kiloq.prepare.documents import meta_of
from kiloq.prepare.readers import parquet as reader
from kiloq.prepare.readers.plan import plan
from kiloq.prepare.readers.source import Bad, Source

from .reading import bads, reasons, records, rows, texts

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)  # fmt: skip


def lines(folder: Path, *found: bytes, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"".join(found))
    return path


def test_real_rows_are_those_that_json_reads() -> None:
    wanted = list(jsonl_gz("data", "humaneval", "HumanEval.jsonl.gz"))
    found = rows(shared("data", "humaneval", "HumanEval.jsonl.gz"), text="prompt", format="code", id_field="task_id")
    assert [row["text"] for row in found] == [row["prompt"] for row in wanted]
    assert [json.loads(row["meta"]) for row in found] == [{"id": row["task_id"]} for row in wanted]
    assert {row["format"] for row in found} == {"code"}
    assert found[1]["id"] == "HumanEval.jsonl.gz#2"


def test_fields_that_are_kept(tmp_path: Path) -> None:
    row = {"text": "x", "id": 7, "language": "zh", "url": "u", "date": None, "license": ["a"], "other": 1}
    (found,) = rows(lines(tmp_path, json.dumps(row).encode()))
    assert (found["language"], json.loads(found["meta"])) == ("zh", {"id": 7, "url": "u"})
    (found,) = rows(tmp_path, language_fields=("other",), language="fr", meta_fields=("other",), id_field="none")
    assert (found["language"], json.loads(found["meta"])) == ("fr", {"other": 1})


def test_values_that_json_or_arrow_would_refuse(tmp_path: Path) -> None:
    data = rb'{"text": "a\ud800b", "id": NaN, "url": "\udfff", "title": 1e400, "date": 123456789012345678901234567890, '
    (found,) = rows(lines(tmp_path, data, b'"lang": "' + b"x" * 99 + b'"}'))
    assert (found["text"], found["language"]) == ("a\ufffdb", None)
    assert json.loads(found["meta"]) == {"url": "\ufffd"}


BAD_LINES = [
    (b'{"text": "half', "the line is not JSON"),
    (b"\xff\xfe{}", "a byte is not utf-8: 0xff"),
    (b'{"text": 5}', "the row has no field of text: text"),
    (b'{"text": null}', "the row has no field of text: text"),
    (b'{"Text": "x"}', "the row has no field of text: text"),
    (b'["text"]', "the line is not a JSON object"),
    (b'"text"', "the line is not a JSON object"),
    (b'{"a":' * 100_000, "the line is not JSON"),
    (b"9" * 5000, "the line is not JSON"),
    (b'{"text": "' + b"x" * 700_000 + b'"}', "the line has more bytes than 600000"),
    (b"\0" * 300, "the line is not JSON"),
]


def test_every_bad_line_has_its_reason_and_the_next_is_read(tmp_path: Path) -> None:
    good = b'{"text": "good"}\n'
    path = lines(tmp_path, good, *(line + b"\n \n" + good for line, _ in BAD_LINES), b'{"text": "end"}')
    assert texts(path, most_bytes=600_000) == ["good"] * (len(BAD_LINES) + 1) + ["end"]
    found = bads(path, most_bytes=600_000)
    assert [bad.reason for bad in found] == [f"read: {reason}" for _, reason in BAD_LINES]
    assert [bad.where for bad in found] == [f"a.jsonl#{2 + 3 * n}" for n in range(len(BAD_LINES))]
    assert found[0].sample == '{"text": "half\n' and found[1].sample == "\ufffd\ufffd{}\n"


def test_an_array_over_many_lines_is_one_bad_record(tmp_path: Path) -> None:
    data = json.dumps([{"text": "x"}] * 100, indent=1).encode()
    assert reasons(lines(tmp_path, data), 10) == {"the file is one JSON array: lines of objects were expected": 1}
    assert reasons(lines(tmp_path, b'\xef\xbb\xbf[{"text": "x"},\n{}]\n'), 3).total() == 1
    assert reasons(lines(tmp_path, b"[1]\n[2]\n"), 3) == {"the line is not a JSON object": 2}


def test_another_encoding_is_named_or_bad(tmp_path: Path) -> None:
    path = lines(tmp_path, '{"text": "灯塔"}\n'.encode("gb18030"))
    assert reasons(path) == {"a byte is not utf-8: 0xb5": 1}
    assert texts(path, encoding="gb18030") == ["灯塔"]
    assert reasons(path, encoding="ascii") == {"a byte is not ascii: 0xb5": 1}
    assert texts(lines(tmp_path, b'\xef\xbb\xbf{"text": "x"}\n')) == ["x"]


def test_a_line_of_many_values_takes_bounded_memory(tmp_path: Path) -> None:
    """60 MB of empty lists would be 1.5 GB of objects: the line is counted first and refused."""
    path = lines(tmp_path, b'{"text": "x", "a": [' + b"[]," * 20_000_000 + b"[]]}\n", b'{"text": "next"}\n')
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom kiloq.prepare.readers.read import read\n"
        "from kiloq.prepare.readers.source import Piece, Source\nimport numpy\n"
        "found = list(read(Source(name='s', path=sys.argv[1]), Piece(('a.jsonl',))))\n"
        "print(found[0].reason, found[1]['text'], "
        "int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) >> 10)"  # maxrss is the parent's too
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    said, megabytes = done.stdout.rsplit(" ", 1)
    assert said == "read: the line is not JSON, or has too many values next"
    assert int(megabytes) < 1000


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["text", "id", "language", "url", "title"]), JSON), min_size=1, max_size=5)
)
def test_any_json_is_a_row_or_a_bad_record(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[str, Any]]
) -> None:
    path = lines(tmp_path_factory.getbasetemp(), *(json.dumps(row).encode() + b"\n" for row in found))
    wanted = [row["text"] for row in found if isinstance(row.get("text"), str)]
    assert texts(path) == [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in wanted]
    assert len(bads(path)) == len(found) - len(wanted)


# Parquet


def table(path: Path, columns: dict[str, Any], rows_a_group: int = 10, **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group, **options)
    return path


def test_parquet_is_read_as_pyarrow_reads_it_in_any_pieces(tmp_path: Path) -> None:
    wanted = list(jsonl_gz("data", "gsm8k", "test.jsonl.gz"))
    path = table(tmp_path / "a.parquet", {name: [row[name] for row in wanted] for name in wanted[0]}, 100)
    whole = rows(path, text="question")
    assert [row["text"] for row in whole] == pq.read_table(path)["question"].to_pylist()
    assert [(row["id"], meta_of(row["meta"])["id"]) for row in whole[98:101]] == [
        (f"a.parquet#{n + 1}", wanted[n]["id"]) for n in (98, 99, 100)
    ]
    source = Source(name="s", path=str(path), text="question")
    assert len(plan(source, 1)) == 9 and len(plan(source, 80_000)) > 1
    for piece_bytes in (1, 30_000, 80_000):
        assert rows(path, piece_bytes, text="question") == whole


def test_every_kind_of_column(tmp_path: Path) -> None:
    path = table(
        tmp_path / "a.parquet",
        {
            "text": pa.array(["x", None, "é", "x"]).dictionary_encode(),
            "lang": pa.array(["en", "zh", None, "not a code"], pa.large_string()),
            "date": pa.array([0, 1, 2, None], pa.timestamp("s")),
            "url": pa.array([[1], [2], [], None], pa.list_(pa.int64())),
            "title": pa.array([1.5, float("nan"), None, 2.0]),
        },
    )
    found = rows(path)
    assert [(row["text"], row["language"], meta_of(row["meta"])) for row in found] == [
        ("x", "en", {"date": "1970-01-01T00:00:00", "title": 1.5}),
        ("é", None, {"date": "1970-01-01T00:00:02"}),
        ("x", None, {"title": 2.0}),
    ]
    assert bads(path) == [("a.parquet#2", "read: the row has no field of text: text", "")]


def test_strings_that_are_not_utf8_and_rows_that_are_too_long(tmp_path: Path) -> None:
    offsets = pa.py_buffer(memoryview(bytearray(b"".join(n.to_bytes(4, "little") for n in (0, 4, 5, 106, 109)))))
    wrong = pa.Array.from_buffers(pa.string(), 4, [None, offsets, pa.py_buffer(b"good\xff" + b"x" * 101 + b"end")])
    path = table(tmp_path / "a.parquet", {"text": wrong, "title": wrong})
    assert texts(path, most_bytes=100) == ["good", "end"]
    assert [bad.reason for bad in bads(path, most_bytes=100)] == [
        "read: a byte is not utf-8: 0xff", "read: the row has more bytes than 100"
    ]  # fmt: skip


def test_a_column_that_no_file_has_is_the_recipe_s_mistake(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", {"content": ["x"], "n": [1]})
    with pytest.raises(UsageError, match="no file has a column of text called 'text': give text = one of 'content'"):
        records(tmp_path)
    table(tmp_path / "b.parquet", {"text": ["good"]})
    assert texts(tmp_path) == ["good"]
    assert bads(tmp_path) == [("a.parquet", "read: the file has no column of text: text", "columns: content")]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_what_can_be_read_of_a_damaged_file_counts(tmp_path: Path, compression: str) -> None:
    """Named invariant: rows that are read are right, and with the lost ones they add up to all."""
    wanted = [f"text number {n} " * 20 for n in range(100)]
    path = table(
        tmp_path / "a.parquet",
        {"text": wanted},
        compression=compression,
        use_dictionary=False,
        write_page_checksum=True,
    )
    data = path.read_bytes()
    with pq.ParquetFile(path) as file:
        chunks = [file.metadata.row_group(group).column(0) for group in range(10)]
        end = max(chunk.data_page_offset + chunk.total_compressed_size for chunk in chunks)
    for at in range(100, end - 40, 997):
        path.write_bytes(data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + 40]) + data[at + 40 :])
        found = records(path)
        good = [record for record in found if not isinstance(record, Bad)]
        assert all(wanted[int(row["id"].partition("#")[2]) - 1] == row["text"] for row in good)
        lost = sum(int(bad.reason.partition("rows: ")[2] or 1) for bad in found if isinstance(bad, Bad))
        assert len(good) + lost == 100 and len(good) >= 80
    path.write_bytes(data[:-10])
    ((where, reason, _),) = bads(path)
    assert where == "a.parquet" and reason.startswith("read: the file cannot be read as Parquet: ")


def test_huge_rows_come_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(
        tmp_path / "a.parquet",
        {"text": ["x" * 1_000_000] * 12 + ["y"] * 12},
        12,
        compression="zstd",
        use_dictionary=False,
    )
    sizes = []
    decoded = reader._decoded

    def watched(batch: Any) -> Any:
        sizes.append(batch.num_rows)
        return decoded(batch)

    monkeypatch.setattr(reader, "_decoded", watched)
    assert [len(text) for text in texts(path)] == [1_000_000] * 12 + [1] * 12
    assert sizes == [4, 4, 4, 12]
