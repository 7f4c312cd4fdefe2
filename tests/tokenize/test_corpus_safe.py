"""`kiloq tokenize corpus` killed at any moment, and what it and the reader of shards refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError
from kiloq.core.manifest import write_manifest
from kiloq.tokenize.command import command
from kiloq.tokenize.corpus import run as corpus_run
from kiloq.tokenize.corpus.encode import Encoder
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.tokenize.texts import Text
from kiloq.tokenize.tokenizer import Tokenizer

from .corpora import (
    ROWS,
    SENTENCES,
    contents,
    got,
    run,
    wanted,
    write_rows,
)

pytest.importorskip("fastokens")

# Kills

KILLED = """
import os, signal, sys
from kiloq.core import work
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
    dying(work, "move_in", 1)
elif moment == "after the move":
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
