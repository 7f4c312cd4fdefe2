"""Damaged and hostile .tiktoken files and folders: one sentence with the path and the line, nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import qwen_vocabulary, shared

from kiloq.core.errors import FormatError, KiloqError, MissingError
from kiloq.tokenize import files
from kiloq.tokenize.tokenizer import Tokenizer

BYTE_LINES = [base64.b64encode(bytes([value])) + b" %d" % value for value in range(256)]


def written(folder: Path, lines: Iterable[bytes]) -> Path:
    path = folder / "v.tiktoken"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def with_line(line: bytes, at: int = 256) -> list[bytes]:
    return [*BYTE_LINES[:at], line, *BYTE_LINES[at:]]


def test_reads_what_the_format_allows(tmp_path: Path) -> None:
    plain = files.read_tiktoken(written(tmp_path, BYTE_LINES))
    assert plain == {bytes([value]): value for value in range(256)}
    assert files.read_tiktoken(written(tmp_path, [line + b"\r" for line in BYTE_LINES])) == plain
    path = tmp_path / "unterminated.tiktoken"
    path.write_bytes(b"\n".join(reversed(BYTE_LINES)))
    assert files.read_tiktoken(path) == plain
    assert Tokenizer.load(path).encode("é", special="all") == [0xC3, 0xA9]
    assert Tokenizer.load(path).vocab_size == 256 + 208


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "line 1"),
        ([b""], "line 1"),
        (with_line(b"YWI= 256 7"), "line 257"),
        (with_line(b"YWI="), "line 257"),
        (with_line(b"YWI=  256"), "line 257"),
        (with_line(b"YWI= -1"), "line 257"),
        (with_line(b"YWI= 1e3"), "line 257"),
        (with_line(b"YWI= 99999999999"), "line 257"),
        (with_line(b"Y*I= 256"), "line 257"),
        (with_line(b"YWI 256"), "line 257"),
        (with_line(b"YWI=== 256"), "line 257"),
        (with_line(b"= 256"), "line 257"),
        (with_line(b""), "line 257"),
        (with_line(b"YQ== 256"), "line 257 repeats a token"),
        (with_line(b"YWI= 7"), "line 257 repeats a rank"),
        (with_line(b"YWI= 99999999"), "line 257 has the rank"),
        (with_line(b"YWI= 300"), "ranks must be"),
        (with_line(b"A" * 9000 + b" 256"), "line 257"),
        (with_line(b"\x00" * 5000), "line 257"),
        (with_line("中 256".encode()), "line 257"),
        (with_line(b"YWI= \xd9\xa3"), "line 257"),
        (BYTE_LINES[:255], "no token for 1 of the 256 bytes"),
        ([b"YWI= 0"], "no token for 256"),
        ([b'{"model": "json"}'], "line 1"),
    ],
)
def test_damaged_files(tmp_path: Path, lines: list[bytes], said: str) -> None:
    path = written(tmp_path, lines)
    with pytest.raises(FormatError) as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value) and "\n" not in str(caught.value)


def test_size_limit_and_odd_paths(tmp_path: Path) -> None:
    junk = tmp_path / "junk.tiktoken"
    with junk.open("wb") as file:
        file.truncate(1 << 30)  # a hole: takes no disk
    with pytest.raises(FormatError, match="bytes, more than"):
        Tokenizer.load(junk)
    with pytest.raises(MissingError):
        files.read_ranks(tmp_path / "none")
    with pytest.raises(FormatError):
        files.read_ranks(tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutations_give_a_vocabulary_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(b"\n".join(BYTE_LINES) + b"\nYWI= 256\n")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path = tmp_path_factory.getbasetemp() / "mutated.tiktoken"
    path.write_bytes(raw)
    try:
        tokenizer = Tokenizer.load(path)
    except KiloqError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert tokenizer.decode(tokenizer.encode("abc é", normalize=False)) == "abc é"


def test_a_folder_prefers_ranks_and_takes_its_expansion_along(tmp_path: Path, qwen: Tokenizer) -> None:
    extra = shared("goldens", "tokenizer", "extra_cats.tiktoken")
    (tmp_path / files.TIKTOKEN_FILE).symlink_to(qwen_vocabulary())
    (tmp_path / files.EXTRA_FILE).write_bytes(extra.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"model_max_length": 8192, "auto_map": {"AutoTokenizer": ["x", null]}}'
    )
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("我是一只猫") == [151_854]
    assert loaded.vocabulary.max_length == 8192
    assert loaded.chat([{"role": "user", "content": "x"}]) == qwen.chat([{"role": "user", "content": "x"}])


def test_expansions_skip_known_tokens_and_ids_in_use(tmp_path: Path, qwen: Tokenizer) -> None:
    known, free = base64.b64encode(b"hello"), base64.b64encode("我是".encode())
    path = written(tmp_path, [known + b" 160000", free + b" 151643", base64.b64encode(b"qqqq") + b" 151900"])
    expanded = qwen.add_vocabulary(path)
    assert expanded.encode("hello") == qwen.encode("hello")
    assert expanded.id_of("<|endoftext|>") == 151_643
    assert expanded.vocab_size == 151_901
