"""BPE training: equal to counting anew, to an independent trainer, and loadable everywhere with equal ids."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import regex
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import naive_bpe, naive_bpe_training
from support import shared

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError
from kiloq.core.manifest import verify_manifest, write_manifest
from kiloq.tokenize import texts
from kiloq.tokenize import train as trainer
from kiloq.tokenize.command import command
from kiloq.tokenize.command_train import parse_weights
from kiloq.tokenize.counting import MAX_PIECE_BYTES, count_pieces
from kiloq.tokenize.export import tiktoken_lines
from kiloq.tokenize.files import read_tiktoken
from kiloq.tokenize.patterns import QWEN
from kiloq.tokenize.texts import Text
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.train import train
from kiloq.tokenize.vocabulary import BYTES, Vocabulary

TEXT = (
    "The cat sat on the mat; the cats' 12 mats aren't   there.\n\n\tif x == 10:\n        return xx\n"
    "一只猫坐在垫子上，两只猫也坐在垫子上。\r\nเสรีภาพ e\u0301té été \U0001f431\U0001f431 aaaaaaa\n"
) * 3
PIECES = st.dictionaries(st.text("ab c", min_size=1, max_size=9).map(str.encode), st.integers(1, 5), max_size=9)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def naive_counts(text: str) -> dict[bytes, int]:
    return {piece.encode(): count for piece, count in Counter(regex.findall(QWEN.expression, text)).items()}


def full(call: Callable[[int], dict[bytes, int]], size: int) -> dict[bytes, int]:
    """Ranks of `size` tokens, or of as many as the refusal says that there are."""
    try:
        return call(size)
    except UsageError as error:
        found = regex.search(r"after ([\d,]+) tokens", str(error))
        assert found, error
        return call(int(found[1].replace(",", "")))


# The trainer


@pytest.mark.parametrize(("many", "kept", "bits"), [(1, 1, 63), (1, 2, 0), (4, 1024, 63), (64, 2, 63)])
def test_equals_counting_anew_in_all_ways_of_merging(
    many: int, kept: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "MANY", many)
    monkeypatch.setattr(trainer, "KEY_BITS", bits)
    monkeypatch.setattr(trainer, "KEPT", kept)  # few pairs kept: counted anew all the time

    @settings(max_examples=150, deadline=None)
    @given(PIECES)
    def check(counts: dict[bytes, int]) -> None:
        assert full(lambda size: train(counts, size), 290) == naive_bpe_training.train(counts, 290)

    check()
    counts = naive_counts(TEXT)
    assert train(counts, 330) == naive_bpe_training.train(counts, 330)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.lists(st.text("abc", min_size=2, max_size=4).map(str.encode), unique=True, max_size=6))
def test_going_on_equals_counting_anew_even_where_no_merges_lead_to_tokens(
    counts: dict[bytes, int], tokens: list[bytes]
) -> None:
    start = {token: rank for rank, token in enumerate([*BYTES, *tokens])}

    def call(size: int) -> dict[bytes, int]:
        return train(counts, size, start=start, encode=lambda piece: naive_bpe.by_ranks(piece, start))

    size = len(start) + 25
    assert full(call, size) == naive_bpe_training.train(counts, size, start)


def test_equals_rustbpe_on_real_text() -> None:
    rustbpe = pytest.importorskip("rustbpe")
    zstandard = pytest.importorskip("zstandard")
    folder = shared("data", "long_documents")
    names = ("en_pride_and_prejudice", "zh_sanguo_yanyi")
    text = "".join(
        zstandard.open(folder / f"{name}.txt.zst", "rt", encoding="utf-8").read()[:200_000] for name in names
    )
    other = rustbpe.Tokenizer()
    other.train_from_iterator(iter([text]), 3000, pattern=QWEN.expression)
    assert train(naive_counts(text), 3000) == {bytes(token): rank for token, rank in other.get_mergeable_ranks()}


def test_sizes_that_cannot_be() -> None:
    for size in (-1, 255, (1 << 20) + 1, 10**30):
        with pytest.raises(UsageError, match="out of range"):
            train({b"ab": 1}, size)
    with pytest.raises(UsageError, match="after 257 tokens, and --vocab-size is 300"):
        train({b"ab": 1}, 300)
    assert len(train({}, 256)) == 256
    with pytest.raises(UsageError, match="give less text"):
        train({b"ab": 1 << 62}, 257)


# Counting


@pytest.mark.parametrize("processes", [1, 2])
def test_counts_equal_the_expression_on_whole_texts(processes: int) -> None:
    alphabet = "ab1 \n\r\t'.s\u3000\x1c猫é\xa0"
    random_text = random.Random(0)
    documents = ["".join(random_text.choices(alphabet, k=200)) for _ in range(300)] + [TEXT.replace("e\u0301", "é"), ""]
    plain = "aStTrReEvVmMlLdD9 \n\r\t\v\f\x1c\x1f'_-."
    documents += ["".join(random_text.choices(plain, k=200)) for _ in range(300)]
    found = count_pieces([Text("x", text) for text in documents], {}, 1, processes)
    wanted: Counter[bytes] = Counter()
    for text in documents:
        wanted.update(naive_counts(text))
    assert found.pieces == wanted
    assert found.documents == {"x": len(documents)}
    assert found.bytes["x"] == sum(len(text.encode()) for text in documents)


def test_weights_are_whole_numbers_in_the_same_ratio() -> None:
    assert parse_weights("") == ({}, 1)
    assert parse_weights("en=1,zh=2.5") == ({"en": 2, "zh": 5}, 2)
    assert parse_weights("a=b=0.25,c=0") == ({"a=b": 1, "c": 0}, 4)
    for wrong in ("en", "=2", "en=x", "en=nan", "en=inf", "en=-1", "en=1001", "en=0.0001", "en=1e2", "en=1,en=2"):
        with pytest.raises(UsageError, match="--weights has"):
            parse_weights(wrong)
    some = [Text("en", "the cat"), Text("zh", "猫"), Text("xx", "!")]
    found = count_pieces(some, {"en": 2, "zh": 5}, 2, 1)
    assert found.pieces == {b"the": 2, b" cat": 2, "猫".encode(): 5, b"!": 2}
    assert count_pieces(some, {"en": 0, "zh": 0}, 1, 1).pieces == {b"!": 1}
    with pytest.raises(UsageError, match="'de', and the texts are of: en, xx, zh"):
        count_pieces(some, {"de": 1}, 1, 1)


def test_pieces_too_long_to_be_tokens_are_left_out_and_counted() -> None:
    longest = "a" * MAX_PIECE_BYTES
    found = count_pieces([Text("x", f"{longest}\n{longest}a\n")], {}, 1, 1)
    assert found.pieces == {longest.encode(): 1, b"\n": 2} and found.long_pieces == 1


# The command


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "zh").mkdir(parents=True)
    (folder / "en.txt").write_text(TEXT, encoding="utf-8")
    (folder / "zh" / "a.jsonl").write_text(json.dumps({"text": "一只猫，一只狗。" * 5}) + "\n\n", encoding="utf-8")
    return folder


def test_the_folder_loads_everywhere_with_equal_ids(corpus: Path, tmp_path: Path) -> None:
    tiktoken, tokenizers = pytest.importorskip("tiktoken"), pytest.importorskip("tokenizers")
    out = tmp_path / "out"
    report = json.loads(run("train", corpus, "--vocab-size", 350, "--out", out, "--json"))
    assert report["tokens"] == 350 and report["documents_by_group"] == {"en": 1, "zh": 1}
    manifest = verify_manifest(out)
    assert manifest["kind"] == "tokenizer" and manifest["config"]["vocab_size"] == 350
    assert {str(corpus / "en.txt"), str(corpus / "zh" / "a.jsonl")} == manifest["inputs"].keys()
    ours, theirs = Tokenizer.load(out), tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    ranks = read_tiktoken(out / "qwen.tiktoken")
    plain = tiktoken.Encoding("x", pat_str=QWEN.expression, mergeable_ranks=ranks, special_tokens={})
    assert ours.vocab_size == 350 + 208 == theirs.get_vocab_size()
    for text in (TEXT, "unseen été 猫狗 \U0001f600\x00", ""):
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        if text != TEXT:  # which is not NFC
            assert ids == plain.encode_ordinary(text) == naive_bpe.encode(text, ranks, QWEN.expression)
            assert ours.decode(ids) == text
    assert theirs.token_to_id("<|im_end|>") == ours.id_of("<|im_end|>") == 352


def test_the_same_bytes_again_from_any_form_of_the_texts(corpus: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    write_packed(packed, [("en", TEXT), ("zh", "一只猫，一只狗。" * 5)])
    written = []
    for number, arguments in enumerate(
        [
            (corpus,),
            (corpus, "--processes", 2),
            (packed / "x.jsonl.gz",),
            (packed / "x.jsonl.zst",),
            (packed / "x.parquet",),
        ]
    ):
        out = tmp_path / f"out{number}"
        run("train", *arguments, "--weights", "en=1,zh=3", "--vocab-size", 300, "--out", out)
        written.append([(out / name).read_bytes() for name in ("qwen.tiktoken", "tokenizer.json")])
    assert all(files == written[0] for files in written)


def write_packed(folder: Path, rows: list[tuple[str, str]]) -> None:
    gzip, zstandard = pytest.importorskip("gzip"), pytest.importorskip("zstandard")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = "".join(json.dumps({"language": name, "text": text}) + "\n" for name, text in rows).encode()
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    half = len(lines) // 2  # two frames, as tools that pack in parallel write
    (folder / "x.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, (lines[:half], lines[half:]))))
    names, texts = zip(*rows, strict=True)
    pq.write_table(pa.table({"language": names, "text": texts}), folder / "x.parquet")


def test_going_on_from_a_vocabulary(corpus: Path, tmp_path: Path) -> None:
    first, second, straight = tmp_path / "first", tmp_path / "second", tmp_path / "straight"
    run("train", corpus, "--vocab-size", 290, "--out", first)
    run("train", corpus, "--vocab-size", 330, "--start", first, "--out", second)
    run("train", corpus, "--vocab-size", 330, "--out", straight)
    assert (second / "qwen.tiktoken").read_bytes() == (straight / "qwen.tiktoken").read_bytes()
    with pytest.raises(UsageError, match=r"--vocab-size 289 is out of range: it can be 290"):
        run("train", corpus, "--vocab-size", 289, "--start", first, "--out", tmp_path / "x")


def test_going_on_from_qwen(qwen: Tokenizer, tmp_path: Path) -> None:
    text, start = tmp_path / "words.txt", tmp_path / "qwen.tiktoken"
    text.write_text(" flibbertigibbets zyxwvutsrq 千里之行始于足下\n" * 4, encoding="utf-8")
    assert isinstance(qwen.vocabulary, Vocabulary)
    start.write_bytes(tiktoken_lines(qwen.vocabulary.ranks))
    run("train", text, "--vocab-size", 151_653, "--start", start, "--out", tmp_path / "out")
    made = Tokenizer.load(tmp_path / "out").vocabulary
    assert isinstance(made, Vocabulary)
    counts = naive_counts(text.read_text(encoding="utf-8"))
    assert made.ranks == naive_bpe_training.train(counts, 151_653, qwen.vocabulary.ranks)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"good\n\xff\xfe\n", "line 2 is not UTF-8"),
        ("a.txt", b"", "nothing to learn from in 1 documents"),
        ("a.jsonl", b"", "nothing to learn from in 0 documents"),
        ("a.jsonl", b'{"text": ""}\n', "nothing to learn from"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', 'line 2 has no string "text"'),
        ("a.jsonl", b"\xff\n", "line 1 is not JSON"),
        ("a.jsonl.gz", b"not gzip", "damaged"),
        ("a.txt.gz", bytes.fromhex("1f8b0800000000000003cb48cd"), "damaged or cut short"),
        ("a.txt.zst", b"not zstd", "cannot be unpacked"),
        ("a.txt.zst", bytes.fromhex("28b52ffd2003190000"), "cut short"),
        ("a.parquet", b"PAR1 not", "cannot be read as Parquet"),
        ("missing/a.txt", None, "no such file"),
        ("folder", None, "has no file to read"),
    ],
)  # fmt: skip
def test_bad_inputs_are_one_sentence(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    (tmp_path / "folder").mkdir()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(KiloqError, match=said) as raised:
        run("train", tmp_path / name, "--vocab-size", 300, "--out", tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("ending", "package"), [("jsonl.zst", "zstandard"), ("parquet", "pyarrow")])
def test_a_missing_package_is_named(ending: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_packed(tmp_path, [("en", TEXT)])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=r"pip install 'kiloq\[data\]'"):
        run("train", tmp_path / f"x.{ending}", "--vocab-size", 300, "--out", tmp_path / "out")


def test_a_long_file_comes_in_parts_that_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.txt"
    text = (TEXT + "...\n\n\n  indented\n\u3000wide\n").replace("e\u0301", "é") * 3
    path.write_bytes(text.encode())
    monkeypatch.setattr(texts, "PART_CHARS", 1)
    monkeypatch.setattr(texts, "BLOCK_BYTES", 7)
    parts = list(texts.read_texts([path]))
    assert "".join(part.text for part in parts) == text and len(parts) > 10
    found = count_pieces(parts, {}, 1, 1)
    assert found.pieces == naive_counts(text) and found.documents == {"long": 1}
    monkeypatch.setattr(texts, "MAX_LINE_BYTES", 20)
    with pytest.raises(FormatError, match="a line longer than 20 bytes"):
        list(texts.read_texts([path]))


def test_groups_are_the_row_s_language_then_the_folder_then_the_file(tmp_path: Path) -> None:
    (tmp_path / "zh" / "deep").mkdir(parents=True)
    (tmp_path / "zh" / "deep" / "a.txt").write_text("x")
    (tmp_path / "en.part1.txt").write_text("x")
    (tmp_path / "notes.pdf").write_text("not read")
    (tmp_path / "rows.jsonl").write_text(
        '{"text": "x", "lang": "de", "id": 7}\n{"text": "x"}\n{"text": "x", "lang": "\\ud800"}'
    )
    assert [text.group for text in texts.read_texts([tmp_path])] == ["en", "de", "rows", "\ufffd", "zh"]
    assert next(texts.read_texts([tmp_path / "rows.jsonl"], "id")).group == "7"


def test_of_a_prepared_folder_the_documents_alone_are_read(tmp_path: Path) -> None:
    for name in ("documents/a/0.jsonl", "removed/01-gopher/0.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert len(list(texts.read_texts([tmp_path]))) == 2  # without a manifest it is a folder like any other
    write_manifest(tmp_path, "documents")
    assert [(text.group, text.text) for text in texts.read_texts([tmp_path])] == [("a", "documents/a/0.jsonl")]


def test_nothing_of_somebody_else_is_replaced(corpus: Path) -> None:
    with pytest.raises(UsageError, match="not written by kiloq"):
        run("train", corpus, "--vocab-size", 300, "--out", corpus)
