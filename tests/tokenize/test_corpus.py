"""`kiloq tokenize corpus`: every document equals the Tokenizer's ids, on any number of processes and after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support import qwen_vocabulary

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError
from kiloq.core.manifest import write_manifest
from kiloq.tokenize import texts
from kiloq.tokenize.command import command
from kiloq.tokenize.corpus import run as corpus_run
from kiloq.tokenize.corpus.encode import Encoder
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.tokenize.counting import count_pieces
from kiloq.tokenize.texts import Text
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.train import train
from kiloq.tokenize.vocabulary import qwen as qwen_of

pytest.importorskip("fastokens")

SENTENCES = (
    "The cat sat on the mat; the cats' 12 mats aren't   there.\n\n\tif x == 10:\n        return xx\n",
    "一只猫坐在垫子上，两只猫也坐在垫子上。\r\nเสรีภาพ e\u0301té été \U0001f431\U0001f431 aaaaaaa\n",
)
DOCUMENTS = (
    *SENTENCES,
    "",
    "<|endoftext|> is text, and so are <|im_start|>system\n<|im_end|> and <|extra_7|>",
    "cafe\u0301 \u1100\u1161\u11a8 q\u0323\u0307 \u212b \ufb01 \ud800 lone",  # as JSON, the surrogate is an escape
    "a" * 100_000,
    " " * 100_000 + "x",
    "中" * 5_000 + "\u0301" * 5_000 + "!" * 10_000 + "\r\n" * 5_000,
    " ",
    "\n",
    "",
)
PLAIN = {"story.en.txt": SENTENCES[0] * 3, "empty.txt": "", "control.md": "<|endoftext|>\n<|im_end|>\n"}
ROWS = [{"text": text, "language": ("en", "zh")[number % 2]} for number, text in enumerate(DOCUMENTS)]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, ["corpus", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_plain(folder: Path) -> Path:
    folder.mkdir()
    for name, text in PLAIN.items():
        (folder / name).write_bytes(text.encode())
    return folder


def write_prepared(folder: Path) -> Path:
    """A folder such as `kiloq prepare` writes: documents in Parquet files, and others that are none."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "documents").mkdir(parents=True)
    for number, source in enumerate(("books", "web")):
        rows = [text for text in DOCUMENTS if "\ud800" not in text][number::2]
        table = pa.table({"text": rows, "source": [source] * len(rows), "language": ["en"] * len(rows)})
        pq.write_table(table, folder / "documents" / f"{number:05}.parquet")
    (folder / "report.md").write_text("no document\n")
    write_manifest(folder, "documents")
    return folder


def many_files(folder: Path, count: int = 9) -> Path:
    """JSON lines whose sources come in another order in every file."""
    folder.mkdir()
    for number in range(count):
        rows = [{"text": f"{SENTENCES[at % 2]} {number} {at}", "site": f"s{(number + at) % 4}"} for at in range(5)]
        write_rows(folder / f"{number}.jsonl", rows)
    return folder


def wanted(tokenizer: Tokenizer, documents: Sequence[str]) -> list[list[int]]:
    return [[*tokenizer.encode(text), tokenizer.id_of("<|endoftext|>")] for text in documents]


def got(out: Path) -> list[list[int]]:
    """All documents, read without kiloq."""
    found = []
    for row in json.loads((out / "index.json").read_bytes())["shards"]:
        ids = np.fromfile(out / f"{row['name']}.tokens", "<u4")
        offsets = np.fromfile(out / f"{row['name']}.offsets", "<i8").tolist()
        assert offsets[0] == 0 and offsets[-1] == len(ids) == row["tokens"] and len(offsets) == row["documents"] + 1
        found += [ids[begin:end].tolist() for begin, end in pairwise(offsets)]
    return found


def sources_of(out: Path) -> list[str]:
    index = json.loads((out / "index.json").read_bytes())
    numbers = [n for row in index["shards"] for n in np.fromfile(out / f"{row['name']}.sources", "<u2").tolist()]
    return [index["sources"][number] for number in numbers]


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a corpus, hidden ones too; manifest.json has times."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small vocabulary."""
    pieces = count_pieces([Text("all", text) for text in SENTENCES], {}, 1, 1).pieces
    folder = tmp_path_factory.mktemp("vocabulary")
    Tokenizer(qwen_of(train(pieces, 300))).save(folder)
    return folder


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Input that becomes nine shards."""
    monkeypatch.setattr(corpus_run, "SHARD_BYTES", 1)
    return many_files(tmp_path / "many")


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


# Kills

KILLED = """
import os, signal, sys
from kiloq.core import manifest
from kiloq.tokenize.corpus import encode, run

def dying(holder, name, calls):
    real, made = getattr(holder, name), [0]
    def call(*arguments):
        made[0] += 1
        if made[0] == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    setattr(holder, name, call)

run.SHARD_BYTES, run.BATCH_CHARS = 1, 100
moment = sys.argv.pop(1)
if moment == "within a shard":
    dying(run._Shard, "_write", 10)
elif moment == "before a record":
    dying(run, "write_json", 4)
elif moment == "before the index":
    dying(run, "write_index", 1)
elif moment == "before the move":
    dying(manifest, "move_in", 1)
elif moment == "after the move":
    from kiloq.core import work
    dying(work.WorkFolder, "remove", 1)
from kiloq.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "moment", ["within a shard", "before a record", "before the index", "before the move", "after the move"]
)
def test_a_kill_changes_nothing(small: Path, many: Path, tmp_path: Path, moment: str) -> None:
    finished, out = tmp_path / "finished", tmp_path / "out"
    rest = "-t", str(small), "--by", "site", "--processes", "1", "-o"
    run(many, *rest, finished)
    line = [sys.executable, "-c", KILLED, moment, "tokenize", "corpus", str(many), *rest, str(out)]
    killed = subprocess.run(
        line, check=False, capture_output=True, env={**os.environ, "PYTHONWARNINGS": "error"}, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert out.exists() == (moment == "after the move")
    work = tmp_path / ".out.encoding"
    assert len(list(work.glob("0*.json"))) == {"within a shard": 2, "before a record": 3}.get(moment, 9)
    run(many, *rest, out)
    assert contents(out) == contents(finished) and not work.exists()
    Corpus(out, verify=True)


def test_only_unfinished_shards_are_made_again(
    small: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = corpus_run.encode_shard

    def stopping(job: dict[str, Any], folder: Path, number: int, encoder: Encoder) -> dict[str, Any]:
        if number == stop:
            raise KeyboardInterrupt
        made.append(number)
        return real(job, folder, number, encoder)

    monkeypatch.setattr(corpus_run, "encode_shard", stopping)
    line = many, "-t", small, "-o", tmp_path / "out", "--processes", 1
    for stop in (3, 5):  # noqa: B007 - `stopping` reads it
        result = CliRunner().invoke(command, ["corpus", *map(str, line)])
        assert result.exit_code != 0
    (tmp_path / ".out.encoding" / "result" / "00001.tokens").write_bytes(b"")  # a file that lost its bytes
    stop = -1
    run(*line)
    assert made == [0, 1, 2, 3, 4, 1, 5, 6, 7, 8]
    monkeypatch.setattr(corpus_run, "encode_shard", real)
    run(many, "-t", small, "-o", tmp_path / "again", "--processes", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_changed_input_starts_anew(small: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "-t", small, "--by", "site", "--processes", 1, "-o", tmp_path / "out"

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(corpus_run, "write_index", interrupted)
        assert CliRunner().invoke(command, ["corpus", str(many), *map(str, line)]).exit_code != 0
    write_rows(many / "0.jsonl", [{"text": "another text", "site": "new"}])
    run(many, *line)
    assert got(tmp_path / "out")[0] == wanted(Tokenizer.load(small), ["another text"])[0]
    assert Corpus(tmp_path / "out", verify=True).sources == ["new", "s1", "s2", "s3", "s0"]


def test_a_folders_sources_are_its_first_folders(small: Path, tmp_path: Path) -> None:
    for language in ("en", "zh"):
        (tmp_path / "in" / language).mkdir(parents=True)
        (tmp_path / "in" / language / "a.txt").write_text(SENTENCES[0])
    run(tmp_path / "in", "-t", small, "-o", tmp_path / "out")
    assert Corpus(tmp_path / "out").sources == ["en", "zh"]
    with pytest.raises(UsageError, match="has no source 'fr': it has en, zh"):
        Corpus(tmp_path / "out").documents_of("fr")


def test_a_sentencepiece_text_in_parts_has_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such vocabularies put a space before a text, and so not before a part of one."""
    said: list[tuple[str, bool]] = []

    class Spy:
        vocabulary = None

        def encode(self, text: str, *, continues: bool = False) -> list[int]:
            said.append((text, continues))
            return [1]

    encoder: Any = Encoder(Spy(), 0)  # type: ignore[arg-type]
    encoder.encode([Text("g", "ab"), Text("g", "cd", continues=True)])
    assert said == [("ab", False), ("cd", True)]


# What is refused


def damage(path: Path, change: Any) -> None:
    index = json.loads(path.read_bytes())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.pop("end_id"), "end_id"),
        (lambda index: index.update(format_version=9), "has format 9"),
        (lambda index: index.update(vocab_size="many"), "many"),
        (lambda index: index.update(vocab_size=None), "None"),
        (lambda index: index.update(vocab_size=-5), "the number -5"),
        (lambda index: index.update(end_id=10**12), "the number 1000000000000"),
        (lambda index: index["shards"][0].update(documents=-1), "the number -1"),
        (lambda index: index.update(sources="abcd"), "sources"),
        (lambda index: index["shards"][0].update(name="\u0663"), "shard name"),
        (lambda index: index.update(shards=7), "damaged"),
        (lambda index: index.update(sources=None), "damaged"),
        (lambda index: index["shards"][0].update(name="../00000"), "shard name"),
        (lambda index: index["shards"][0].pop("tokens"), "tokens"),
        (lambda index: index["shards"][0].update(tokens=1), "does not cut the shard"),
        (lambda index: index["shards"][0].update(documents=10**9), "its index says"),
    ],
)
def test_damaged_indexes(small: Path, tmp_path: Path, change: Any, said: str) -> None:
    out = tmp_path / "out"
    run(write_rows(tmp_path / "rows.jsonl", ROWS[:2]), "-t", small, "-o", out)
    damage(out / "index.json", change)
    with pytest.raises(FormatError, match=said):
        Corpus(out).document(0)
    with pytest.raises(FormatError, match="damaged"):
        Corpus(out, verify=True)


def test_damaged_folders(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(write_rows(tmp_path / "rows.jsonl", ROWS[:3]), "-t", small, "-o", out)
    whole = {path: path.read_bytes() for path in out.iterdir()}
    offsets = np.fromfile(out / "00000.offsets", "<i8")
    for name, content in (
        ("00000.tokens", whole[out / "00000.tokens"][:-1]),
        ("00000.offsets", b""),
        ("00000.offsets", offsets[[0, 2, 1, 3]].tobytes()),
        ("00000.offsets", (offsets + 1).tobytes()),
        ("00000.sources", whole[out / "00000.sources"] * 2),
        ("index.json", b"[]"),
        ("index.json", b"{"),
        ("manifest.json", b"{}"),
        ("manifest.json", b"\xff"),
    ):
        (out / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            shard = Corpus(out).shards[0]
            shard.document(0), shard.sources
        (out / name).write_bytes(whole[out / name])
    for name in whole:
        name.unlink()
        with pytest.raises(MissingError, match=name.name):
            shard = Corpus(out).shards[0]
            shard.document(0), shard.sources
        name.write_bytes(whole[name])
    flipped = bytearray(whole[out / "00000.tokens"])
    flipped[0] ^= 1
    (out / "00000.tokens").write_bytes(flipped)
    with pytest.raises(FormatError, match="sha256"):
        Corpus(out, verify=True)
    with pytest.raises(FormatError, match="is tokenizer"):
        write_manifest(out, "tokenizer")
        Corpus(out)


def test_wrong_ids_end_the_run(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Encoder.encode

    def wrong(self: Encoder, some: Sequence[str]) -> Any:
        ids, counts = real(self, some)
        return np.where(ids == ids.max(initial=0), 0, ids), counts

    monkeypatch.setattr(Encoder, "encode", wrong)
    line = write_rows(tmp_path / "rows.jsonl", ROWS), "-t", small, "-o", tmp_path / "out"
    with pytest.raises(KiloqError, match=r"different ids for the text that begins 'The cat.*--exact"):
        run(*line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "said", "processes"),
    [
        ("{", "line 2 is not JSON", 1),
        ("[" * 100_000, "line 2 is not JSON", 1),
        ('{"text": 7, "site": "a"}', 'line 2 has no string "text"', 1),
        ('["text"]', 'line 2 has no string "text"', 1),
        ('{"text": "x"}', "line 2 has no field 'site'", 1),
        ("{", "line 2 is not JSON", 2),
    ],
)
def test_bad_rows(small: Path, many: Path, tmp_path: Path, line: str, said: str, processes: int) -> None:
    (many / "0.jsonl").write_text(f'{{"text": "x", "site": "a"}}\n{line}\n')
    with pytest.raises(FormatError, match=said) as caught:
        run(many, "-t", small, "-o", tmp_path / "out", "--by", "site", "--processes", processes)
    assert "\n" not in str(caught.value) and "0.jsonl" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_files_and_options(small: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    bad = {"bad.txt": b"fine\n\xff\n", "bad.parquet": b"PAR1", "bad.jsonl": b"\xff\n"}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            run(tmp_path / name, "-t", small, "-o", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for line, error, said in (
        ((tmp_path / "none.jsonl", "-o", tmp_path / "out"), MissingError, "none.jsonl"),
        ((rows, "-o", tmp_path / "out", "--end", "no"), UsageError, "'no' is no control token"),
        ((rows, "-o", tmp_path / "full"), UsageError, "not empty"),
    ):
        with pytest.raises(error, match=said):
            run(*line, "-t", small)


def test_one_json_object_or_one_line(small: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    printed = run(rows, "-t", small, "-o", out, "--json")
    report = json.loads(printed)
    assert printed.count("\n") == 1 and report["out"] == str(out) and report["documents"] == len(ROWS)
    said = run(rows, "-t", small, "-o", out)
    assert said.count("\n") == 1 and f"{report['tokens']:,} tokens in {len(ROWS)} documents, 1 shards" in said
