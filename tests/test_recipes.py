"""Every recipe parses, its steps fit together, and what it fetches is pinned."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from kiloq.prepare.pipeline.recipe import read_recipe
from kiloq.prepare.pipeline.run import checked

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*/prepare.toml"))
PACKAGES = sorted((ROOT / "recipes").glob("*/packages.toml"))


def test_there_are_recipes() -> None:
    assert {path.parent.name for path in RECIPES} >= {"tiny", "small"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_parses_and_its_steps_fit_together(path: Path) -> None:
    recipe = read_recipe(path)
    checked(recipe)
    assert recipe.source and all(Path(source.path).is_relative_to(path.parent) for source in recipe.source)


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_packages_are_pinned(path: Path) -> None:
    rows = [row for kind in tomllib.loads(path.read_text(encoding="utf-8")).values() for row in kind]
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
