"""Whole runs of `kiloq prepare`: counts that add up, the same bytes whatever happens on the way, sentences for people."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from kiloq.core.errors import BusyError, KiloqError, UsageError
from kiloq.core.manifest import verify_manifest
from kiloq.core.work import WorkFolder
from kiloq.prepare.pipeline.recipe import read_recipe
from kiloq.prepare.pipeline.run import Run, prepare
from kiloq.prepare.readers.source import Source

from .samples import CHINESE, ENGLISH

HOSTILE = "</pre><script>alert(1)</script> & \x1b[31m " + ENGLISH
RECIPE = """
name = "trial"
piece_mb = 1
[[source]]
name = "rows"
path = "rows"
[[source]]
name = "pages"
path = "pages"
[[step]]
kind = "extract"
[[step]]
kind = "clean"
[[step]]
kind = "language"
keep = ["en", "zh"]
[[step]]
kind = "gopher"
least_words = 20
[[step]]
kind = "exact"
[[step]]
kind = "exact"
unit = "line"
[[step]]
kind = "fuzzy"
[[step]]
kind = "pii"
[[step]]
kind = "decontaminate"
paths = ["tests.jsonl"]
[mix]
epochs = { pages = 2 }
"""


def varied(number: int) -> str:
    """English prose of which no line is another's."""
    return "\n".join(
        f"{line[:-1]}, as chapter {number} of volume {number * 7919 % 1009} tells us." for line in ENGLISH.split("\n")
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its sources."""
    folder = tmp_path_factory.mktemp("trial")
    (folder / "rows").mkdir()
    (folder / "pages").mkdir()
    item = "Seven carpenters shared forty two walnut planks among nine workshops before the winter fair began"
    texts = [
        ENGLISH,
        CHINESE,
        ENGLISH.upper(),
        "too short",
        "Bonjour à tous, " * 30,
        HOSTILE,
        varied(1) + "\n" + item + ".",
    ]
    for part in range(3):
        lines = [json.dumps({"text": text}) for text in [*texts, *(varied(10 * part + at) for at in range(10))]]
        body = "\n".join([*lines, "{broken", json.dumps({"no": 1})]) + "\n"
        (folder / "rows" / f"{part} [a].jsonl").write_text(body, encoding="utf-8")
    for at in range(4):
        paragraphs = "".join(f"<p>{line}</p>" for line in varied(100 + at).split("\n"))
        (folder / "pages" / f"{at}.html").write_text(f"<html><body><nav>menu</nav>{paragraphs}</body></html>")
    (folder / "tests.jsonl").write_text(json.dumps({"question": item}) + "\n")
    (folder / "trial.toml").write_text(RECIPE)
    return folder


def command(place: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "kiloq", "prepare", str(place / "trial.toml"), "--out", str(out), *more]


def run(place: Path, out: Path, *more: str) -> dict[str, Any]:
    """A run in a process of its own, for Daft leaves pipes open in the one that it is in; what it says of itself."""
    done = subprocess.run(
        [*command(place, out), "--json", *more], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def contents(out: Path) -> dict[str, str]:
    """Every file but the manifest, which has a clock, by its hash."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Any, Path]:
    out = place / "out"
    return run(place, out, "--workers", "2"), out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_counts_add_up_and_every_drop_has_its_reason(finished: tuple[Any, Path]) -> None:
    funnel, out = finished
    kept = rows_of(out / "documents")
    before = 3 * (7 + 10 + 2) + 4
    for step in funnel["steps"]:
        gone = rows_of(out / "removed" / step["step"])
        assert step["documents_in"] == before == step["documents_out"] + len(gone)
        assert all(row["reason"] for row in gone)
        assert sum(step["reasons"].values()) == len(gone)
        before = step["documents_out"]
    assert before == len(kept) == funnel["documents"]["kept"]
    assert len({row["number"] for row in kept}) == len({(row["source"], row["id"]) for row in kept}) == len(kept)
    verify_manifest(out)


def test_each_step_took_what_it_is_there_for(finished: tuple[Any, Path]) -> None:
    _, out = finished
    reasons = {folder.name: [row["reason"] for row in rows_of(folder)] for folder in (out / "removed").iterdir()}
    assert len(reasons["00-read"]) == 6  # two bad records in each file
    assert all(reason.startswith("language: fr") for reason in reasons["03-language"] if "too short" not in reason)
    assert any("copy of document 0 in part 0" in reason for reason in reasons["05-exact"])
    assert len(reasons["09-decontaminate"]) >= 1
    found = json.loads((out / "decontamination.json").read_text())["09-decontaminate"]
    assert [(entry["items"], entry["hit"]) for entry in found.values()] == [(1, 1)]
    assert json.loads((out / "mix.json").read_text())["sources"][1]["epochs"] == 2


def test_the_report_is_one_page_that_shows_hostile_text_as_text(finished: tuple[Any, Path]) -> None:
    _, out = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "http" not in page.replace("http-equiv", "") and "\x1b" not in page
    for svg in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| 05-exact |" in card and '- "zh"' in card


def test_one_process_or_two_give_the_same_bytes(place: Path, finished: tuple[Any, Path], tmp_path: Path) -> None:
    run(place, tmp_path / "one", "--workers", "1")
    assert contents(tmp_path / "one") == contents(finished[1])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".one")]


@pytest.mark.parametrize("moment", ["stage-0-part", "stage-1-group", "stage-2-part"])
def test_a_kill_changes_nothing(place: Path, finished: tuple[Any, Path], tmp_path: Path, moment: str) -> None:
    out = tmp_path / "out"
    marks = tmp_path / ".out.preparing" / "done" / moment
    process = subprocess.Popen(
        command(place, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 60
    while not (marks.is_dir() and any(marks.iterdir())) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    run(place, out)
    assert contents(out) == contents(finished[1])


def test_a_kill_after_the_last_part_changes_nothing(place: Path, finished: tuple[Any, Path], tmp_path: Path) -> None:
    """By then the files of earlier passes are gone, and what they came to must not be worked out again."""
    out = tmp_path / "out"
    dying = (
        "import os, sys; from kiloq.prepare.pipeline import run; run.write_result = lambda *_: os.kill(os.getpid(), 9)"
    )
    code = f"{dying}; from kiloq.__main__ import main; sys.exit(main())"
    killed = subprocess.run([sys.executable, "-c", code, *command(place, out)[3:]], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run(place, out)
    assert contents(out) == contents(finished[1])


def test_a_ray_cluster_of_two_workers_gives_the_same_bytes(
    place: Path, finished: tuple[Any, Path], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'kiloq[ray]'")
    program = (
        "import subprocess, sys\n"
        "from ray.cluster_utils import Cluster\n"
        "sizes = {'num_cpus': 1, 'object_store_memory': 100 << 20}\n"
        "cluster = Cluster(initialize_head=True, head_node_args={**sizes, 'include_dashboard': False})\n"
        "cluster.add_node(**sizes)\n"
        "code = subprocess.run([*sys.argv[1:], '--engine', 'ray', '--set', f'address={cluster.address}']).returncode\n"
        "cluster.shutdown()\n"
        "sys.exit(code)\n"
    )
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", program, *command(place, tmp_path / "out")], capture_output=True, text=True,
                          timeout=110, env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert contents(tmp_path / "out") == contents(finished[1])


def test_many_edges_are_settled_on_disk_with_the_same_losers(
    place: Path, finished: tuple[Any, Path], tmp_path: Path
) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom kiloq.prepare.pipeline import recipe, run\nrun.MOST_EDGES = 0\n"
        "run.prepare(recipe.read_recipe(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", program, str(place / "trial.toml"), str(out)]
    subprocess.run(arguments, capture_output=True, timeout=100, check=True)
    assert contents(out) == contents(finished[1])


def test_the_command_prints_one_object_and_errors_are_sentences(place: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": ENGLISH}) + "\n")
    small.write_text('[[source]]\nname = "a"\npath = "a.jsonl"\n')
    base = [sys.executable, "-m", "kiloq", "prepare", str(small), "--out", str(tmp_path / "out")]
    done = subprocess.run([*base, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["documents"] == {"read": 1, "kept": 1}
    subprocess.run([*base, "--dry-run"], capture_output=True, timeout=60, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out", "small.toml"]
    bad = subprocess.run([*base, "--set", "seeed=1"], capture_output=True, text=True, timeout=60, check=False)
    assert (
        (bad.returncode, bad.stdout) == (2, "") and "did you mean 'seed'" in bad.stderr and bad.stderr.count("\n") == 1
    )


def test_a_source_of_which_nothing_stays_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n")
    (tmp_path / "r.toml").write_text('[[source]]\nname = "a"\npath = "a.jsonl"\n[[step]]\nkind = "fuzzy"\n')
    funnel = prepare(read_recipe(tmp_path / "r.toml"), tmp_path / "out")
    assert (funnel.documents_in, funnel.documents_out) == (1, 0)
    assert not (tmp_path / "out" / "mix.json").exists()


def test_a_second_run_in_the_same_place_is_refused(place: Path, tmp_path: Path) -> None:
    with WorkFolder.beside(tmp_path / "out", "preparing").locked(), pytest.raises(BusyError, match="another kiloq"):
        prepare(read_recipe(place / "trial.toml"), tmp_path / "out")


def test_files_that_change_begin_the_work_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, recipe = tmp_path / "a.jsonl", tmp_path / "r.toml"
    source.write_text(json.dumps({"text": "one"}) + "\n")
    recipe.write_text('[[source]]\nname = "a"\npath = "a.jsonl"\n')
    whole = Run.run

    def stopped(self: Run) -> Any:
        whole(self)
        raise KiloqError("stopped")

    monkeypatch.setattr(Run, "run", stopped)
    with pytest.raises(KiloqError, match="stopped"):
        prepare(read_recipe(recipe), tmp_path / "out")
    monkeypatch.undo()
    source.write_text(json.dumps({"text": "two!"}) + "\n")
    prepare(read_recipe(recipe), tmp_path / "out")
    assert [row["text"] for row in rows_of(tmp_path / "out" / "documents")] == ["two!"]


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("", "has no source: add a table"),
        ("engine = 'spark'\n[[source]]\nname='a'\npath='.'", "choose one of native, ray"),
        ("source = 1", "tables \\[\\[source\\]\\] were expected"),
        ("[[source]]\nname='a'", "lacks the field path"),
        ("[[source]]\nname='a'\npath='.'\n[[source]]\nname='a'\npath='.'", "two sources are called a"),
        ("[mix]\nweights={b=1}\n[[source]]\nname='a'\npath='.'", "the source 'b' is not known"),
        (
            "[[step]]\nkind='vote'\ncolumns=['quality']\nweights=[1]\nthresholds=[0.5]\n[[source]]\nname='a'\npath='.'",
            "quality",
        ),
    ],
)
def test_a_wrong_recipe_is_answered_with_a_sentence(tmp_path: Path, recipe: str, sentence: str) -> None:
    (tmp_path / "r.toml").write_text(recipe)
    with pytest.raises(UsageError, match=sentence):
        prepare(read_recipe(tmp_path / "r.toml"), tmp_path / "out")


def test_source_is_the_readers_own(place: Path) -> None:
    """Paths of a recipe start at the recipe."""
    found = read_recipe(place / "trial.toml").source[0]
    assert isinstance(found, Source) and Path(found.path) == place / "rows"
