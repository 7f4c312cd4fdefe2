"""`kiloq tokenize corpus` where things go wrong: other vocabularies, hostile texts, killed workers, full disks, damage."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from oracles import piece_vocabularies
from support import default_model, qwen_vocabulary

from kiloq.core.errors import FormatError, KiloqError
from kiloq.tokenize.command import command
from kiloq.tokenize.corpus import run as corpus_run
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.tokenize.tokenizer import Tokenizer

pytest.importorskip("fastokens")

KILOQ = [sys.executable, "-m", "kiloq", "tokenize", "corpus"]
SHORT = "from kiloq.tokenize.corpus import run; run.SHARD_BYTES = 1; import sys; from kiloq.__main__ import main; "
SHARDS = [sys.executable, "-c", SHORT + "sys.exit(main())", *KILOQ[3:]]  # a shard for every file
FILES, ROWS = 12, 40


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, ["corpus", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents_of(out: Path) -> list[list[int]]:
    corpus = Corpus(out, verify=True)
    return [corpus.document(number).tolist() for number in range(corpus.documents)]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece vocabulary, which is quick to load."""
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.json"
    path.write_text(json.dumps(piece_vocabularies.trained(400)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve files, 480 documents."""
    made = tmp_path / "in"
    made.mkdir()
    for number in range(FILES):
        rows = [f"{text} {number} {at}" for at, text in zip(range(ROWS), piece_vocabularies.texts(ROWS), strict=False)]
        write_rows(made / f"{number:02}.jsonl", rows)
    return made


# The ids


@pytest.mark.parametrize("form", piece_vocabularies.FORMS)
def test_sentencepiece_vocabularies(form: str, tmp_path: Path) -> None:
    source = tmp_path / "tokenizer.json"
    source.write_text(json.dumps(piece_vocabularies.trained(400, form)))
    texts = piece_vocabularies.texts(30)
    run(write_rows(tmp_path / "rows.jsonl", texts), "-t", source, "-o", tmp_path / "out")
    tokenizer = Tokenizer.load(source)
    assert documents_of(tmp_path / "out") == [[*tokenizer.encode(text), tokenizer.id_of("</s>")] for text in texts]


def test_the_default_model_s_vocabulary(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    source = default_model()
    texts = [*piece_vocabularies.texts(100), "<|im_end|>", "cafe\u0301 1234567 \u1100\u1161"]
    run(write_rows(tmp_path / "rows.jsonl", texts), "-t", source, "-o", tmp_path / "out")
    tokenizer = Tokenizer.load(source)
    assert documents_of(tmp_path / "out") == [
        [*tokenizer.encode(text), tokenizer.id_of("<|endoftext|>")] for text in texts
    ]
    theirs = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    for text, ids in zip(texts, documents_of(tmp_path / "out"), strict=True):
        assert "<|" in text or ids[:-1] == theirs.encode(text, add_special_tokens=False).ids


def test_a_megabyte_of_one_thing(qwen: Tokenizer, tmp_path: Path) -> None:
    million = 1_000_000
    texts = [
        "a" * million,
        " " * million,
        "\n" * million,
        "e" + "\u0301\u0323" * (million // 4),
        "\U0001f600" * 250_000,
    ]
    run(write_rows(tmp_path / "rows.jsonl", texts), "-t", qwen_vocabulary(), "-o", tmp_path / "out", "--processes", 1)
    end = qwen.id_of("<|endoftext|>")
    assert documents_of(tmp_path / "out") == [[*qwen.encode(text), end] for text in texts]


def test_many_documents_of_many_sources_take_no_time(pieces: Path, tmp_path: Path) -> None:
    rows = [{"text": "", "site": str(number % 20_000)} for number in range(60_000)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(path, "-t", pieces, "-o", tmp_path / "out", "--by", "site")
    corpus = Corpus(tmp_path / "out")
    assert (corpus.documents, corpus.tokens, len(corpus.sources)) == (60_000, 60_000, 20_000)
    assert corpus.documents_of("7").tolist() == [7, 20_007, 40_007]
    index = json.loads((tmp_path / "out" / "index.json").read_bytes())
    assert set(index["tokens_by_source"].values()) == {3}


# A large Parquet file


def test_a_large_parquet_file_becomes_many_shards(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"{text} {at}" for at, text in enumerate(piece_vocabularies.texts(200))]
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"text": texts, "language": (["en", "zh"] * len(texts))[: len(texts)]}), path, row_group_size=20
    )
    groups = pq.ParquetFile(path).metadata.num_row_groups
    run(path, "-t", pieces, "-o", tmp_path / "whole")
    assert len(Corpus(tmp_path / "whole").shards) == 1
    for limit, shards in ((1, groups), (path.stat().st_size // 3, range(3, 6))):
        monkeypatch.setattr(corpus_run, "SHARD_BYTES", limit)
        outs = [tmp_path / f"out{limit}-{processes}" for processes in (1, 2)]
        for processes, out in enumerate(outs, start=1):
            run(path, "-t", pieces, "-o", out, "--processes", processes)
        assert contents(outs[0]) == contents(outs[1])
        assert documents_of(outs[0]) == documents_of(tmp_path / "whole")
        count = len(Corpus(outs[0]).shards)
        assert count == shards if isinstance(shards, int) else count in shards
        assert Corpus(outs[0]).documents_of("zh").tolist() == list(range(1, len(texts), 2))
    monkeypatch.setattr(corpus_run, "SHARD_BYTES", 1)
    (tmp_path / "bad.parquet").write_bytes(path.read_bytes()[:-9] + bytes(9))
    with pytest.raises(FormatError, match=r"bad\.parquet: cannot be read as Parquet"):
        run(tmp_path / "bad.parquet", "-t", pieces, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("words", ["a"], 'has no column "text"'),
        ("text", ["a", None], 'has a row whose "text" is no string'),
        ("text", [b"a"], 'has a row whose "text" is no string'),
        ("text", [["a"]], 'has a row whose "text" is no string'),
    ],
)
def test_parquet_without_text(pieces: Path, tmp_path: Path, column: str, values: list[Any], said: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({column: values}), tmp_path / "rows.parquet")
    with pytest.raises(FormatError, match=said):
        run(tmp_path / "rows.parquet", "-t", pieces, "-o", tmp_path / "out")


# Kills, full disks


def children(pid: int) -> list[int]:
    """Processes that encode for `pid`."""
    listed = [read_or_nothing(path) for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in b" ".join(listed).split() if b"spawn_main" in line_of(int(child))]


def line_of(pid: int) -> bytes:
    """The command line of a process; nothing of one that is gone."""
    return read_or_nothing(Path(f"/proc/{pid}/cmdline"))


def read_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_for(condition: Any, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came")


@pytest.mark.parametrize("verb", ["corpus", "train"])
@pytest.mark.parametrize("seconds", [0.0, 0.8])
def test_a_killed_worker_is_one_sentence(verb: str, seconds: float, pieces: Path, tmp_path: Path) -> None:
    """Also where it dies while the next one is being started, which Python's own pool would wait for."""
    (tmp_path / "in").mkdir()
    for number in range(8):  # seconds of work
        words = random.Random(number).randbytes(1_000_000).hex(" ", 3)
        (tmp_path / "in" / f"{number}.txt").write_text(words.replace(" 0", "\n"))
    options = ["-t", pieces] if verb == "corpus" else ["--vocab-size", "300"]
    slow = SHORT + "from kiloq.tokenize import counting; counting.BATCH_CHARS = 1; run.BATCH_CHARS = 1; "
    line = [
        sys.executable,
        "-c",
        slow + "sys.exit(main())",
        "tokenize",
        verb,
        tmp_path / "in",
        *options,
        "--processes",
        "2",
    ]
    with subprocess.Popen([*line, "-o", tmp_path / "out"], stderr=subprocess.PIPE, text=True) as started:
        first = wait_for(lambda: children(started.pid))[0]
        time.sleep(seconds)
        os.kill(first, signal.SIGKILL)
        _, said = started.communicate(timeout=60)
    assert started.returncode == 1 and not (tmp_path / "out").exists()
    assert said.count("\n") == 1 and "was killed: there may be too little memory" in said, said


def test_kills_at_any_moment_change_nothing(pieces: Path, folder: Path, tmp_path: Path) -> None:
    line = [*SHARDS, folder, "-t", pieces, "--processes", "2"]
    subprocess.run([*line, "-o", tmp_path / "whole"], check=True, capture_output=True)
    chance = random.Random(5)
    workers: set[int] = set()
    for _ in range(3):
        started = subprocess.Popen(
            [*line, "-o", tmp_path / "out"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: children(started.pid) or started.poll() is not None)  # noqa: B023 - called in this turn
        time.sleep(chance.uniform(0.0, 1.0))
        workers |= set(children(started.pid)) if started.poll() is None else set()
        started.kill()
        started.wait(30)
    wait_for(lambda: not any(b"spawn_main" in line_of(pid) for pid in workers))  # nobody works on after the kill
    subprocess.run([*line, "-o", tmp_path / "out"], check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    Corpus(tmp_path / "out", verify=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_corpus(pieces: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder / "00.jsonl", "-t", pieces, "-o", out)
    before = contents(out)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

    line = [*KILOQ, folder, "-t", pieces, "-o", out, "--processes", "1"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, preexec_fn=small_files, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written" in done.stderr and "make room" in done.stderr
    assert contents(out) == before
    run(folder, "-t", pieces, "-o", out)
    assert Corpus(out, verify=True).documents == FILES * ROWS


# Damage


@pytest.mark.parametrize("name", ["index.json", "manifest.json", "00000.offsets", "00000.sources", "00000.tokens"])
def test_random_damage_is_refused_or_harmless(name: str, pieces: Path, folder: Path, tmp_path: Path) -> None:
    """Whatever bytes a file has, reading ends in arrays of the promised sizes or in one sentence."""
    out = tmp_path / "out"
    run(folder / "00.jsonl", "-t", pieces, "-o", out)
    whole, chance = (out / name).read_bytes(), random.Random(name)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.choice((0, 1, 1, 8))] = chance.choice(
                (b"", b"\x00", b"9", b"-", b'"', chance.randbytes(8))
            )
        (out / name).write_bytes(data)
        try:
            corpus = Corpus(out)
            for number in range(min(corpus.documents, 3)):
                assert len(corpus.document(number)) >= 1
            for source in corpus.sources:
                corpus.documents_of(source)
        except KiloqError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            if bytes(data) != whole and name != "manifest.json":  # whose white space says nothing
                with pytest.raises(KiloqError, match="damaged"):
                    Corpus(out, verify=True)
    assert refused > 20


def test_reads_equal_a_naive_reader(
    pieces: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_run, "SHARD_BYTES", 1)
    run(folder, "-t", pieces, "-o", tmp_path / "out")
    corpus = Corpus(tmp_path / "out")
    flat = np.concatenate([np.fromfile(tmp_path / "out" / f"{at:05}.tokens", "<u4") for at in range(FILES)])
    assert flat.tolist() == [token for number in range(corpus.documents) for token in corpus.document(number)]
    assert [corpus.place(number) for number in range(corpus.documents)] == [
        (shard, number) for shard in range(FILES) for number in range(ROWS)
    ]
    assert type(corpus.shards[0].ids) is np.ndarray and not corpus.shards[0].ids.flags.writeable
