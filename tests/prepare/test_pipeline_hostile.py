"""Runs over what a stranger may have laid out: names, sizes and texts of every kind, and recipes that cannot be right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kiloq.core.errors import KiloqError
from kiloq.core.manifest import verify_manifest
from kiloq.prepare.pipeline.recipe import read_recipe
from kiloq.prepare.pipeline.run import prepare

from .runs import rows_of, varied, write_corpus
from .samples import ENGLISH

NAMES = [
    b"plain.txt", b"with space.txt", b"[br{ack}ets]*?.txt", b"new\nline.txt", b"\xff\xfe \xe9.txt", b"\\xff\\xfe \\xe9.txt",
    b"-dash.txt", b"#hash#1.txt", b"%41.txt", b"quote'\".txt", "北方.txt".encode(), b"\x1b[31m.txt", b"<script>.txt",
]  # fmt: skip
HUGE = 40 << 20  # bytes of one line: more than a batch, as much as one record may be
ONE = '[[source]]\nname = "a"\npath = "raw"\n'


def under(folder: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.fsencode(folder) + b"/" + name))


def ran(recipe: Path, out: Path) -> dict[str, Any]:
    """The funnel of a run of this process: one part, so no process of Daft's is needed."""
    return prepare(read_recipe(recipe), out).record()


def with_recipe(folder: Path, text: str) -> Path:
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "r.toml").write_text(text)
    return folder / "r.toml"


def test_names_of_files_may_be_any(tmp_path: Path) -> None:
    place = under(tmp_path, b"\xe9 [a]*\n")
    place.mkdir()
    recipe = with_recipe(place, f'{ONE}[[step]]\nkind = "exact"\n')
    for at, name in enumerate(NAMES):
        under(place / "raw", name).write_text(varied(at))
    (place / "raw" / "empty.txt").write_bytes(b"")
    out = under(place, b"\xff {out}?")
    assert ran(recipe, out)["documents"] == {"read": len(NAMES) + 1, "kept": len(NAMES)}
    rows = rows_of(out / "documents")
    assert len({row["id"] for row in rows}) == len({row["number"] for row in rows}) == len(NAMES)
    assert [row["reason"] for row in rows_of(out / "removed" / "00-read")] == ["read: the file is empty"]
    inputs = verify_manifest(out)["inputs"]
    assert {os.fsencode(name).removeprefix(b"a/") for name in inputs} == {*NAMES, b"empty.txt"}
    assert not list(place.glob(".*"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in page and "<script" not in page


def test_a_huge_document_goes_through_whole(tmp_path: Path) -> None:
    recipe = with_recipe(tmp_path, f'piece_mb = 100\n{ONE}[[step]]\nkind = "exact"\n')
    text = "lighthouse keeper " * (HUGE // 18)
    (tmp_path / "raw" / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in (ENGLISH, text, varied(1), text)) + "\n"
    )
    assert ran(recipe, tmp_path / "out")["documents"] == {"read": 4, "kept": 3}
    assert [len(row["text"]) for row in rows_of(tmp_path / "out" / "documents")] == [
        len(ENGLISH), len(text), len(varied(1)),
    ]  # fmt: skip
    assert (tmp_path / "out" / "report.html").stat().st_size < 100_000


def test_texts_of_every_kind_of_character(tmp_path: Path) -> None:
    recipe = with_recipe(tmp_path, f'{ONE}[[step]]\nkind = "clean"\n[[step]]\nkind = "exact"\nunit = "line"\n')
    texts = [
        "\0",
        "\ud83d",
        "\udcff a",
        "\u202e right to left",
        "\x1b]0;title\x07",
        "e" + "\u0301" * 10_000,
        "\n" * 10_000,
        "",
    ]
    (tmp_path / "raw" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = ran(recipe, tmp_path / "out")
    gone = [row for folder in sorted((tmp_path / "out" / "removed").iterdir()) for row in rows_of(folder)]
    assert found["documents"]["read"] == len(texts) == found["documents"]["kept"] + len(gone)
    assert all(row["reason"] for row in gone)


def test_a_recipe_of_sources_alone_keeps_everything_in_order(tmp_path: Path) -> None:
    recipe = with_recipe(tmp_path, ONE)
    (tmp_path / "raw" / "a.jsonl").write_text("".join(json.dumps({"text": varied(n)}) + "\n" for n in range(50)))
    ran(recipe, tmp_path / "out")
    assert [row["text"] for row in rows_of(tmp_path / "out" / "documents")] == [varied(n) for n in range(50)]
    assert not (tmp_path / "out" / "removed").exists()


def test_the_size_of_parts_moves_only_their_borders(tmp_path: Path) -> None:
    """In a process of its own, for many parts start Daft; the texts that stay and the counts are the same."""
    recipe = write_corpus(tmp_path, 2, 2200)
    found = {}
    for megabytes in (1, 64):
        out = tmp_path / f"out-{megabytes}"
        words = [sys.executable, "-m", "kiloq", "prepare", str(recipe), "--out", str(out), "--json",
                 "--set", f"piece_mb={megabytes}"]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        funnel = json.loads(done.stdout)
        counts = [{key: step[key] for key in step if key.startswith(("documents", "bytes", "edits"))}
                  for step in funnel["steps"]]  # fmt: skip
        rows = [(row["id"], row["text"]) for row in rows_of(out / "documents")]
        found[megabytes] = (counts, rows, funnel["steps"][-1]["clusters"], funnel["sources"])
        assert funnel["parts"] == {1: 4, 64: 1}[megabytes]
    assert found[1] == found[64]


def test_a_run_whose_documents_are_done_goes_on_with_another_mix(tmp_path: Path) -> None:
    """A mix that cannot be is found at the very end: the work of hours must not be lost for it."""
    recipe = with_recipe(tmp_path, f"{ONE}[mix]\nmegabytes = 0.000001\nepochs = {{ a = 4.0 }}\n")
    (tmp_path / "raw" / "a.txt").write_text(ENGLISH)
    with pytest.raises(KiloqError, match="give fewer epochs or more megabytes"):
        ran(recipe, tmp_path / "out")
    done = tmp_path / ".out.preparing" / "result" / "documents" / "00000.parquet"
    before = done.stat().st_mtime_ns
    recipe.write_text(ONE)
    ran(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "documents" / "00000.parquet").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "out" / "mix.json").read_text())["sources"][0]["epochs"] == 1


def test_an_output_that_the_next_run_would_read_is_refused(tmp_path: Path) -> None:
    recipe = with_recipe(tmp_path, ONE)
    (tmp_path / "raw" / "a.txt").write_text(ENGLISH)
    first = ran(recipe, tmp_path / "raw" / "out")
    assert first["documents"] == {"read": 1, "kept": 1}
    with pytest.raises(KiloqError, match="the source a has files in it: choose an --out outside of its folder"):
        ran(recipe, tmp_path / "raw" / "out")
    recipe.write_text(f'{ONE}include = ["a.txt"]\n')
    assert ran(recipe, tmp_path / "raw" / "out")["documents"] == {"read": 1, "kept": 1}


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ('[[source]]\nname = "a"\npath = ""', "path is '': give a file or a folder"),
        ('[[source]]\nname = "a"\npath = "nowhere"', "nowhere: cannot be opened"),
        ('[[source]]\nname = "a"\npath = "empty"', "has no file to read for a"),
        ('[[source]]\nname = "a"\npath = "a\\u0000b"', "path is"),
        ('[[source]]\nname = "../a"\npath = "raw"', "give 1 to 100 letters, digits"),
        (f"{ONE}language = 'a\\tb'", "give a code such as en"),
        (f"{ONE}[mix]\nweights = {{ a = 0 }}", "every source has a weight or epochs of 0: give one of them more"),
        (f"{ONE}[[step]]\nkind = 'fuzzy'\nscore = 'text'", "give one that has numbers as score"),
        (f"{ONE}[[step]]\nkind = 'classifier'\npath = '/dev/zero'", "a regular file was expected here"),
        (f"{ONE}[[step]]\nkind = 'decontaminate'\npaths = [\"a\\u0000b\"]", "cannot be opened"),
        (f"piece_mb = 0\n{ONE}", "piece_mb is 0: give 1 or more"),
        (f"workers = -1\n{ONE}", "workers is -1: give 0 or more"),
        (f"seed = 1{'0' * 30}\n{ONE}", "seed"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_the_work(tmp_path: Path, recipe: str, sentence: str) -> None:
    path = with_recipe(tmp_path, recipe)
    (tmp_path / "empty").mkdir()
    (tmp_path / "raw" / "a.txt").write_text(ENGLISH)
    with pytest.raises(KiloqError, match=sentence) as error:
        ran(path, tmp_path / "out")
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / ".out.preparing").rglob("*.parquet"))
