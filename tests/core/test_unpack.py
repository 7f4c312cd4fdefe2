"""Bytes and lines out of packed files: equal to the libraries' own, in bounded memory, and never past a bomb."""

from __future__ import annotations

import bz2
import gzip
import io
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiloq.core import unpack
from kiloq.core.errors import FormatError, KiloqError, MissingError
from kiloq.core.unpack import BLOCK_BYTES, lines, open_unpacked

zstandard = pytest.importorskip("zstandard")
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}
TEXT = b"".join(b"line %d of the text\r\n" % n for n in range(40_000))


def written(folder: Path, data: bytes, name: str = "x") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read_until_error(path: Path) -> tuple[bytes, str]:
    """What comes before the error, and its sentence."""
    found = bytearray()
    try:
        with open_unpacked(path) as file:
            while block := file.read1(BLOCK_BYTES):
                found += block
    except KiloqError as error:
        return bytes(found), str(error)
    return bytes(found), ""


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("block_bytes", [7, 1 << 18])
def test_every_packing_gives_the_same_bytes(tmp_path: Path, ending: str, block_bytes: int) -> None:
    data = TEXT[:2000] if block_bytes == 7 else TEXT
    path = written(tmp_path, PACKERS[ending](data[:999]) + PACKERS[ending](data[999:]), f"x{ending}")  # two members
    with open_unpacked(path, block_bytes) as file:
        assert file.read() == data
    assert read_until_error(written(tmp_path, b"", f"empty{ending}")) == (b"", "")


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_what_comes_before_the_damage_is_read(tmp_path: Path, ending: str) -> None:
    packed = PACKERS[ending](TEXT)
    cut, said = read_until_error(written(tmp_path, packed[: len(packed) * 2 // 3], f"cut{ending}"))
    assert TEXT.startswith(cut) and (len(cut) > len(TEXT) // 3 or ending == ".bz2")  # one block is 900 kB there
    assert "cut short" in said and said.startswith(str(tmp_path))
    good, said = read_until_error(written(tmp_path, packed + b"no member", f"tail{ending}"))
    assert good == TEXT and (said or ending == ".bz2")  # bzip2 allows anything after the end
    assert read_until_error(written(tmp_path, b"not packed at all", f"not{ending}"))[1]


def test_a_start_is_a_place_in_the_file(tmp_path: Path) -> None:
    with open_unpacked(written(tmp_path, TEXT), start=1000) as file:
        assert file.read() == TEXT[1000:]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_a_bomb_ends_and_text_that_repeats_does_not(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = written(tmp_path, PACKERS[ending](bytes(40 << 20)), f"bomb{ending}")
    assert read_until_error(bomb) == (bytes(40 << 20), ""), "what is small may have any ratio"
    monkeypatch.setattr(unpack, "MAX_FREE_BYTES", 1 << 20)
    found, said = read_until_error(bomb)
    assert "unpacks to more than" in said and "\n" not in said
    assert len(found) <= max(1 << 20, unpack.MAX_RATIO * bomb.stat().st_size) < 40 << 20
    line = b"The old lighthouse stood on the northern edge of the island, and nobody had lived there.\n"
    honest = written(tmp_path, gzip.compress(line * 100_000), "honest.gz")
    assert read_until_error(honest) == (line * 100_000, "")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError):
        open_unpacked(tmp_path / "none.gz")
    with pytest.raises(FormatError, match="is a folder"):
        open_unpacked(tmp_path)
    path = written(tmp_path, TEXT)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert read_until_error(path)[1] == f"{path}: cannot be read (Permission denied): it is damaged or cut short"
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with (
        pytest.raises(MissingError, match=r"pip install 'kiloq\[data\]'"),
        open_unpacked(written(tmp_path, b"x", "x.zst")) as file,
    ):
        file.read()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text("a\n", max_size=60).map(str.encode), st.integers(1, 9), st.integers(1, 5))
def test_lines_are_those_of_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, most: int, block: int
) -> None:
    path = written(tmp_path_factory.getbasetemp(), data, "lines")
    wanted = io.BytesIO(data).readlines()
    with open_unpacked(path, block) as file:
        found = list(lines(file, most, 5))
    assert [line.start for line in found] == [5 + size for size in accumulate(map(len, wanted), initial=0)][:-1]
    for line, whole in zip(found, wanted, strict=True):
        assert line.cut == (len(whole.removesuffix(b"\n")) > most)
        assert line.data == (whole[: most + 1] if line.cut else whole)


def test_a_gigantic_line_takes_no_memory(tmp_path: Path) -> None:
    """200 MB of zeros in one line of a .zst, and the line after it, in a process that may have 120 MB more."""
    path = tmp_path / "long.zst"
    with zstandard.open(path, "wb") as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
        file.write(b"\nnext\n")
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom kiloq.core.unpack import lines, open_unpacked\n"
        "import zstandard\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_unpacked(Path(sys.argv[1])) as file:\n"
        "    found = [(len(line.data), line.cut) for line in lines(file, 1 << 20)]\n"
        "print(found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    found, megabytes = done.stdout.rsplit(" ", 1)
    assert found == f"[({(1 << 20) + 1}, True), (5, False)]"
    assert int(megabytes) < 120
