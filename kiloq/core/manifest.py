"""Artifact folders: staged beside their target, described by a `manifest.json` that is written last, moved in by one rename.

A folder without a manifest is unfinished, whatever else lies in it. The manifest has what is needed to trust and to
repeat the artifact: kind, format version, inputs with sha256, resolved config, seed, commit, counts, seconds, and
size and sha256 of every file.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.files import atomic_file, regular_size, shown, sync
from kiloq.core.safe_json import load_object

NAME = "manifest.json"
OWN = "manifest_sha256"  # the entry with the hash of all others
FORMAT_VERSION = 2  # 1 had no hash of the manifest itself
BLOCK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 64 << 20


def sha256_file(path: Path) -> str:
    """Lower-case hex sha256 of a regular file, read in blocks."""
    regular_size(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(
    folder: Path,
    kind: str,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    config: Mapping[str, Any] | None = None,
    counts: Mapping[str, int] | None = None,
    seed: int | None = None,
    seconds: float | None = None,
    notes: list[str] | None = None,
) -> dict[str, Any]:
    """Describe `folder` as it is now and return what was written. `inputs`: name -> file, folder, or known sha256."""
    manifest: dict[str, Any] = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "written_by": "kiloq",
        "commit": _commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "inputs": {name: _input(value) for name, value in (inputs or {}).items()},
        "config": dict(config or {}),
        "seed": seed,
        "counts": dict(counts or {}),
        "seconds": None if seconds is None else round(seconds, 3),
        "notes": notes or [],
        "files": {name: _described(folder / name) for name in _files(folder)},
    }
    manifest = json.loads(json.dumps(manifest))  # as it will be read
    manifest[OWN] = _own_sha256(manifest)
    with atomic_file(folder / NAME) as file:
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")  # names of files need not be UTF-8
    return manifest


def _own_sha256(manifest: Mapping[str, Any]) -> str:
    """Of a manifest without the entry for this."""
    rest = {key: value for key, value in manifest.items() if key != OWN}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder. Raises MissingError where there is none."""
    path = folder / NAME
    if not path.exists():
        raise MissingError(f"{folder}: has no {NAME}: it is unfinished or was not written by kiloq")
    manifest = load_object(path, MAX_MANIFEST_BYTES)
    if manifest.get("format_version") != 1 and manifest.get(OWN) != _own_sha256(manifest):
        raise FormatError(f"{path}: is not as it was written: it is damaged")
    files = manifest.get("files")
    if not isinstance(manifest.get("kind"), str) or not isinstance(files, dict):
        raise FormatError(f"{path}: lacks `kind` or `files`: it is not a manifest of kiloq")
    for name, entry in files.items():
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise FormatError(f"{path}: names the file {shown(name)}, which is not inside its folder")
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("size"), int)
            or not isinstance(entry.get("sha256"), str)
        ):
            raise FormatError(f"{path}: the entry of {shown(name)} lacks `size` or `sha256`")
    return manifest


def verify_manifest(folder: Path, *, full: bool = True) -> dict[str, Any]:
    """Check every listed file and return the manifest. Raises FormatError or MissingError with the first bad file.

    `full=False` compares sizes, and hashes only files that changed after the manifest was written.
    """
    manifest = read_manifest(folder)
    finished = (folder / NAME).stat().st_mtime_ns
    for name, entry in manifest["files"].items():
        path = folder / name
        size = regular_size(path)
        if size != entry["size"]:
            raise FormatError(f"{path}: has {size:,} bytes and its manifest says {entry['size']:,}: it is damaged")
        if (full or path.stat().st_mtime_ns > finished) and sha256_file(path) != entry["sha256"]:
            raise FormatError(f"{path}: differs from the sha256 in its manifest: it is damaged")
    return manifest


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A staging folder beside `target`, moved there by one rename when the block ends well, removed when it does not.

    A target that exists must be empty or one of ours (it has a manifest), which is then replaced.
    """
    target = target.absolute()
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(target, ("partial", "replaced"))
    staging = target.with_name(f".{target.name}.partial-{os.getpid()}")
    staging.mkdir()
    try:
        yield staging
        move_in(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_in(staging: Path, target: Path) -> None:
    """Put a finished folder under `target`: one rename; an old artifact of ours steps aside first and is deleted last."""
    target = target.absolute()
    for path in [*staging.rglob("*"), staging]:
        sync(path)
    _remove_left_overs(target, ("replaced",))
    check_replaceable(target)
    aside = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    if target.exists():
        target.rename(aside)
    staging.rename(target)
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(target: Path) -> None:
    """Raises UsageError unless a folder can be put under `target`: nothing is there, or an empty folder, or ours."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} exists and is not a folder: choose another output path")
    if not target.exists() or not any(target.iterdir()):
        return
    try:
        ours = read_manifest(target).get("written_by") == "kiloq"
    except (FormatError, MissingError):
        ours = False
    if not ours:
        raise UsageError(f"{target} is not empty and was not written by kiloq: choose another output path or empty it")


def _remove_left_overs(target: Path, kinds: Sequence[str]) -> None:
    """Staging folders of processes that are gone; a replaced folder returns if the process died between two renames."""
    for kind in kinds:
        for path in target.parent.glob(f".{glob.escape(target.name)}.{kind}-*"):
            pid = path.name.rpartition("-")[2]
            if not pid.isdigit() or (int(pid) != os.getpid() and _alive(int(pid))):
                continue
            if kind == "replaced" and not target.exists():
                path.rename(target)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # someone else's process, or not a process number: leave it alone
        return True
    return True


def _files(folder: Path) -> list[str]:
    """Relative names of all files below `folder`, sorted, the manifest excepted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != NAME and not Path(name).name.startswith("."))


def _described(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def _input(value: Path | str) -> dict[str, Any]:
    """How an input is recorded: a file by its hash, a finished folder by its manifest's hash, a string as a hash."""
    if isinstance(value, str):
        return {"sha256": value}
    source = value / NAME if value.is_dir() else value
    return {"path": str(value), **({"sha256": sha256_file(source)} if source.is_file() else {})}


def _commit() -> str | None:
    """The git commit of the checkout that this package runs from; None when it is installed elsewhere."""
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        loose = git / reference
        if loose.is_file():
            return loose.read_text().strip()
        for line in (git / "packed-refs").read_text().splitlines():
            if line.endswith(" " + reference):
                return line.split()[0]
    except OSError:
        return None
    return None
