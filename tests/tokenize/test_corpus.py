"""`kiloq tokenize corpus`: every document equals the Tokenizer's ids, on any number of processes."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from support import qwen_vocabulary

from kiloq.tokenize import texts
from kiloq.tokenize.corpus import run as corpus_run
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.tokenize.tokenizer import Tokenizer

from .corpora import (
    DOCUMENTS,
    PLAIN,
    ROWS,
    SENTENCES,
    contents,
    got,
    run,
    sources_of,
    wanted,
    write_plain,
    write_prepared,
    write_rows,
)

pytest.importorskip("fastokens")

# The ids


@pytest.mark.parametrize(("name", "exact"), [("qwen", False), ("small", False), ("small", True)])
def test_every_document_equals_the_tokenizer(
    name: str, exact: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = qwen_vocabulary() if name == "qwen" else request.getfixturevalue("small")
    tokenizer = request.getfixturevalue("qwen") if name == "qwen" else Tokenizer.load(source)
    inputs = write_rows(tmp_path / "rows.jsonl", ROWS), write_plain(tmp_path / "plain")
    out = tmp_path / "out"
    report = json.loads(run(*inputs, "-t", source, "-o", out, "--json", *["--exact"] * exact))
    plain = [PLAIN[path] for path in sorted(PLAIN)]
    ids = wanted(tokenizer, [*DOCUMENTS, *plain])
    assert got(out) == ids
    assert sources_of(out) == [*(row["language"] for row in ROWS), *(path.split(".")[0] for path in sorted(PLAIN))]
    assert report["documents"] == len(ids) and report["tokens"] == sum(map(len, ids)) and report["shards"] == 1
    ends = tokenizer.special_tokens.values()
    assert all(document[-1] in ends and not set(document[:-1]) & set(ends) for document in ids)
    corpus = Corpus(out, verify=True)
    assert corpus.end_id == tokenizer.id_of("<|endoftext|>") and corpus.vocab_size == tokenizer.vocab_size
    composed = tokenizer.decode(got(out)[1], skip_special=True)
    assert composed == unicodedata.normalize("NFC", SENTENCES[1]) != SENTENCES[1]


def test_a_prepared_folder(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(write_prepared(tmp_path / "prepared"), "-t", small, "-o", out)
    documents = [text for text in DOCUMENTS if "\ud800" not in text]
    assert got(out) == wanted(Tokenizer.load(small), [*documents[::2], *documents[1::2]])
    assert sources_of(out) == ["books"] * len(documents[::2]) + ["web"] * len(documents[1::2])
    run(tmp_path / "prepared", "-t", small, "-o", out, "--by", "language", "--end", "<|im_end|>")
    assert set(sources_of(out)) == {"en"}
    assert {ids[-1] for ids in got(out)} == {Tokenizer.load(small).id_of("<|im_end|>")}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("batch", [1, 3000, 1 << 22])
def test_a_long_text_file_is_one_document(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, exact: bool
) -> None:
    monkeypatch.setattr(texts, "PART_CHARS", 1000)
    monkeypatch.setattr(corpus_run, "BATCH_CHARS", batch)
    text = "".join(SENTENCES) * 50
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.txt").write_bytes(f"{name} {text}".encode())
    assert len(list(texts.read_texts([tmp_path / "in"]))) > 10
    out = tmp_path / "out"
    run(tmp_path / "in", "-t", small, "-o", out, *["--exact"] * exact)
    assert got(out) == wanted(Tokenizer.load(small), [f"{name} {text}" for name in "ab"])
    assert sources_of(out) == ["a", "b"]


def test_a_text_file_of_more_than_a_part(small: Path, tmp_path: Path) -> None:
    text = SENTENCES[0] * (texts.PART_CHARS // len(SENTENCES[0]) + 100)
    (tmp_path / "long.txt").write_text(text)
    run(tmp_path / "long.txt", "-t", small, "-o", tmp_path / "out")
    (ids,) = got(tmp_path / "out")
    assert len(text) > texts.PART_CHARS and ids == wanted(Tokenizer.load(small), [text])[0]


def test_nothing_but_empty_files(small: Path, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    run(tmp_path / "none.jsonl", "-t", small, "-o", tmp_path / "out")
    corpus = Corpus(tmp_path / "out", verify=True)
    assert corpus.documents == corpus.tokens == 0 and got(tmp_path / "out") == []
    assert corpus.shards[0].ids.size == corpus.shards[0].sources.size == 0


# Shards


def test_sources_have_the_same_numbers_in_all_shards_and_are_found(small: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = json.loads(run(many, "-t", small, "-o", out, "--by", "site", "--processes", 1, "--json"))
    rows = [json.loads(line) for path in sorted(many.iterdir()) for line in path.read_text().splitlines()]
    documents, names = wanted(Tokenizer.load(small), [row["text"] for row in rows]), [row["site"] for row in rows]
    assert report["shards"] == 9 and report["bytes"] == sum(len(row["text"].encode()) for row in rows)
    assert got(out) == documents and sources_of(out) == names
    corpus = Corpus(out)
    assert corpus.sources == ["s0", "s1", "s2", "s3"] and corpus.documents == len(rows)
    for number, ids in enumerate(documents):
        assert corpus.document(number).tolist() == ids
        assert corpus.place(number) == divmod(number, 5)
    for name in corpus.sources:
        assert corpus.documents_of(name).tolist() == [at for at, found in enumerate(names) if found == name]
        counted = json.loads((out / "index.json").read_bytes())["tokens_by_source"][name]
        assert counted == sum(len(ids) for ids, of in zip(documents, names, strict=True) if of == name)
    for number in (-1, len(rows)):
        with pytest.raises(IndexError, match=f"{number} of 45"):
            corpus.place(number)


def test_empty_shards_hold_no_place(small: Path, many: Path, tmp_path: Path) -> None:
    for name in ("0", "4", "8"):
        (many / f"{name}.jsonl").write_text("")
    run(many, "-t", small, "-o", tmp_path / "out", "--processes", 1)
    corpus = Corpus(tmp_path / "out")
    shards = [corpus.place(number).shard for number in range(corpus.documents)]
    assert shards == [shard for shard in range(9) if shard not in (0, 4, 8) for _ in range(5)]


def test_processes_change_nothing(small: Path, many: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"out{count}" for count in (1, 2)]
    for count, out in enumerate(outs, start=1):
        run(many, "-t", small, "-o", out, "--by", "site", "--processes", count)
    assert contents(outs[0]) == contents(outs[1]) and len(contents(outs[0])) == 9 * 3 + 1
