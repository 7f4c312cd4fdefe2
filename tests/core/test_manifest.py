"""Artifact folders: complete or absent, described to the byte, checked against damage, never over a stranger's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.manifest import NAME, OWN, atomic_folder, read_manifest, sha256_file, verify_manifest, write_manifest


def make(target: Path, text: str = "hello") -> Path:
    with atomic_folder(target) as staging:
        (staging / "sub").mkdir()
        (staging / "a.txt").write_text(text)
        (staging / "sub" / "b.txt").write_text("b")
        write_manifest(staging, "test", inputs={"x": "0" * 64}, config={"k": 1}, counts={"n": 2}, seed=3, seconds=0.5)
    return target


def test_a_manifest_says_everything(tmp_path: Path) -> None:
    manifest = verify_manifest(make(tmp_path / "out"))
    assert manifest["kind"] == "test"
    assert (manifest["config"], manifest["counts"], manifest["seed"], manifest["seconds"]) == (
        {"k": 1},
        {"n": 2},
        3,
        0.5,
    )
    assert manifest["inputs"] == {"x": {"sha256": "0" * 64}}
    assert set(manifest["files"]) == {"a.txt", "sub/b.txt"}
    assert manifest["files"]["a.txt"] == {"size": 5, "sha256": sha256_file(tmp_path / "out" / "a.txt")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    whole = (folder / NAME).read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        (folder / NAME).write_bytes(changed)
        try:
            same = json.loads(changed) == json.loads(whole)  # white space, or another spelling of a character
        except ValueError:
            same = False
        if same:
            read_manifest(folder)
        else:
            with pytest.raises(FormatError):
                read_manifest(folder)


def test_a_manifest_of_before_it_had_its_own_hash_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    manifest = json.loads((folder / NAME).read_text())
    del manifest[OWN]
    (folder / NAME).write_text(json.dumps({**manifest, "format_version": 1}))
    assert verify_manifest(folder)["kind"] == "test"
    (folder / NAME).write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match="is not as it was written"):
        verify_manifest(folder)


def test_inputs_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("in")
    other = make(tmp_path / "other")
    folder = tmp_path / "out"
    folder.mkdir()
    manifest = write_manifest(folder, "test", inputs={"file": tmp_path / "in.txt", "folder": other})
    assert manifest["inputs"]["file"]["sha256"] == sha256_file(tmp_path / "in.txt")
    assert manifest["inputs"]["folder"]["sha256"] == sha256_file(other / NAME)


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(tmp_path / "out") as staging:
        (staging / "a.txt").write_text("new")
        raise RuntimeError("stop")
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ours_is_replaced_an_empty_folder_is_taken_a_strangers_is_not(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    make(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    for name in ("theirs", "file", "link"):
        with pytest.raises(UsageError, match="choose another"), atomic_folder(tmp_path / name):
            raise AssertionError("never reached")
    assert (tmp_path / "theirs" / "x").read_text() == "x"


KILLED = """
import os, signal, sys
from pathlib import Path
from kiloq.core.manifest import atomic_folder
with atomic_folder(Path(sys.argv[1])) as staging:
    (staging / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_leaves_no_target_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert done.returncode < 0
    assert not (tmp_path / "out").exists()
    assert any(path.name.startswith(".out.partial-") for path in tmp_path.iterdir())
    make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_stepped_aside_returns_after_a_crash_between_two_renames(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "out").rename(tmp_path / f".out.replaced-{dead.pid}")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out"):
        raise RuntimeError
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_damage_is_found(tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    (folder / "a.txt").write_text("hullo")  # same size, newer than the manifest
    future = (folder / NAME).stat().st_mtime + 10
    os.utime(folder / "a.txt", (future, future))
    for full in (True, False):
        with pytest.raises(FormatError, match=r"a\.txt.*sha256"):
            verify_manifest(folder, full=full)
    past = (folder / NAME).stat().st_mtime - 10
    os.utime(folder / "a.txt", (past, past))
    verify_manifest(folder, full=False)  # the quick check trusts dates; the full one does not
    with pytest.raises(FormatError, match="sha256"):
        verify_manifest(folder)
    (folder / "a.txt").write_text("much longer")
    with pytest.raises(FormatError, match="bytes"):
        verify_manifest(folder, full=False)
    (folder / "a.txt").unlink()
    with pytest.raises(MissingError, match=r"a\.txt"):
        verify_manifest(folder, full=False)


def test_no_manifest_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="unfinished"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"../up": {"size": 1, "sha256": "0"}},
        {"/etc/passwd": {"size": 1, "sha256": "0"}},
        {"a\0b": {"size": 1, "sha256": "0"}},
        {"": {"size": 1, "sha256": "0"}},
        {"a": {"size": "1", "sha256": "0"}},
        {"a": 1},
        [],
    ],
)
def test_hostile_manifests_are_refused(files: object, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"kind": "x", "files": files}))
    with pytest.raises(FormatError, match="manifest"):
        verify_manifest(tmp_path)
