"""Packed weights in a file: the same answers from it, written anew when anything changes, and no file of others touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import KILOQ, run
from generate.test_load import copied
from support import smollm2_gguf

import kiloq
from kiloq import native
from kiloq.core.errors import KiloqError, MissingError, UsageError
from kiloq.generate import packed
from kiloq.generate.native_load import Packer

if native.engine() is None:
    pytest.skip(native.MISSING, allow_module_level=True)

IDS = [5, 17, 3, 90, 41]


def load(model: Path, keep: Path | None = None, weights: str = "int8") -> kiloq.Model:
    return kiloq.load(model, weights=weights, engine="native", packed=keep)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each load does: "packed" for every matrix whose values are computed."""
    calls: list[str] = []
    for name in ("_put_numbers", "_put_integers"):
        method = getattr(Packer, name)

        def put(self: Packer, *arguments: object, _method: object = method) -> bool:
            calls.append("packed")
            return bool(_method(self, *arguments))  # type: ignore[operator]

        monkeypatch.setattr(Packer, name, put)
    return calls


def untouched(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; when it was last read is not among it."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mode, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_the_second_load_maps_and_answers_alike(weights: str, tmp_path: Path, counted: list[str]) -> None:
    model, keep = copied("m18b", tmp_path), tmp_path / "weights.packed"
    want = load(model, weights=weights).logits(IDS)
    np.testing.assert_array_equal(load(model, keep, weights).logits(IDS), want)
    before, counted[:] = untouched(keep), []
    np.testing.assert_array_equal(load(model, keep, weights).logits(IDS), want)
    assert counted == []
    assert untouched(keep) == before


def test_the_default_model(tmp_path: Path) -> None:
    """From GGUF's blocks, which are packed by another way."""
    keep = tmp_path / "weights.packed"
    want = kiloq.load(smollm2_gguf(), packed=keep).logits(IDS)
    np.testing.assert_array_equal(kiloq.load(smollm2_gguf(), packed=keep).logits(IDS), want)


def test_whatever_changes_packs_again(tmp_path: Path, counted: list[str]) -> None:
    model, keep = copied("m18b", tmp_path), tmp_path / "weights.packed"
    load(model, keep)
    changes = {
        "another precision": lambda: None,
        "a touched file": lambda: os.utime(model / "model.safetensors", ns=(1, 1)),
        "half a file": lambda: os.truncate(keep, keep.stat().st_size // 2),
        "a file that grew": lambda: keep.write_bytes(keep.read_bytes() + b"x"),
        "an older layout": lambda: keep.write_bytes(keep.read_bytes()[:30] + b"x" + keep.read_bytes()[31:]),
        "no file": keep.unlink,
    }
    for name, change in changes.items():
        weights = "bf16" if name == "another precision" else "int8"
        change()
        counted.clear()
        load(model, keep, weights)
        assert counted, name
        counted.clear()
        load(model, keep, weights)
        assert not counted, name


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    model = copied("m18b", tmp_path)
    mine = tmp_path / "thesis.txt"
    for content in (b"", b"kiloq packed", b"three years of work\n" * 1000):
        mine.write_bytes(content)
        with pytest.raises(UsageError, match="is not a file of packed weights: give the name of a new file"):
            load(model, mine)
        assert mine.read_bytes() == content
    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match="is a folder or a device"):
            load(model, place)
    with pytest.raises(MissingError, match="there is no folder"):
        load(model, tmp_path / "nowhere" / "weights.packed")


def test_a_full_disk_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, keep = copied("m18b", tmp_path), tmp_path / "weights.packed"
    want = load(model).logits(IDS)

    def full(self: packed.PackedFile, arena: object) -> None:
        raise KiloqError(f"{self.path}: cannot be written (No space left on device): make room")

    monkeypatch.setattr(packed.PackedFile, "write", full)
    loaded = load(model, keep)
    assert any("not kept" in warning and "No space left" in warning for warning in loaded.warnings)
    np.testing.assert_array_equal(loaded.logits(IDS), want)
    assert not keep.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing: the temporary file is a link to a device that is always full."""
    model, keep = copied("m18b", tmp_path), tmp_path / "weights.packed"
    (tmp_path / f".{keep.name}.partial-{os.getpid()}").symlink_to("/dev/full")
    loaded = load(model, keep)
    assert any("No space left on device" in warning for warning in loaded.warnings)
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.name]


def test_pytorch_has_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave packed out"):
        kiloq.load(copied("m18b", tmp_path), engine="torch", packed=tmp_path / "weights.packed")


def test_a_shorter_file_is_not_mapped(tmp_path: Path) -> None:
    """What the checks before it should have caught; mapping beyond a file's end would kill the process later."""
    short = tmp_path / "short"
    short.write_bytes(bytes(5000))
    for path, offset, size in [(short, 4096, 905), (tmp_path / "none", 0, 1)]:
        with pytest.raises(RuntimeError, match="cannot be mapped"):
            native.engine().Arena.mapped(str(path), offset, size)


def test_the_command_line(tmp_path: Path) -> None:
    keep = tmp_path / "weights.packed"
    command = [
        "generate",
        str(smollm2_gguf()),
        "1 + 1 =",
        "--max-new-tokens",
        "4",
        "--temperature",
        "0",
        "--packed",
        str(keep),
    ]
    first, second = (run(command, tmp_path, program=KILOQ).stdout for _ in range(2))
    assert first == second != ""
    assert keep.read_bytes().startswith(packed.MAGIC)
    other = shutil.copy(smollm2_gguf(), tmp_path / "other.gguf")
    refused = run([*command[:-1], str(other)], tmp_path, program=KILOQ)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is not a file of packed weights" in refused.stderr
