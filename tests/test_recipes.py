"""Every recipe parses, its steps fit together, what it fetches is pinned, and the tiny one runs to its shards."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from kiloq.prepare.pipeline.recipe import read_recipe
from kiloq.prepare.pipeline.run import checked
from kiloq.train.plan import plan, planned_config
from kiloq.train.settings import read_recipe as read_training

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*/prepare.toml"))
TRAININGS = sorted(path for name in ("train", "proxy") for path in (ROOT / "recipes").glob(f"*/{name}.toml"))
# pages in Chinese, of which tiny has five times as many
OFFICE = '["*/text/swriter/*.html", "*/text/sdatabase/*.html"]'
PACKAGES = sorted((ROOT / "recipes").glob("*/packages.toml"))


def packages_of(folder: Path) -> list[tuple[str, dict[str, str]]]:
    """(kind, row) of every package of a recipe."""
    packages = tomllib.loads((folder / "packages.toml").read_text(encoding="utf-8"))
    return [(kind, row) for kind, rows in packages.items() for row in rows]


def test_there_are_recipes() -> None:
    assert {path.parent.name for path in RECIPES} >= {"tiny", "small"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_parses_and_its_steps_fit_together(path: Path) -> None:
    recipe = read_recipe(path)
    checked(recipe)
    assert recipe.source and all(Path(source.path).is_relative_to(path.parent) for source in recipe.source)


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_training_recipe_parses_and_plans(path: Path) -> None:
    recipe = read_training(path)
    found = plan(planned_config(recipe, 4096), recipe, recipe.parallel.processes)
    assert found.parameters > 50_000 and found.fullest.memory.total > 0


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_packages_are_pinned(path: Path) -> None:
    rows = [row for _, row in packages_of(path.parent)]
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert row["version"] and row["license"] and len(bytes.fromhex(row["sha256"])) == 32


def test_a_package_with_other_contents_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import fetch

    try:

        def download(kind: str, row: dict[str, str], folder: Path) -> Path:
            (folder / "a.whl").write_bytes(b"another file")
            return folder / "a.whl"

        monkeypatch.setattr(fetch, "download", download)
        with pytest.raises(SystemExit, match="it is another file"):
            fetch.fetch("pypi", {"name": "a", "version": "1", "sha256": "0" * 64, "license": "MIT"}, tmp_path)
        assert not (tmp_path / "pypi").exists()
    finally:
        sys.modules.pop("fetch", None)


def sets(values: list[str]) -> list[str]:
    """Each as a --set."""
    return [word for value in values for word in ("--set", value)]


@pytest.mark.timeout(300)  # 16 s of processor time, on machines that do other work too
def test_the_tiny_recipe_runs_to_a_model_that_continues_text(tmp_path: Path) -> None:
    """Rows are counted with Parquet, tokens in the file; copies are pages and what they are made of. A fifth of a source."""
    tiny = ROOT / "recipes" / "tiny"
    if not all((tiny / "raw" / kind / row["name"]).exists() for kind, row in packages_of(tiny)):
        pytest.skip("the texts of the tiny recipe are not here: run `python recipes/fetch.py recipes/tiny`")
    corpus, words, shards, run = (str(tmp_path / name) for name in ("corpus", "words", "shards", "run"))
    fewer = ["steps=24", "evaluate_every=12", "save_every=12", f"tokenizer={words}", 'samples=["The Debian"]']
    done = [
        subprocess.run([sys.executable, "-m", "kiloq", *arguments], capture_output=True, text=True, check=False)
        for arguments in (
            ["prepare", str(tiny / "prepare.toml"), "--out", corpus, "--json", "--set", f"source.5.include={OFFICE}"],
            ["tokenize", "train", f"{corpus}/documents", "--vocab-size", "8192", "--out", words],
            ["tokenize", "corpus", corpus, "--tokenizer", words, "--out", shards, "--json"],
            ["train", str(tiny / "train.toml"), "--data", shards, "--out", run, "--json", *sets(fewer)],
            ["generate", f"{run}/model", "The Debian", "--max-new-tokens", "12", "--json"],
        )
    ]
    assert [one.returncode for one in done] == [0] * 5, [one.stderr for one in done]
    funnel, encoded = json.loads(done[0].stdout), json.loads(done[2].stdout)
    count = funnel["documents"]["read"]
    for step in funnel["steps"]:
        removed = sum(pq.read_metadata(path).num_rows for path in Path(corpus, "removed", step["step"]).glob("*"))
        assert (step["documents_in"], step["documents_in"] - removed) == (count, step["documents_out"]), step["step"]
        count = step["documents_out"]
    texts = pq.read_table(Path(corpus, "documents"), columns=["text", "language", "format"])
    sizes = {name: funnel["languages"][name]["kept"]["bytes"] for name in ("en", "zh")}
    assert texts.num_rows == count == encoded["documents"]
    assert sum(len(text.encode()) for text in texts.column("text").to_pylist()) == funnel["steps"][-1]["bytes_out"]
    assert sizes["en"] > 2.5e6 and sizes["zh"] > 0.7e6
    assert texts.column("format").to_pylist().count("code") > 100
    assert funnel["sources"]["developers"]["kept"]["documents"] < funnel["sources"]["developers"]["read"]["documents"]
    assert sum(np.fromfile(path, np.uint32).size for path in Path(shards).glob("*.tokens")) == encoded["tokens"]
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["evaluation_loss"] < 7.6 < rows[0]["loss"] < 9.1  # ln(8192) is 9.01
    assert json.loads(done[3].stdout)["evaluation_loss"] == rows[-1]["evaluation_loss"]
    assert set(rows[-1]["evaluation_losses"]) >= {"python", "faq", "office-zh"}
    assert [len(row["samples"]) for row in rows if "samples" in row] == [1, 1]
    assert rows[-1]["samples"][0].startswith("The Debian") and len(rows[-1]["samples"][0]) > 20
    assert json.loads(done[4].stdout)["usage"]["completion_tokens"] > 0
