"""Writing a file: complete or not at all, never in the place of a device, and with the user's name for it in errors."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from kiloq.core.errors import KiloqError, MissingError, UsageError
from kiloq.core.files import atomic_file, check_target


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    """As root, a rename onto /dev/null would take it away from the whole machine. (A pipe stands for it here.)"""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, sentence in (
        (pipe, "a folder or a device"),
        (tmp_path, "a folder or a device"),
        (Path(), "not the name"),
    ):
        with pytest.raises(UsageError, match=sentence):
            check_target(path)
    with pytest.raises(MissingError, match="there is no folder"):
        check_target(tmp_path / "no" / "x")
    with pytest.raises(UsageError), atomic_file(pipe):
        pass
    assert pipe.is_fifo()


def test_a_full_disk_is_one_sentence_with_the_name_that_the_user_gave(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: both are an OSError of write()."""
    limits, path = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "big.bin"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(KiloqError) as caught, atomic_file(path) as file:
            file.write(b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert str(caught.value).startswith(f"{path}: cannot be written (File too large): make room")
    assert list(tmp_path.iterdir()) == []
