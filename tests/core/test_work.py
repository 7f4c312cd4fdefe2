"""The folder of unfinished work: the same job goes on, another begins anew, and a second process stays out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kiloq.core.errors import BusyError, FormatError, MissingError
from kiloq.core.work import JOB, LOCK, WorkFolder, write_json

HOLD = """
import sys
from pathlib import Path
from kiloq.core.work import WorkFolder
with WorkFolder(Path(sys.argv[1])).locked():
    print("in", flush=True)
    sys.stdin.read()
"""


def test_the_folder_is_beside_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorkFolder.beside(tmp_path / "out", "prepare").folder == tmp_path / ".out.prepare"
    monkeypatch.chdir(tmp_path)
    assert WorkFolder.beside(Path("out"), "prepare").folder == tmp_path / ".out.prepare"
    assert list(tmp_path.iterdir()) == []


def test_the_same_job_goes_on_and_another_begins_anew(tmp_path: Path) -> None:
    work = WorkFolder.beside(tmp_path / "out", "prepare")
    job = {"seed": 1, "inputs": ("a", "混"), "sizes": {"a": None}}
    assert not work.begin(job)
    (work.folder / "part").write_bytes(b"done")
    assert work.begin(job)  # a tuple is a list in JSON
    assert (work.folder / "part").read_bytes() == b"done"
    assert work.job() == {"seed": 1, "inputs": ["a", "混"], "sizes": {"a": None}}
    assert not work.begin({**job, "seed": 2})
    assert [path.name for path in work.folder.iterdir()] == [JOB]
    assert not work.begin(job)


def test_beginning_anew_empties_the_folder_but_follows_no_link(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_bytes(b"")
    with work.locked():
        assert not work.begin({"seed": 1})
        (work.folder / "deep" / "er").mkdir(parents=True)
        (work.folder / "deep" / "er" / "part").write_bytes(b"")
        (work.folder / "link").symlink_to(tmp_path / "mine")
        assert not work.begin({"seed": 2})
        assert sorted(path.name for path in work.folder.iterdir()) == [JOB, LOCK]
        with pytest.raises(BusyError), WorkFolder(work.folder).locked():
            pass
    assert (tmp_path / "mine" / "kept").exists()


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"seed": 1', b"\xff"])
def test_a_damaged_job_begins_anew(data: bytes, tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work")
    work.begin({"seed": 1})
    (work.folder / JOB).write_bytes(data)
    (work.folder / "part").write_bytes(b"")
    with pytest.raises(FormatError):
        work.job()
    assert not work.begin({"seed": 1})
    assert not (work.folder / "part").exists()
    assert work.begin({"seed": 1})


def test_forgotten_work_does_not_count_and_removed_work_is_gone(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work")
    work.begin({"seed": 1})
    (work.folder / "part").write_bytes(b"")
    work.forget()
    work.forget()
    with pytest.raises(MissingError):
        work.job()
    assert not work.begin({"seed": 1})
    assert not (work.folder / "part").exists()
    work.remove()
    work.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_stays_out_until_the_first_is_dead(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work")
    command = [sys.executable, "-c", HOLD, str(work.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "in\n"
        sentence = "another kiloq is at work here: wait for it, or choose another --out"
        with pytest.raises(BusyError, match=sentence), work.locked():
            pytest.fail("two are in")
        with WorkFolder(tmp_path / "other").locked():
            pass
        process.kill()
        process.wait()
    for _ in range(2):  # the lock of a dead process is free, and so is one that was given back
        with work.locked():
            work.begin({"seed": 1})


def test_an_error_gives_the_lock_back(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work")
    with pytest.raises(ZeroDivisionError), work.locked():
        raise ZeroDivisionError
    with work.locked():
        pass


def test_json_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    write_json(path, {"b": "混", "a": [1]})
    assert path.read_text("utf-8") == '{\n "b": "混",\n "a": [\n  1\n ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert [entry.name for entry in path.parent.iterdir()] == ["c.json"]
    assert path.read_text("utf-8").startswith('{\n "b"')


def test_a_job_with_a_name_that_is_not_utf_8_goes_on(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work")
    job = {"files": [os.fsdecode(b"caf\xe9.txt"), "café.txt"]}
    assert not work.begin(job)
    assert work.begin(job)
